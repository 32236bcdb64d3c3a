"""What is printed: lines and tables, and the progress bar of everything that takes a while.

Names in them are strangers': they are printed as they are, but cannot steer the terminal.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

Item = TypeVar("Item")

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""All but the end of a line, which rich sets itself."""


class PlainConsole(Console):
    """A console that takes text as it is: no brackets or colons of a name mean anything, no control character is left.

    rich takes out five of the control characters, and leaves the one that terminals are steered with.
    """

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render as rich does, without control characters of the text; what rich itself steers with stays."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_CONTROL.sub("", segment.text), segment.style)


def progress_bar(unit: str = "", transient: bool = False, disable: bool = False) -> Progress:
    """Return a progress bar, to be entered.

    Args:
        unit: what is counted, in the plural; none where the description says it.
        transient: take the bar away at the end.
        disable: show none.
    """
    units = [TextColumn(unit, markup=False)] if unit else []
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *units,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=PlainConsole(),
        transient=transient,
        disable=disable,
    )


def track(
    items: Iterable[Item],
    description: str,
    total: int | None = None,
    transient: bool = False,
    disable: bool = False,
) -> Iterator[Item]:
    """Yield the items with a progress bar.

    Args:
        items: what there is to do.
        description: what is done with it.
        total: how many items there are, where they do not say so themselves.
        transient: take the bar away at the end.
        disable: show none.
    """
    with progress_bar(transient=transient, disable=disable) as progress:
        yield from progress.track(items, total=total, description=description)
