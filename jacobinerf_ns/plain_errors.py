"""What pydantic finds wrong with a model, in one line that says where it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from jacobinerf_ns.errors import UserError


@contextmanager
def plain_errors(source: str = "") -> Iterator[None]:
    """Turns what pydantic finds wrong into one `UserError`: `source`, where in it, what was expected and found."""
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
