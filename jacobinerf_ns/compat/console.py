"""nerfstudio's log lines, kept out of the way of our progress bars; for as long as it prints through one console."""

from collections.abc import Iterator
from contextlib import contextmanager

from nerfstudio.utils.rich_utils import CONSOLE


@contextmanager
def quiet_nerfstudio() -> Iterator[None]:
    """Keep nerfstudio's log lines out of the way of a progress bar; errors are exceptions and come through."""
    before, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        yield
    finally:
        CONSOLE.quiet = before
