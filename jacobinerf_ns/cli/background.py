"""`jacobinerf` in the background of the viewer, ended with it: `python -m jacobinerf_ns.cli.background ARGUMENTS`."""

import os
import sys
import threading

from jacobinerf_ns.cli.main import entrypoint


def main() -> None:
    """Run `jacobinerf` with the arguments of this process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    entrypoint()


def _end_with_parent() -> None:
    """Wait until the pipe from the viewer closes, which it does however the viewer ends."""
    # Not through a buffered file: Python cannot end while a thread waits in one.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
