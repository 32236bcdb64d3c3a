"""Our hash grid against nerfstudio's torch encoding on the CPU, in turns in one process, medians.

    python benchmarks/hash_grid.py

Milliseconds for the points of a lite step. `best` is the quickest call, which a busy machine disturbs least.
"""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import tyro
from nerfstudio.field_components.encodings import HashEncoding
from rich.console import Console
from rich.table import Table
from torch import Tensor

from jacobinerf_ns.hash_grid.encoding import prepare, use_jit

GRIDS = ((8, 15), (5, 17))
"""Levels and log2 of the entries of a level: the lite field, and a proposal network."""


@dataclass
class HashGrid:
    """Measures forward, with backward to the table, and with backward to the positions too."""

    points: int = 12_288
    repeats: int = 30
    threads: tuple[int, ...] = (1, 2)

    def main(self) -> None:
        table = Table("grid", "threads", "what", "theirs", "ours", "ratio", "theirs, best", "ours, best")
        for levels, log2_size in GRIDS:
            theirs = HashEncoding(
                num_levels=levels, max_res=512, log2_hashmap_size=log2_size, hash_init_scale=1.0, implementation="torch"
            )
            ours = deepcopy(theirs)
            use_jit(ours)
            prepare(ours, "cpu")
            for threads in self.threads:
                torch.set_num_threads(threads)
                for name, call in CALLS.items():
                    row = self._compare(call, theirs, ours)
                    table.add_row(f"{levels} levels of 2^{log2_size}", str(threads), name, *row)
        Console().print(table)

    def _compare(self, call: "Call", *encodings: HashEncoding) -> list[str]:
        positions = torch.rand(self.points, 3)
        times: list[list[float]] = [[] for _ in encodings]
        for _ in range(self.repeats + 1):
            for encoding, taken in zip(encodings, times, strict=True):
                encoding.zero_grad()
                start = time.perf_counter()
                call(encoding, positions)
                taken.append(1e3 * (time.perf_counter() - start))
        theirs, ours = (statistics.median(taken[1:]) for taken in times)
        best = [f"{min(taken[1:]):.2f}" for taken in times]
        return [f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.1f}", *best]


def forward(encoding: HashEncoding, positions: Tensor) -> None:
    with torch.no_grad():
        encoding(positions)


def backward(encoding: HashEncoding, positions: Tensor) -> None:
    encoding(positions).square().sum().backward()


def backward_to_positions(encoding: HashEncoding, positions: Tensor) -> None:
    encoding(positions.detach().clone().requires_grad_()).square().sum().backward()


Call = Callable[[HashEncoding, Tensor], None]
CALLS: dict[str, Call] = {
    "forward": forward,
    "and backward": backward,
    "and backward to positions": backward_to_positions,
}

if __name__ == "__main__":
    tyro.cli(HashGrid).main()
