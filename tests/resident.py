"""Memory that a call takes at its height, measured from outside of it."""

import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path

PAGE = 4096
_PAUSE = 0.0005
"""Seconds between two looks."""


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def peak_bytes(call: Callable[[], object]) -> int:
    """Return by how much this process grows while a call runs; what Python and libc had in reserve is given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, highest, done = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], resident_bytes())
            done.wait(_PAUSE)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(0, highest[0] - before)
