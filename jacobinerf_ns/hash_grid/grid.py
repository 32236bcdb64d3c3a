"""A multi-resolution hash grid: features of points in space, read from one table of learnt vectors.

Letters (fixed here, used by the kernels too; jaxtyping axis names in brackets):
    p  [points]    points in space, normally inside the unit cube
    l  [levels]    grids from coarse to fine; level l has scalings[l] cells along each axis
    f  [features]  features per level
    e  [entries]   rows of the table: the levels' parts one after another, l·size + hash
    size           entries of one level, a power of two
    o  offset of a point inside its cell, per axis, in [0, 1)

A point is scaled, its cell's eight corners are hashed, their rows of the table are read and mixed trilinearly, x first,
then y, then z. This is what nerfstudio's torch `HashEncoding` computes, in the same order: the values are the same
numbers. Upper corners are the coordinates rounded *up*, so a coordinate exactly on a grid plane has one corner instead
of two along that axis, and no gradient along it.

The arithmetic is done by compiled kernels: numba's on the CPU (`numba_kernels`), Triton's elsewhere
(`triton_kernels`). They are imported when they are first needed, because importing numba takes a second that
`ns-train --help` does not have. Where they cannot be loaded, and for dtypes that they do not know (float64, bfloat16),
`encode_reference` does it in plain torch.
"""

import time
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

PRIMES = (1, 2654435761, 805459861)
"""The hash of a corner is the exclusive or of its coordinates times these (Instant-NGP, Müller et al. 2022)."""

_KERNELS = {"cpu": "jacobinerf_ns.hash_grid.numba_kernels"}
_OTHER_KERNELS = "jacobinerf_ns.hash_grid.triton_kernels"
_TABLES = (torch.float32, torch.float16)
"""What the kernels read; sums are float32 in either case."""


@runtime_checkable
class Kernels(Protocol):
    """What a module of kernels offers. Tensors are contiguous, positions, scalings and gradients float32."""

    def forward(self, positions: Tensor, table: Tensor, scalings: Tensor) -> Tensor: ...

    def table_gradient(self, positions: Tensor, scalings: Tensor, gradient: Tensor, entries: int) -> Tensor: ...

    def position_gradient(self, positions: Tensor, table: Tensor, scalings: Tensor, gradient: Tensor) -> Tensor: ...

    def compiled(self) -> int:
        """How many kernels this process has compiled itself, not read from disk."""
        ...


class Readiness(NamedTuple):
    """The kernels for a kind of device, None for plain torch, and what a user should be told about it, if anything."""

    kernels: Kernels | None
    message: str | None


def encode(
    positions: Float[Tensor, "points 3"],
    table: Float[Tensor, "entries features"],
    scalings: Float[Tensor, " levels"],
) -> Float[Tensor, "points levels_times_features"]:
    """Features of points, level after level; differentiable once, by the table and by the positions.

    float32 for tables and positions of any lower precision, also under autocast: halves would lose the offset inside a
    fine cell. Gradients that nobody asks for are not computed.
    """
    _level_size(table, scalings)
    kernels = readiness(table.device.type, table.shape[1]).kernels if table.dtype in _TABLES else None
    if kernels is None or positions.dtype == torch.float64:
        return encode_reference(positions, table, scalings)
    return cast(Tensor, _Encode.apply(positions.float().contiguous(), table.contiguous(), scalings, kernels))


def encode_reference(
    positions: Float[Tensor, "points 3"],
    table: Float[Tensor, "entries features"],
    scalings: Float[Tensor, " levels"],
) -> Float[Tensor, "points levels_times_features"]:
    """Return the same in plain torch, for any dtype and any number of derivatives; ten times slower."""
    size = _level_size(table, scalings)
    scaled = positions[:, None, :] * scalings[:, None]
    offsets = scaled - scaled.floor()
    primes = torch.tensor(PRIMES, device=table.device)
    starts = torch.arange(len(scalings), device=table.device) * size
    low, high = (rounded.detach().long() * primes for rounded in (scaled.floor(), scaled.ceil()))

    def corner(*sides: Tensor) -> Tensor:
        return table[(sides[0][..., 0] ^ sides[1][..., 1] ^ sides[2][..., 2]) % size + starts]

    def mix(axis: int, lower: Tensor, upper: Tensor) -> Tensor:
        offset = offsets[..., axis, None]
        return upper * offset + lower * (1 - offset)

    def edge(y: Tensor, z: Tensor) -> Tensor:
        return mix(0, corner(low, y, z), corner(high, y, z))

    def face(z: Tensor) -> Tensor:
        return mix(1, edge(low, z), edge(high, z))

    return mix(2, face(low), face(high)).flatten(1)


@cache
def readiness(device_type: str, features: int) -> Readiness:
    """Load and try the kernels for a kind of device, once per process; call it before step 0.

    All three kernels run on two points here, for two reasons. Compiling takes seconds, once per machine, and should not
    look like a slow first step. And what is missing shows only now: Triton, for one, imports without a C compiler and
    fails at its first launch. Whatever goes wrong, there is a slower way that works, hence the wide `except`.
    """
    name = _KERNELS.get(device_type, _OTHER_KERNELS)
    start = time.perf_counter()
    try:
        kernels = cast(Kernels, import_module(name))
        before = kernels.compiled()
        _try(kernels, torch.device(device_type), features)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        return Readiness(None, f"The hash grid runs in plain torch, which is slow: {reason}.")
    if kernels.compiled() == before:
        return Readiness(kernels, None)
    return Readiness(kernels, f"Compiled the hash grid's kernels, once: {time.perf_counter() - start:.0f} s.")


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, scalings: Tensor, kernels: Kernels) -> Tensor:
        ctx.kernels, ctx.entries, ctx.table_dtype = kernels, table.shape[0], table.dtype
        # The table's own gradient does not depend on its values: keeping it would forbid changing it in place.
        ctx.save_for_backward(positions, scalings, table if ctx.needs_input_grad[0] else None)
        return kernels.forward(positions, table, scalings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        positions, scalings, table = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_positions = of_table = None
        if ctx.needs_input_grad[0]:
            of_positions = ctx.kernels.position_gradient(positions, table, scalings, gradient)
        if ctx.needs_input_grad[1]:
            of_table = ctx.kernels.table_gradient(positions, scalings, gradient, ctx.entries).to(ctx.table_dtype)
        return of_positions, of_table, None, None


def _level_size(table: Tensor, scalings: Tensor) -> int:
    """Entries of one level. The kernels keep the low bits of a hash: that is its remainder for powers of two alone."""
    size, rest = divmod(table.shape[0], len(scalings))
    if rest or size & (size - 1) or not size:
        raise ValueError(f"{table.shape[0]} table entries are not {len(scalings)} levels of 2^n entries each.")
    return size


def _try(kernels: Kernels, device: torch.device, features: int) -> None:
    positions = torch.full((2, 3), 0.5, device=device)
    scalings = torch.ones(1, device=device)
    table = torch.zeros(2, features, device=device)
    gradient = kernels.forward(positions, table, scalings)
    kernels.table_gradient(positions, scalings, gradient, len(table))
    kernels.position_gradient(positions, table, scalings, gradient)
