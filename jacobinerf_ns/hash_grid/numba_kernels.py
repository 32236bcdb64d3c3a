"""The hash grid's kernels for the CPU, compiled by numba; letters and meaning as in `grid`.

Threads. Work is shared out over threads of our own instead of numba's `prange`: the kernels release the interpreter's
lock and each call gets a part. numba's threading layers each forbid something that happens here: `workqueue` aborts the
process when the viewer's thread and the training thread meet, GNU OpenMP ends forked children, TBB is rarely installed.
As many threads work as torch itself uses, so that single-threaded jobs side by side stay single-threaded.

Determinism. A part is some points, or for the table's gradient a level: no two parts write to the same place, and each
adds in the order of the points. The result is the same to the last bit with any number of threads.

Precision. No `fastmath`: multiplications and additions as written, so values equal torch's to the last bit; allowing
fused ones was no faster. float16 tables are converted to float32 for a call: CPUs load halves slowly, one by one.

Two passes over a block of points: where corners are is the same arithmetic for all points, which the compiler does for
sixteen at a time; fetching them is waiting for memory, and in a loop that does little else many fetches wait together.

`lanes` is a tuple with one element for each feature: its length is part of its type, so the compiler knows it and
unrolls the loops over features.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from jacobinerf_ns.hash_grid.grid import PRIMES

_ONE = np.float32(1)
_PRIME_Y, _PRIME_Z = np.uint32(PRIMES[1]), np.uint32(PRIMES[2])
_BLOCK = 512
"""Points that pass through all levels together: their outputs stay in the L1 cache, one level's table in the L2."""
_PART = 4 * _BLOCK
"""Points in one part of the work; much smaller ones are not worth waking a thread for."""


def _compile(function: Callable[..., Any]) -> Any:
    """Compiles when first called, or reads what was compiled before: `NUMBA_CACHE_DIR`, beside this file, or in home.

    Where none of these can be written to, numba refuses to cache at all; then every process compiles for itself.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


def forward(positions: Tensor, table: Tensor, scalings: Tensor) -> Tensor:
    """Features of points [points, levels · features]; parts are points."""
    levels, features = len(scalings), table.shape[1]
    output = torch.empty(len(positions), levels, features)
    arrays = positions.numpy(), scalings.numpy(), _by_level(table, levels), output.numpy()
    _share(_forward, [(*arrays, *part, (0,) * features) for part in _parts(len(positions))])
    return output.flatten(1)


def table_gradient(positions: Tensor, scalings: Tensor, gradient: Tensor, entries: int) -> Tensor:
    """Gradient by the table [entries, features], float32; parts are levels."""
    levels = len(scalings)
    features = gradient.shape[1] // levels
    total = torch.zeros(entries, features)
    arrays = positions.numpy(), scalings.numpy(), gradient.view(-1, levels, features).numpy(), _by_level(total, levels)
    _share(_table_gradient, [(*arrays, level, (0,) * features) for level in range(levels)])
    return total


def position_gradient(positions: Tensor, table: Tensor, scalings: Tensor, gradient: Tensor) -> Tensor:
    """Gradient by the positions [points, 3]; parts are points."""
    levels, features = len(scalings), table.shape[1]
    total = torch.zeros_like(positions)
    arrays = positions.numpy(), scalings.numpy(), _by_level(table, levels), gradient.view(-1, levels, features).numpy()
    parts = _parts(len(positions))
    _share(_position_gradient, [(*arrays, total.numpy(), *part, (0,) * features) for part in parts])
    return total


def compiled() -> int:
    """How many kernels this process has compiled itself, not read from disk."""
    kernels = _forward, _table_gradient, _position_gradient
    return sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels)


def _by_level(table: Tensor, levels: int) -> np.ndarray:
    return table.detach().float().view(levels, -1, table.shape[1]).numpy()


def _parts(points: int) -> list[tuple[int, int]]:
    return [(start, min(start + _PART, points)) for start in range(0, points, _PART)]


def _share(kernel: Callable[..., None], parts: Iterable[tuple[Any, ...]]) -> None:
    """Call the kernel with every part, on as many threads as torch uses; the calling thread is one of them.

    Helpers that have not begun when the work is done are called off, so a call never waits for another call's work.
    """
    queue = deque(parts)

    def work() -> None:
        while True:
            try:
                part = queue.popleft()
            except IndexError:
                return
            kernel(*part)

    helpers = []
    try:
        for _ in range(min(torch.get_num_threads(), len(queue)) - 1):
            helpers.append(_threads(os.getpid()).submit(work))
    except RuntimeError:
        pass  # the interpreter is shutting down and starts no threads any more: a viewer's last frame
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads are a process's own: a forked child has none of its parent's, hence the argument."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="hash-grid")


@_compile
def _axis(position, scaling):
    """Lower and upper corner along one axis, and the offset between them; negative coordinates wrap as int32 does."""
    scaled = position * scaling
    floor = np.floor(scaled)
    offset = scaled - floor
    low = np.uint32(np.int32(floor))
    return low, np.uint32(low + np.uint32(offset > 0)), offset


@_compile
def _cells(places, count, scaling, size, corners, offsets):
    """Fill in the eight entries of each point's cell, x changing fastest and z slowest, and its three offsets."""
    mask = np.uint32(size - 1)
    for i in range(count):
        x0, x1, x = _axis(places[0, i], scaling)
        y0, y1, y = _axis(places[1, i], scaling)
        z0, z1, z = _axis(places[2, i], scaling)
        y0, y1 = np.uint32(y0 * _PRIME_Y), np.uint32(y1 * _PRIME_Y)
        z0, z1 = np.uint32(z0 * _PRIME_Z), np.uint32(z1 * _PRIME_Z)
        near, near_up, far, far_up = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
        corners[0, i], corners[1, i] = (x0 ^ near) & mask, (x1 ^ near) & mask
        corners[2, i], corners[3, i] = (x0 ^ near_up) & mask, (x1 ^ near_up) & mask
        corners[4, i], corners[5, i] = (x0 ^ far) & mask, (x1 ^ far) & mask
        corners[6, i], corners[7, i] = (x0 ^ far_up) & mask, (x1 ^ far_up) & mask
        offsets[0, i], offsets[1, i], offsets[2, i] = x, y, z


@_compile
def _scratch():
    """Places of a block's points by axis, their cells' corners, and offsets in them."""
    return np.empty((3, _BLOCK), np.float32), np.empty((8, _BLOCK), np.uint32), np.empty((3, _BLOCK), np.float32)


@_compile
def _take(positions, start, count, places):
    """Copy a block's places, each axis in one piece: what the compiler wants to see before it takes sixteen at once."""
    for i in range(count):
        for axis in range(3):
            places[axis, i] = positions[start + i, axis]


@_compile
def _cell(corners, offsets, i):
    """Return one point's entries and offsets."""
    lower = corners[0, i], corners[1, i], corners[2, i], corners[3, i]
    upper = corners[4, i], corners[5, i], corners[6, i], corners[7, i]
    return lower + upper, offsets[0, i], offsets[1, i], offsets[2, i]


@_compile
def _forward(positions, scalings, table, output, start, stop, lanes):
    places, corners, offsets = _scratch()
    for block in range(start, stop, _BLOCK):
        count = min(_BLOCK, stop - block)
        _take(positions, block, count, places)
        for level in range(len(scalings)):
            rows = table[level]
            _cells(places, count, scalings[level], len(rows), corners, offsets)
            for i in range(count):
                (c0, c1, c2, c3, c4, c5, c6, c7), x, y, z = _cell(corners, offsets, i)
                u, v, w = _ONE - x, _ONE - y, _ONE - z
                for f in range(len(lanes)):
                    near = (rows[c1, f] * x + rows[c0, f] * u) * v + (rows[c3, f] * x + rows[c2, f] * u) * y
                    far = (rows[c5, f] * x + rows[c4, f] * u) * v + (rows[c7, f] * x + rows[c6, f] * u) * y
                    output[block + i, level, f] = far * z + near * w


@_compile
def _table_gradient(positions, scalings, gradient, total, level, lanes):
    rows, scaling = total[level], scalings[level]
    places, corners, offsets = _scratch()
    for block in range(0, len(positions), _BLOCK):
        count = min(_BLOCK, len(positions) - block)
        _take(positions, block, count, places)
        _cells(places, count, scaling, len(rows), corners, offsets)
        for i in range(count):
            (c0, c1, c2, c3, c4, c5, c6, c7), x, y, z = _cell(corners, offsets, i)
            u, v, w = _ONE - x, _ONE - y, _ONE - z
            vw, yw, vz, yz = v * w, y * w, v * z, y * z
            for f in range(len(lanes)):
                share = gradient[block + i, level, f]
                rows[c0, f] += u * vw * share
                rows[c1, f] += x * vw * share
                rows[c2, f] += u * yw * share
                rows[c3, f] += x * yw * share
                rows[c4, f] += u * vz * share
                rows[c5, f] += x * vz * share
                rows[c6, f] += u * yz * share
                rows[c7, f] += x * yz * share


@_compile
def _position_gradient(positions, scalings, table, gradient, total, start, stop, lanes):
    places, corners, offsets = _scratch()
    for block in range(start, stop, _BLOCK):
        count = min(_BLOCK, stop - block)
        _take(positions, block, count, places)
        for level in range(len(scalings)):
            rows, scaling = table[level], scalings[level]
            _cells(places, count, scaling, len(rows), corners, offsets)
            for i in range(count):
                p = block + i
                (c0, c1, c2, c3, c4, c5, c6, c7), x, y, z = _cell(corners, offsets, i)
                u, v, w = _ONE - x, _ONE - y, _ONE - z
                for f in range(len(lanes)):
                    share = gradient[p, level, f] * scaling
                    a, b = rows[c0, f] * u + rows[c1, f] * x, rows[c2, f] * u + rows[c3, f] * x
                    c, d = rows[c4, f] * u + rows[c5, f] * x, rows[c6, f] * u + rows[c7, f] * x
                    near = (rows[c1, f] - rows[c0, f]) * v + (rows[c3, f] - rows[c2, f]) * y
                    far = (rows[c5, f] - rows[c4, f]) * v + (rows[c7, f] - rows[c6, f]) * y
                    total[p, 0] += share * (near * w + far * z)
                    total[p, 1] += share * ((b - a) * w + (d - c) * z)
                    total[p, 2] += share * ((c * v + d * y) - (a * v + b * y))
