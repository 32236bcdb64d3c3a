"""Everything that only a GPU can show, measured by one command in less than nine minutes.

    python benchmarks/gpu_day.py           # writes numbers.json, numbers.md and contact_sheet.png
    python benchmarks/gpu_day.py --toy     # everything at toy size, also on a CPU: whether it works, not how fast it is

Needs no network and no file but the package: it renders its own capture. What a part has found is written at once; the
same command does the parts that are missing or failed. Step times come first, the slowest grids last.
"""

import gc
import json
import platform
import resource
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from gpu_parts import Day, Numbers
from rich.console import Console
from tables import Table, markdown

from jacobinerf_ns.errors import UserError, one_line_exit
from jacobinerf_ns.files.atomic import atomic_write

NEEDS_RUN = ("click", "labels", "propagation")
"""Parts that look at what `training` has trained."""
CONSOLE = Console()


@dataclass
class GpuDay:
    """Measures on a GPU what has not been measured yet."""

    output: Path = Path("outputs/gpu_day")
    """Folder of the numbers, the contact sheet, the captures and the trained run."""
    toy: bool = False
    """Toy size, also without a GPU."""
    train_seconds: float = 200.0
    """How long `jacobinerf` is trained, seconds."""
    minutes: float = 8.0
    """After these no further part is begun; the same command does the rest."""

    def main(self) -> None:
        """Measures, and writes the numbers after each part.

        Raises:
            UserError: there is no GPU.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and not self.toy:
            raise UserError("no GPU that torch can use was found: run this on one, or give --toy to see that it works")
        start, folder = time.monotonic(), self.output.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        day = Day(folder, device, self.toy, self.train_seconds)
        numbers = self._earlier(folder / "numbers.json", device)
        for name, part in day.parts().items():
            day.seconds_per_step = _step_seconds(numbers["parts"])
            if _is_done(numbers["parts"], name, day):
                continue
            if time.monotonic() - start > 60 * self.minutes:
                CONSOLE.print(f"time is up before {name!r}: the same command goes on from here")
                break
            numbers["parts"][name] = measured(name, part, device)
            write(folder, numbers)
        CONSOLE.print(f"{folder / 'numbers.md'}, {time.monotonic() - start:.0f} s", soft_wrap=True)

    def _earlier(self, file: Path, device: str) -> Numbers:
        """What an earlier call has found on this machine; nothing where it was another, or of another size."""
        here = {**environment(device), "toy": self.toy}
        if file.exists():
            found = json.loads(file.read_text())
            if found["environment"] == here:
                return found
        return {"environment": here, "parts": {}}


def measured(name: str, part: Callable[[], Numbers], device: str) -> Numbers:
    """What a part finds, its seconds and its peak of memory; or its error, after which others may still succeed."""
    CONSOLE.rule(name)
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    try:
        found = part()
    except Exception as error:  # whatever a part fails of, the others are worth having
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    return {**found, "seconds_in_all": time.monotonic() - start, **peak(device)}


def peak(device: str) -> Numbers:
    """Gigabytes that were held at most: of the GPU since the part began, without one of this process so far."""
    if device == "cpu":
        return {"peak_resident_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
    return {
        "peak_allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
        "peak_reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }


def environment(device: str) -> Numbers:
    """What the numbers were measured on."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty=+"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    name = "CPU" if device == "cpu" else torch.cuda.get_device_name()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version(), "commit": commit}


def write(folder: Path, numbers: Numbers) -> None:
    """Write the numbers, for programs and for people."""
    with atomic_write(folder / "numbers.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=2) + "\n")
    with atomic_write(folder / "numbers.md") as temporary:
        temporary.write_text(page(numbers))


def page(numbers: Numbers) -> str:
    """All numbers as Markdown, a table a part."""
    facts = ", ".join(f"{name} {value}" for name, value in numbers["environment"].items())
    tables = [
        markdown(Table(name, ("what", "found"), [(what, _text(value)) for what, value in flat(part)]))
        for name, part in numbers["parts"].items()
    ]
    return "\n".join(["# A day on a GPU", "", facts, "", *tables])


def flat(found: Numbers, before: str = "") -> list[tuple[str, Any]]:
    """Names and values of a tree of numbers, in one list."""
    rows = []
    for name, value in found.items():
        rows += flat(value, f"{before}{name}, ") if isinstance(value, dict) else [(f"{before}{name}", value)]
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value).replace("|", "/")


def _is_done(parts: Numbers, name: str, day: Day) -> bool:
    """Whether nothing is left to do for a part; the run itself has to be there while others look at it."""
    if name not in parts or "error" in parts[name]:
        return False
    wanted = name == "training" and any(not _is_done(parts, other, day) for other in NEEDS_RUN)
    return not wanted or day.config_file.exists()


def _step_seconds(parts: Numbers) -> float | None:
    """What a step of training took with the fastest grids."""
    found = [part["on_ms"] / 1e3 for part in parts.values() if "on_ms" in part]
    return min(found, default=None)


if __name__ == "__main__":
    with one_line_exit():
        tyro.cli(GpuDay).main()
