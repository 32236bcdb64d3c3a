"""What a training step takes, with shaping and without, and what it took at another commit, side by side in one run.

    python benchmarks/step_time.py                             # jacobinerf-lite, 512 and 1024 rays, 1 and 2 threads
    git worktree add ../before COMMIT
    python benchmarks/step_time.py --baseline ../before        # and before ÷ after

Steps are the trainer's own: batch, lookup of the teacher's features, autocast and gradient scaler where it has them,
optimisers, schedulers, callbacks and share of proposal updates, on a small room and random features. Each tree
has a process for each number of threads. They take turns, one at a time, so that a machine whose speed drifts slows all
of them alike; medians over turns.
"""

import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jacobinerf_ns.files.atomic import atomic_write

HERE = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).resolve().parent / "step_worker.py"
WARM_UP = 2
KINDS = ("off", "on")


@dataclass
class StepTime:
    """Times training steps with and without shaping, here and in a baseline."""

    method: Literal["jacobinerf-lite", "jacobinerf"] = "jacobinerf-lite"
    """Whose field is trained."""
    baseline: Path | None = None
    """Another checkout of this project, timed beside this one."""
    rays: tuple[int, ...] = (512, 1024)
    """Rays per batch."""
    threads: tuple[int, ...] = (1, 2)
    """Threads that torch and compiled kernels may use."""
    turns: int = 9
    """Turns of six steps for each combination, after two that are not timed."""
    output: Path = Path("benchmarks/results/step_time.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Times everything, prints a table and writes the JSON file."""
        trees = {"after": HERE}
        if self.baseline is not None:
            trees["before"] = self.baseline.resolve()
        with ExitStack() as stack:
            workers = {
                (name, threads): stack.enter_context(Turns(tree, self.method, threads))
                for threads in self.threads
                for name, tree in trees.items()
            }
            device = {worker.device for worker in workers.values()}.pop()
            seconds = self._take_turns(workers)
        rows = [self._row(seconds, threads, rays) for threads in self.threads for rays in self.rays]
        commits = {name: commit(tree) for name, tree in trees.items()}
        numbers = {"method": self.method, "device": device, "turns": self.turns, "commits": commits, "rows": rows}
        with atomic_write(self.output) as temporary:
            temporary.write_text(json.dumps(numbers, indent=2) + "\n")
        Console().print(table(f"{self.method}, {device}, medians of {self.turns} turns", rows))

    def _take_turns(self, workers: dict[tuple[str, int], "Turns"]) -> dict[tuple[str, int, int, str], float]:
        """Median seconds of a step by tree, threads, rays and kind."""
        found: dict[tuple[str, int, int, str], list[float]] = {}
        for turn in track(range(WARM_UP + self.turns), description="turns"):
            for rays in self.rays:
                for kind in KINDS:
                    for (name, threads), worker in workers.items():
                        elapsed = worker.turn(rays, kind)
                        if turn >= WARM_UP:  # the first ones allocate
                            found.setdefault((name, threads, rays, kind), []).append(elapsed)
        return {key: statistics.median(values) for key, values in found.items()}

    def _row(self, seconds: dict[tuple[str, int, int, str], float], threads: int, rays: int) -> dict[str, Any]:
        after = {kind: seconds["after", threads, rays, kind] for kind in KINDS}
        row: dict[str, Any] = {"threads": threads, "rays": rays, "seconds": after}
        row["on_over_off"] = after["on"] / after["off"]
        if self.baseline is not None:
            before = {kind: seconds["before", threads, rays, kind] for kind in KINDS}
            row["seconds_before"] = before
            row["on_over_off_before"] = before["on"] / before["off"]
            row["before_over_after"] = {kind: before[kind] / after[kind] for kind in KINDS}
        return row


class Turns:
    """A worker process of one tree; ended with the block, whatever happens in it."""

    def __init__(self, tree: Path, method: str, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
        command = [sys.executable, str(WORKER), str(tree), method, str(threads)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
        )
        self.device = ""

    def __enter__(self) -> "Turns":
        self.device = self._answer()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def turn(self, rays: int, kind: str) -> float:
        """Mean seconds of a step over one turn of this worker."""
        assert self._process.stdin is not None
        print(rays, kind, file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended; what it said is above")
        return line.strip()


def commit(tree: Path) -> str:
    """The commit of a checkout, with a + where files differ from it."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """The rows as people read them."""
    found = Table(title=title)
    for name in ("threads", "rays", "off (ms)", "on (ms)", "on ÷ off", "before ÷ after: off", "on"):
        found.add_column(name, justify="right")
    for row in rows:
        times = [f"{1e3 * row['seconds'][kind]:.1f}" for kind in KINDS]
        faster = [f"{row['before_over_after'][kind]:.2f}" if "before_over_after" in row else "" for kind in KINDS]
        found.add_row(str(row["threads"]), str(row["rays"]), *times, f"{row['on_over_off']:.3f}", *faster)
    return found


if __name__ == "__main__":
    tyro.cli(StepTime).main()
