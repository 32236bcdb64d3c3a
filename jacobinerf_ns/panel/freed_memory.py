"""What the C library keeps of memory that was freed, given back to the system now and then.

Frames allocate and free in many threads, and glibc keeps what lies freed between what is in use: the viewer's process
would grow for as long as somebody looks around.
"""

import time

from jacobinerf_ns.compat.c_library import c_function

PAUSE_SECONDS = 10.0
"""Least time between two times; one takes 30 to 60 ms with 1.5 GB in use, and threads that allocate wait for it."""


class FreedMemory:
    """Gives freed memory back; does nothing where the C library has no way to ask for it (macOS, musl, Windows)."""

    def __init__(self) -> None:
        """Give nothing back before `PAUSE_SECONDS` have gone."""
        self._due = time.monotonic() + PAUSE_SECONDS
        self._drawn: object = None
        self._trim = c_function("malloc_trim")

    def give_back(self, drawn: object) -> None:
        """Give it back when it is time to, and something was drawn since: `drawn` is what was drawn last."""
        now = time.monotonic()
        if self._trim is None or drawn is self._drawn or now < self._due:
            return
        self._drawn, self._due = drawn, now + PAUSE_SECONDS
        self._trim(0)
