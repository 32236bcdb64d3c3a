"""What goes wrong because of the user's input, said in one line, with exit code 2 at every door."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pydantic import ValidationError

EXIT_CODE = 2
_LONGEST_REASON = 200
"""Characters of somebody else's message that are passed on."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")

_caught_outside = ContextVar("caught_outside", default=False)


class UserError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


def visible(text: str) -> str:
    """Return a text without control characters, on one line: those of a stranger's names would steer the terminal."""
    return _CONTROL.sub(" ", text)


def reason(error: BaseException) -> str:
    """Return what an exception of somebody else's code says, on one short line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(visible(said).split()) or type(error).__name__
    return line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON - 3]}..."


@contextmanager
def one_line_exit() -> Iterator[None]:
    """Turn a `UserError` into one line on stderr and exit code 2.

    Doors use it (commands, and the `setup` of our nerfstudio configs, which the stock `ns-*` commands call); code below
    the doors raises `UserError`, so that Python users can catch it.
    """
    try:
        yield
    except UserError as error:
        if _caught_outside.get():
            raise
        print(f"error: {visible(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CODE) from None


@contextmanager
def caught_outside() -> Iterator[None]:
    """Make doors inside the block raise `UserError` too: our own commands call what nerfstudio's commands call."""
    token = _caught_outside.set(True)
    try:
        yield
    finally:
        _caught_outside.reset(token)


def at_the_door() -> bool:
    """Return whether nobody in Python waits for errors: bad annotations then end the command at its first frame."""
    return not _caught_outside.get()


@contextmanager
def plain_errors(source: str = "") -> Iterator[None]:
    """Turn what pydantic finds wrong into one `UserError`: `source`, where in it, what was expected and found."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        parts = (source, _place(first["loc"]), _reason(first))
        raise UserError(": ".join(part for part in parts if part)) from error


def _place(location: tuple[int | str, ...]) -> str:
    """`seeds[3].pixel`: the way to an entry; pydantic's also names the kind of a seed, which is no key of the file."""
    if location[:1] == ("seeds",):
        location = (*location[:2], *location[3:])
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _reason(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return "this entry is missing"
    if error["type"] == "extra_forbidden":
        return "unknown entry"
    found = repr(error["input"])
    message = error["msg"].replace("Input should be", "expected")
    return f"{message}, found {found if len(found) <= 80 else found[:77] + '...'}"
