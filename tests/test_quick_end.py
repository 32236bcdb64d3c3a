"""Programs end when they are done."""

import subprocess
import sys

PROGRAM = """
import atexit, gc
from jacobinerf_ns.compat.quick_end import end_quickly

class Cycle:
    def __init__(self):
        self.me = self

    def __del__(self):
        print("looked for garbage")

{asks}
gc.disable()
Cycle()
atexit.register(print, "at the end")
"""


def printed(asks: str) -> str:
    """What a program prints that leaves garbage."""
    words = [sys.executable, "-c", PROGRAM.format(asks=asks)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_a_program_does_not_look_for_garbage_at_its_end():
    assert printed("") == "at the end\nlooked for garbage\n"
    assert printed("end_quickly()\nend_quickly()") == "at the end\n"
