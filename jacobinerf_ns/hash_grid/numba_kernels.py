"""The hash grid's kernels for the CPU, compiled by numba; letters and meaning as in `grid`.

Threads. Work is shared out over torch's own threads: a kernel is a C function that takes parts off a counter until none
are left, and torch's OpenMP library calls it on its team, which waits for work while it spins. Threads of our own would
have to share a core with one that spins, and two were no faster than one. Where there is no such library (macOS,
Windows), and in a forked child, whose team stayed behind with its parent, threads of our own call it after all. numba's
threading layers each forbid something that happens here: `workqueue` aborts the process when the viewer's thread and
the training thread meet, GNU OpenMP ends forked children, TBB is rarely installed.
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

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic
from torch import Tensor

from jacobinerf_ns.compat.c_library import c_function
from jacobinerf_ns.hash_grid.grid import PRIMES

_ONE = np.float32(1)
_PRIME_Y, _PRIME_Z = np.uint32(PRIMES[1]), np.uint32(PRIMES[2])
_BLOCK = 512
"""Points that pass through all levels together: their outputs stay in the L1 cache, one level's table in the L2."""
_PART = 2 * _BLOCK
"""Points in one part of the work: the entity branch is asked at two thousand, and two threads should share them."""
_PARENT = os.getpid()
_made: list[Any] = []
"""Kernels that were asked for, one of each kind and number of features."""


def _cached(decorate: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Keep what a decorator of numba compiles, in `NUMBA_CACHE_DIR`, beside this file, or in home.

    Where none of these can be written to, numba refuses to cache at all; then every process compiles for itself.
    """

    def compile(function: Callable[..., Any]) -> Any:
        try:
            return decorate(cache=True)(function)
        except RuntimeError:
            return decorate()(function)

    return compile


_compile = _cached(njit)
_c_compile = _cached(partial(cfunc, types.void(types.CPointer(types.voidptr))))


def forward(positions: Tensor, table: Tensor, scalings: Tensor) -> Tensor:
    """Features of points [points, levels · features]; parts are points."""
    levels, features = len(scalings), table.shape[1]
    output = positions.new_empty(len(positions), levels, features)
    _share(_forward_parts((0,) * features), _parts(positions), positions, scalings, _plain(table), output)
    return output.flatten(1)


def table_gradient(positions: Tensor, scalings: Tensor, gradient: Tensor, entries: int) -> Tensor:
    """Gradient by the table [entries, features], float32; parts are levels."""
    levels = len(scalings)
    total = gradient.new_zeros(entries, gradient.shape[1] // levels)
    _share(_table_gradient_parts((0,) * total.shape[1]), levels, positions, scalings, total, gradient)
    return total


def position_gradient(positions: Tensor, table: Tensor, scalings: Tensor, gradient: Tensor) -> Tensor:
    """Gradient by the positions [points, 3]; parts are points."""
    total = torch.zeros_like(positions)
    kernel = _position_gradient_parts((0,) * table.shape[1])
    _share(kernel, _parts(positions), positions, scalings, _plain(table), gradient, total)
    return total


def compiled() -> int:
    """How many kernels this process has compiled itself, not read from disk."""
    return sum(kernel.fresh for kernel in _made)


def _plain(table: Tensor) -> Tensor:
    return table.detach().float()


def _parts(positions: Tensor) -> int:
    return -(-len(positions) // _PART)


def _share(kernel: Any, parts: int, positions: Tensor, scalings: Tensor, table: Tensor, *others: Tensor) -> None:
    """Call the kernel on as many threads as torch uses; each takes parts until none are left."""
    levels = len(scalings)
    counts = torch.tensor([0, parts, len(positions), levels, len(table) // levels], device=positions.device)
    arrays = counts, positions, scalings, table, *others
    addresses = torch.tensor([array.data_ptr() for array in arrays], device=positions.device)
    threads, team = torch.get_num_threads(), _torchs_team()
    if min(threads, parts) <= 1:
        kernel.call(addresses.data_ptr())
    elif team is not None and os.getpid() == _PARENT:
        # All of it, whatever there is to do: a team that shrinks ends threads, which torch would start again.
        team(kernel.address, addresses.data_ptr(), threads, 0)
    else:
        _on_own_threads(partial(kernel.call, addresses.data_ptr()), min(threads, parts))


@cache
def _torchs_team() -> Callable[..., Any] | None:
    """Return what calls a C function on all threads of the OpenMP library that torch has loaded; None without one."""
    team: Any = c_function("GOMP_parallel")
    if team is not None:
        team.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        team.restype = None
    return team


def _on_own_threads(work: Callable[[], Any], workers: int) -> None:
    """Call what takes parts on threads of this process; the calling one is one of them.

    Helpers that have not begun when the work is done are called off, so a call never waits for another call's work.
    """
    helpers = []
    try:
        for _ in range(workers - 1):
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


class _Kernel:
    """A compiled kernel: a C function of the addresses that `_share` lists."""

    def __init__(self, function: Callable[..., Any]) -> None:
        compiled = _c_compile(function)
        self.owner = compiled  # of the machine code
        self.fresh = compiled.cache_hits == 0
        self.address: int = compiled.address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
        _made.append(self)


@cast(Any, intrinsic)
def _next(_, counter):
    """Return the number at an address, and add one to it: each thread gets another number."""

    def code(__, builder, ___, arguments):
        number = ir.IntType(64)
        address = builder.bitcast(arguments[0], number.as_pointer())
        return builder.atomic_rmw("add", address, ir.Constant(number, 1), "monotonic")

    return types.int64(types.voidptr), code


@_compile
def _counts(addresses):
    """Parts, points, levels, entries of a level."""
    counts = carray(addresses[0], 5, np.int64)
    return counts[1], counts[2], counts[3], counts[4]


@_compile
def _floats(address, shape):
    return carray(address, shape, np.float32)


@cache
def _forward_parts(lanes: tuple[int, ...]) -> _Kernel:
    def kernel(addresses):
        parts, points, levels, size = _counts(addresses)
        positions, scalings = _floats(addresses[1], (points, 3)), _floats(addresses[2], (levels,))
        table = _floats(addresses[3], (levels, size, len(lanes)))
        output = _floats(addresses[4], (points, levels, len(lanes)))
        part = _next(addresses[0])
        while part < parts:
            start = part * _PART
            _forward(positions, scalings, table, output, start, min(start + _PART, points), lanes)
            part = _next(addresses[0])

    return _Kernel(kernel)


@cache
def _table_gradient_parts(lanes: tuple[int, ...]) -> _Kernel:
    def kernel(addresses):
        parts, points, levels, size = _counts(addresses)
        positions, scalings = _floats(addresses[1], (points, 3)), _floats(addresses[2], (levels,))
        total = _floats(addresses[3], (levels, size, len(lanes)))
        gradient = _floats(addresses[4], (points, levels, len(lanes)))
        part = _next(addresses[0])
        while part < parts:
            # Fine levels, whose tables are read all over, first: who ends last ends with a quick one.
            _table_gradient(positions, scalings, gradient, total, levels - 1 - part, lanes)
            part = _next(addresses[0])

    return _Kernel(kernel)


@cache
def _position_gradient_parts(lanes: tuple[int, ...]) -> _Kernel:
    def kernel(addresses):
        parts, points, levels, size = _counts(addresses)
        positions, scalings = _floats(addresses[1], (points, 3)), _floats(addresses[2], (levels,))
        table = _floats(addresses[3], (levels, size, len(lanes)))
        gradient = _floats(addresses[4], (points, levels, len(lanes)))
        total = _floats(addresses[5], (points, 3))
        part = _next(addresses[0])
        while part < parts:
            start = part * _PART
            stop = min(start + _PART, points)
            _position_gradient(positions, scalings, table, gradient, total, start, stop, lanes)
            part = _next(addresses[0])

    return _Kernel(kernel)


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
