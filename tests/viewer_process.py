"""`ns-viewer` and `ns-train --vis viewer` as processes of their own, with a log and a door for questions."""

import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
DRIVER = Path(__file__).with_name("viewer_driver.py")
START_TIMEOUT = 240.0
"""Seconds; nerfstudio takes 10 to 20 before it does anything, more on a busy machine."""


def clean_environment() -> dict[str, str]:
    """The user's environment, without anything that helps: no torch, Hugging Face or nerfstudio variable."""
    helpers = ("TORCH", "HF_", "NERFSTUDIO", "OMP_", "PYTHON")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(helpers)}
    found = {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return {**found, "PYTHONUNBUFFERED": "1"}  # A log that is read while the program runs.


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ViewerProcess:
    """One viewer. `with ViewerProcess.view(config, folder) as viewer:` stops it whatever happens.

    Args:
        command: program and arguments, `ns-viewer` or `ns-train`; port and image format are added.
        folder: the process runs here, and its log `viewer_<port>.log` lies here.
        port: taken over from a viewer that was stopped, so that its open pages find the new one.
        after: arguments after the viewer's own; `ns-train` has its dataparser and teacher there.
    """

    def __init__(
        self, command: Sequence[object], folder: Path, port: int | None = None, after: Sequence[object] = ()
    ) -> None:
        self.port = port or free_port()
        own = ["--viewer.websocket-port", self.port, "--viewer.image-format", "png"]
        words = [str(word) for word in [sys.executable, DRIVER, *command, *own, *after]]
        self.log_path = folder / f"viewer_{self.port}_{time.monotonic_ns()}.log"
        self._log = self.log_path.open("wb")
        self._answers: queue.Queue[str] = queue.Queue()
        started = time.monotonic()
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self.seconds_to_start = time.monotonic() - started

    @classmethod
    def view(cls, config: Path, folder: Path, port: int | None = None) -> "ViewerProcess":
        """`ns-viewer` of a trained run."""
        return cls(["ns-viewer", "--load-config", config], folder, port)

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://localhost:{self.port}"

    def ask(self, do: str, timeout: float = 120.0, **arguments: Any) -> Any:
        """Runs a function of `viewer_driver.Commands` in the viewer's process and returns its answer."""
        assert self.process.stdin is not None
        assert self.process.poll() is None, f"the viewer stopped:\n{self.log()[-3000:]}"
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self._next_answer(do, timeout))
        assert "ok" in answer, answer.get("error")
        return answer["ok"]

    def _next_answer(self, do: str, timeout: float) -> str:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                return self._answers.get(timeout=0.5)
            except queue.Empty:
                assert self.process.poll() is None, f"the viewer stopped:\n{self.log()[-3000:]}"
        raise AssertionError(f"no answer to {do!r} within {timeout:g} s:\n{self.log()[-3000:]}")

    def log(self) -> str:
        """All that the process has printed so far."""
        return self.log_path.read_text(errors="replace")

    def tracebacks(self) -> list[str]:
        """The tracebacks in the log: viser and nerfstudio print what is raised in their threads, and go on."""
        pattern = r"Traceback \(most recent call last\).*?\n(?=\S)[^\n]*"
        return [found.group() for found in re.finditer(pattern, self.log(), re.DOTALL)]

    def stop(self, seconds: float = 20.0) -> None:
        """SIGTERM, and SIGKILL for what is still there after some seconds."""
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close()

    def kill(self) -> None:
        """SIGKILL: what a crash or a power cut does."""
        self.process.kill()
        self.process.wait()
        self._close()

    def __enter__(self) -> "ViewerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def _close(self) -> None:
        self._log.close()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the viewer stopped:\n{self.log()[-3000:]}"
            if self.ask("ready", timeout=START_TIMEOUT):
                return
            time.sleep(0.2)
        raise AssertionError(f"the viewer was never ready:\n{self.log()[-3000:]}")
