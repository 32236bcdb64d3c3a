"""A command of ours in the background of the viewer: started, watched, cancelled, and ended with the viewer."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import torch

from jacobinerf_ns.files.outside import read_json

COMMAND = "jacobinerf_ns.cli.background"
"""Started by its name: the panel knows no command."""
GPU_BYTES = 4_000_000_000
"""Free memory of the GPU from which on a command may work there too: field, kernels and one piece of a view."""
LAST_LINES = 4
"""Lines of a failed command that are looked through for its error."""


class Job:
    """One command in a process of its own: it has its own weights and memory, and cannot disturb training.

    Where so little of the GPU is free that the command or training would run out of it, it works on the CPU.
    """

    def __init__(self, arguments: list[str], manifest: Path | None = None) -> None:
        """Start `jacobinerf ARGUMENTS`.

        Args:
            arguments: of the command line.
            manifest: file in which the command lists, under `files`, all files that it will have made; from it and
                what lies beside it progress is read.
        """
        self.manifest, self.cancelled, self.on_cpu = manifest, False, _gpu_is_full()
        if manifest is not None:
            # That of an earlier job would be taken for this one's; the files themselves are the command's business.
            self._earlier = _stamp(manifest)
        self._process = subprocess.Popen(
            [sys.executable, "-m", COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Libraries print what they like: a reader that stops at a byte would let the command wait for it for ever.
            errors="replace",
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""} if self.on_cpu else None,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        """Whether the command is at work."""
        return self._process.poll() is None

    @property
    def progress(self) -> float | None:
        """Share (0..1) of the files that are there; None while that is not known."""
        if self.manifest is None or _stamp(self.manifest) == self._earlier:
            return None
        try:
            names = read_json(self.manifest, "the list of a command's files")["files"]
            return sum((self.manifest.parent / name).exists() for name in names) / max(len(names), 1)
        except (OSError, ValueError, LookupError, TypeError):  # somebody else's, or one that is not known yet
            return None

    @property
    def error(self) -> str | None:
        """The command's error line, when it has ended with one."""
        if self.running or self._process.returncode == 0 or self.cancelled:
            return None
        self._reader.join(timeout=5)
        said = [line.strip() for line in self._lines if line.strip()][-LAST_LINES:]
        named = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        if not named and self._process.returncode < 0:
            return _killed(-self._process.returncode)
        return (named or said or [f"it ended with exit code {self._process.returncode}"])[-1]

    def cancel(self) -> None:
        """End the command; files that it has finished stay."""
        self.cancelled = True
        self._process.terminate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines = [*self._lines[-LAST_LINES:], line]


def _killed(number: int) -> str:
    """Say that a signal ended the command: it had no time to say so itself."""
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    why = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
    return f"it was ended by signal {name}{why}; what it had written stays"


def _gpu_is_full() -> bool:
    """Whether there is a GPU and too little of it is free, also after what nobody uses of our share is given back."""
    if not torch.cuda.is_initialized() or torch.cuda.mem_get_info()[0] >= GPU_BYTES:
        return False
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0] < GPU_BYTES


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
