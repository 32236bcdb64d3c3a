"""Functions of the C library that not every system has."""

import ctypes
from collections.abc import Callable


def c_function(name: str) -> Callable[..., int] | None:
    """Return a function of the C library; None where it has none of that name (macOS, musl, Windows)."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # Windows has no library without a name
        return None
