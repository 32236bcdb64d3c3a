"""What processes that train together share: rows of tensors with their gradients, and turns at the disk.

Letters: n [rows] rows of one process, m [all_rows] = n · processes.

Gradient. Every process computes the same loss L from the same m rows, and differentiates it by its own rows alone: that
is the whole of ∂L/∂(its rows). DistributedDataParallel then takes the mean over processes of what each adds to the
weights' gradient, where the gradient of L is the sum. So the backward of `gather_rows` multiplies by the number of
processes, and needs no communication of its own.

Without a process group, which is how most people train, everything here is the identity and calls nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long processes wait for one that extracts features; the usual half hour is for steps of training."""


def world_size() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among those that train together, from 0; process 0 is the one that writes files."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(rows: Float[Tensor, "rows dims"]) -> Float[Tensor, "all_rows dims"]:
    """Rows of all processes in the order of their ranks, the same tensor everywhere; differentiable by our own rows.

    Every process has to bring equally many. The gradient is right for a loss that every process computes alike from
    what is gathered, with gradients averaged over processes afterwards (DistributedDataParallel; equation above).
    """
    return rows if world_size() == 1 else _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].chunk(world_size())[rank()] * world_size()


def gather_objects(value: T) -> list[T]:
    """Return what each process brings (pickled, on the CPU), in the order of ranks. All have to call."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    with _host_group() as group:
        dist.all_gather_object(found, value, group=group)
    return found


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block on rank 0 first, then on all others at once, which find on disk what it made.

    If it fails on rank 0, the others are not let in: the launcher ends them.
    """
    if world_size() == 1:
        yield
        return
    with _host_group() as group:
        if rank() > 0:
            dist.barrier(group)
        yield
        if rank() == 0:
            dist.barrier(group)


@contextmanager
def _host_group() -> Iterator[dist.ProcessGroup]:
    """All processes, connected through the host: objects need no GPU, and waiting outlasts the time limit of GPUs."""
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    yield group
    dist.destroy_process_group(group)
