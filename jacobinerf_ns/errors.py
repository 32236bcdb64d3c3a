"""What goes wrong because of the user's input, said in one line, with exit code 2 at every door."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 2


class UserError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


@contextmanager
def one_line_exit() -> Iterator[None]:
    """Turns a `UserError` into one line on stderr and exit code 2.

    Doors use it (commands, and the `setup` of our nerfstudio configs, which the stock `ns-*` commands call); code below
    the doors raises `UserError`, so that Python users can catch it.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CODE) from None
