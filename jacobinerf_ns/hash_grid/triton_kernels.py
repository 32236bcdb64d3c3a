"""The hash grid's kernels for GPUs, in Triton, which comes with torch; letters and meaning as in `grid`.

One program takes a block of points and one level, or for the gradient by positions all levels in turn, whose sum it
keeps. The table's gradient is added up atomically in float32, so its last bits depend on the order in which programs
run, as they do with tiny-cuda-nn.

Corners are hashed in uint32: for tables of 2^n entries the low bits are those of nerfstudio's int64. Places in tables
and outputs are counted in int64: 16 levels of 2^24 entries are more floats than an int32 counts.
"""

# pyright: reportGeneralTypeIssues=false
# Triton types a kernel's functions as if nothing might call them; other kernels do.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jacobinerf_ns.hash_grid.grid import PRIMES

_BLOCK = 256
_PRIME_Y, _PRIME_Z = tl.constexpr(PRIMES[1]), tl.constexpr(PRIMES[2])


def forward(positions: Tensor, table: Tensor, scalings: Tensor) -> Tensor:
    """Features of points [points, levels · features], float32."""
    points, levels, features = len(positions), len(scalings), table.shape[1]
    output = torch.empty(points, levels * features, device=positions.device)
    shape = points, levels, table.shape[0] // levels, features
    _launch(_forward, (points, levels), positions, table, scalings, output, *shape)
    return output


def table_gradient(positions: Tensor, scalings: Tensor, gradient: Tensor, entries: int) -> Tensor:
    """Gradient by the table [entries, features], float32."""
    points, levels = len(positions), len(scalings)
    features = gradient.shape[1] // levels
    total = torch.zeros(entries, features, device=positions.device)
    shape = points, levels, entries // levels, features
    _launch(_table_gradient, (points, levels), positions, scalings, gradient, total, *shape)
    return total


def position_gradient(positions: Tensor, table: Tensor, scalings: Tensor, gradient: Tensor) -> Tensor:
    """Gradient by the positions [points, 3]."""
    points, levels, features = len(positions), len(scalings), table.shape[1]
    total = torch.empty_like(positions)
    shape = points, levels, table.shape[0] // levels, features
    _launch(_position_gradient, (points, 1), positions, table, scalings, gradient, total, *shape)
    return total


def compiled() -> int:
    """Triton does not say what it compiles; it takes about a second a kernel, once, and nothing is said."""
    return 0


def _launch(kernel: Any, extent: tuple[int, int], positions: Tensor, *inputs: Tensor | int) -> None:
    """Run a kernel over points and levels, on the positions' device: Triton launches on the current one."""
    points, levels = extent
    if points:  # a grid without programs cannot be launched
        with torch.cuda.device_of(positions):
            kernel[(triton.cdiv(points, _BLOCK), levels)](positions, *inputs, _BLOCK)


@triton.jit
def _axis(positions, rows, inside, axis: tl.constexpr, scaling):
    """Lower and upper corner along one axis, and the offset between them; negative coordinates wrap as int32 does."""
    scaled = tl.load(positions + rows * 3 + axis, mask=inside, other=0.0) * scaling
    floor = tl.floor(scaled)
    offset = scaled - floor
    low = floor.to(tl.int32).to(tl.uint32, bitcast=True)
    return low, low + (offset > 0).to(tl.uint32), offset


@triton.jit
def _cell(positions, rows, inside, scaling, start, size: tl.constexpr, features: tl.constexpr):
    """Where the rows of a cell's corners begin in the table: four pairs along x (y and z low, y high, z high, both)."""
    x0, x1, x = _axis(positions, rows, inside, 0, scaling)
    y0, y1, y = _axis(positions, rows, inside, 1, scaling)
    z0, z1, z = _axis(positions, rows, inside, 2, scaling)
    y0, y1 = y0 * _PRIME_Y, y1 * _PRIME_Y
    z0, z1 = z0 * _PRIME_Z, z1 * _PRIME_Z
    c0, c1 = _pair(x0, x1, y0 ^ z0, start, size, features)
    c2, c3 = _pair(x0, x1, y1 ^ z0, start, size, features)
    c4, c5 = _pair(x0, x1, y0 ^ z1, start, size, features)
    c6, c7 = _pair(x0, x1, y1 ^ z1, start, size, features)
    return c0, c1, c2, c3, c4, c5, c6, c7, x, y, z


@triton.jit
def _pair(x0, x1, yz, start, size: tl.constexpr, features: tl.constexpr):
    lower = ((x0 ^ yz) & (size - 1)).to(tl.int64)
    upper = ((x1 ^ yz) & (size - 1)).to(tl.int64)
    return (start + lower) * features, (start + upper) * features


@triton.jit
def _read(table, places, inside):
    return tl.load(table + places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _forward(
    positions,
    table,
    scalings,
    output,
    points,
    levels: tl.constexpr,
    size: tl.constexpr,
    features: tl.constexpr,
    block: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    level = tl.program_id(1).to(tl.int64)
    scaling = tl.load(scalings + level)
    inside = rows < points
    c0, c1, c2, c3, c4, c5, c6, c7, x, y, z = _cell(positions, rows, inside, scaling, level * size, size, features)
    u, v, w = 1.0 - x, 1.0 - y, 1.0 - z
    for f in tl.static_range(features):
        a = _read(table, c1 + f, inside) * x + _read(table, c0 + f, inside) * u
        b = _read(table, c3 + f, inside) * x + _read(table, c2 + f, inside) * u
        c = _read(table, c5 + f, inside) * x + _read(table, c4 + f, inside) * u
        d = _read(table, c7 + f, inside) * x + _read(table, c6 + f, inside) * u
        tl.store(
            output + (rows * levels + level) * features + f, (c * v + d * y) * z + (a * v + b * y) * w, mask=inside
        )


@triton.jit
def _table_gradient(
    positions,
    scalings,
    gradient,
    total,
    points,
    levels: tl.constexpr,
    size: tl.constexpr,
    features: tl.constexpr,
    block: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    level = tl.program_id(1).to(tl.int64)
    scaling = tl.load(scalings + level)
    inside = rows < points
    c0, c1, c2, c3, c4, c5, c6, c7, x, y, z = _cell(positions, rows, inside, scaling, level * size, size, features)
    u, v, w = 1.0 - x, 1.0 - y, 1.0 - z
    for f in tl.static_range(features):
        share = tl.load(gradient + (rows * levels + level) * features + f, mask=inside, other=0.0)
        tl.atomic_add(total + c0 + f, u * v * w * share, mask=inside, sem="relaxed")
        tl.atomic_add(total + c1 + f, x * v * w * share, mask=inside, sem="relaxed")
        tl.atomic_add(total + c2 + f, u * y * w * share, mask=inside, sem="relaxed")
        tl.atomic_add(total + c3 + f, x * y * w * share, mask=inside, sem="relaxed")
        tl.atomic_add(total + c4 + f, u * v * z * share, mask=inside, sem="relaxed")
        tl.atomic_add(total + c5 + f, x * v * z * share, mask=inside, sem="relaxed")
        tl.atomic_add(total + c6 + f, u * y * z * share, mask=inside, sem="relaxed")
        tl.atomic_add(total + c7 + f, x * y * z * share, mask=inside, sem="relaxed")


@triton.jit
def _position_gradient(
    positions,
    table,
    scalings,
    gradient,
    total,
    points,
    levels: tl.constexpr,
    size: tl.constexpr,
    features: tl.constexpr,
    block: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = rows < points
    by_x = tl.zeros([block], tl.float32)
    by_y = tl.zeros([block], tl.float32)
    by_z = tl.zeros([block], tl.float32)
    start = tl.zeros([block], tl.int64)
    for level in range(levels):
        scaling = tl.load(scalings + level)
        c0, c1, c2, c3, c4, c5, c6, c7, x, y, z = _cell(positions, rows, inside, scaling, start, size, features)
        u, v, w = 1.0 - x, 1.0 - y, 1.0 - z
        for f in tl.static_range(features):
            share = tl.load(gradient + (rows * levels + level) * features + f, mask=inside, other=0.0) * scaling
            r0, r1 = _read(table, c0 + f, inside), _read(table, c1 + f, inside)
            r2, r3 = _read(table, c2 + f, inside), _read(table, c3 + f, inside)
            r4, r5 = _read(table, c4 + f, inside), _read(table, c5 + f, inside)
            r6, r7 = _read(table, c6 + f, inside), _read(table, c7 + f, inside)
            a, b, c, d = r0 * u + r1 * x, r2 * u + r3 * x, r4 * u + r5 * x, r6 * u + r7 * x
            by_x += share * (((r1 - r0) * v + (r3 - r2) * y) * w + ((r5 - r4) * v + (r7 - r6) * y) * z)
            by_y += share * ((b - a) * w + (d - c) * z)
            by_z += share * ((c * v + d * y) - (a * v + b * y))
        start += size
    tl.store(total + rows * 3, by_x, mask=inside)
    tl.store(total + rows * 3 + 1, by_y, mask=inside)
    tl.store(total + rows * 3 + 2, by_z, mask=inside)
