"""Memory that a step frees, kept for the next one.

glibc takes large arrays from the system one by one and hands them back as soon as they are freed. A field on a CPU
makes and frees some hundred of them in every step, and the system empties each page anew: a tenth of a training step
and a third of a rendered view went into that.
"""

from jacobinerf_ns.compat.c_library import c_function

LARGE = 1 << 26
"""Bytes from which on an array is the system's own as before; older versions of glibc take no more than half of it."""
KEPT = 1 << 29
"""Freed bytes at the end of the heap that are kept, at most."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, as far as the C library can be told to; asked again, it is the same.

    Returns:
        Whether it does: not on macOS, musl or Windows, which have other ways.
    """
    set_option = c_function("mallopt")
    if set_option is None or not any(set_option(_MMAP_THRESHOLD, size) for size in (LARGE, LARGE // 2)):
        return False
    return bool(set_option(_TRIM_THRESHOLD, KEPT))
