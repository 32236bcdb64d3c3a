"""Memory that was freed goes back to the system while the viewer runs."""

import ctypes
import subprocess
import sys
from typing import Any

import pytest

from jacobinerf_ns.panel import freed_memory
from jacobinerf_ns.panel.freed_memory import FreedMemory

HOLES = """
import ctypes, sys
from pathlib import Path
from jacobinerf_ns.panel import freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

freed_memory.PAUSE_SECONDS = 0.0
libc, size = ctypes.CDLL(None), 65_536
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
freed = freed_memory.FreedMemory()
held = [libc.malloc(size) for _ in range(2_000)]
for place in held:
    ctypes.memset(place, 1, size)
for place in held[:-1]:  # the last one keeps what lies below it
    libc.free(place)
before = resident()
freed.give_back(object())
print(before - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library, with ways of its own")
def test_what_lies_freed_between_what_is_in_use_is_given_back():
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100_000_000


class Library:
    """A C library that counts, at a time that the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.asked = 0.0, 0
        monkeypatch.setattr(ctypes, "CDLL", lambda _: self)
        monkeypatch.setattr(freed_memory.time, "monotonic", lambda: self.now)

    def malloc_trim(self, kept: int) -> None:
        assert kept == 0
        self.asked += 1


def test_only_after_something_was_drawn_and_not_all_the_time(monkeypatch: pytest.MonkeyPatch):
    library = Library(monkeypatch)
    freed, frames = FreedMemory(), [object() for _ in range(3)]
    freed.give_back(frames[0])
    assert library.asked == 0  # a viewer that has just started has something else to do
    library.now = freed_memory.PAUSE_SECONDS
    freed.give_back(frames[0])
    freed.give_back(frames[1])
    assert library.asked == 1
    library.now *= 2
    freed.give_back(frames[1])
    assert library.asked == 2
    library.now *= 2
    freed.give_back(frames[1])
    assert library.asked == 2  # the view rests
    freed.give_back(frames[2])
    assert library.asked == 3


@pytest.mark.parametrize("library", [object(), OSError("no such library"), TypeError("a name is needed")])
def test_other_c_libraries_are_left_alone(library: Any, monkeypatch: pytest.MonkeyPatch):
    def load(_: None) -> Any:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(freed_memory, "PAUSE_SECONDS", 0.0)
    FreedMemory().give_back(object())
