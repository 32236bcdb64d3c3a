"""The progress bar of everything that takes a while: what is done, how much of it, how long it took and will take."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


def progress_bar(unit: str = "", transient: bool = False, disable: bool = False) -> Progress:
    """Return a progress bar, to be entered.

    Args:
        unit: what is counted, in the plural; none where the description says it.
        transient: take the bar away at the end.
        disable: show none.
    """
    units = [TextColumn(unit)] if unit else []
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *units,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
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
