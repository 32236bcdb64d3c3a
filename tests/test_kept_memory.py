"""A process that keeps what it frees asks the system for no page twice, and other C libraries are left alone."""

import ctypes
import subprocess
import sys

import pytest

from jacobinerf_ns.compat import kept_memory

ALLOCATING = """
import resource, sys
import torch
from jacobinerf_ns.compat.kept_memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory() and keep_freed_memory()
def step() -> None:
    arrays = [torch.ones(10_000_000) for _ in range(3)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that 20 steps take. Arrays of 40 MB are the system's own, unless the library is told otherwise."""
    done = subprocess.run([sys.executable, "-c", ALLOCATING, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library, with ways of its own")
def test_steps_use_the_pages_of_the_steps_before() -> None:
    """Pages are of 4 KB or of 2 MB, as the system likes."""
    assert 4 * faults("kept") < faults("as it is")


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_where_nothing_can_be_said_nothing_is_done(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, musl and Windows."""

    def load(_: object) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert not kept_memory.keep_freed_memory()


def test_an_older_glibc_is_told_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses more than 32 MB."""
    told: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(name: int, value: int) -> int:
            told.append((name, value))
            return int(name != -3 or value <= 1 << 25)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library)
    assert kept_memory.keep_freed_memory()
    assert told == [(-3, 1 << 26), (-3, 1 << 25), (-1, kept_memory.KEPT)]
