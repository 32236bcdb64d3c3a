"""The little that labels ask of a trained field, so that nothing here knows a model, and chunks of rays."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn

from jacobinerf_ns.labels.traces import Traced
from jacobinerf_ns.progress import track

Picked = TypeVar("Picked", bound=Tensor | tuple[Tensor, ...])


class Tracer(Protocol):
    """A trained field that can be asked for rays."""

    @property
    def device(self) -> torch.device:
        """Where rays are traced."""
        ...

    @property
    def rays_at_once(self) -> int:
        """Rays of one chunk."""
        ...

    @property
    def weights_version(self) -> Hashable:
        """Changes whenever the weights do."""
        ...

    def trace(self, ray_bundle: RayBundle) -> Traced:
        """Query the field for rays on its device; in eval mode only."""
        ...

    @property
    def training(self) -> bool:
        """Whether it is in training mode."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch to training mode, or out of it."""
        ...


def chunks(tracer: Tracer, rays: RayBundle) -> list[RayBundle]:
    """Cut flat rays into pieces that are traced at a time, on the tracer's device."""
    size = tracer.rays_at_once
    return [rays[start : start + size].to(tracer.device) for start in range(0, len(rays), size)]


class Rows:
    """What is kept of all rays, in memory that is taken once, while they are traced chunk by chunk.

    A small tensor kept of each chunk would lie between the large ones that come and go, and glibc's heap grow around
    them: after one view of 1080 x 1920 a process held 12 GB of which it used 2.
    """

    def __init__(self, count: int) -> None:
        """`count` rays in all."""
        self._count = count
        self.columns: dict[str, Tensor] = {}
        """Of each name, what was put so far; the rest is undefined."""

    def put(self, start: int, part: Mapping[str, Tensor]) -> None:
        """Keep what is known of the rays from `start` on."""
        for name, value in part.items():
            if name not in self.columns:
                self.columns[name] = value.new_empty(self._count, *value.shape[1:])
            self.columns[name][start : start + len(value)] = value


def trace_all(
    tracer: Tracer, rays: RayBundle, pick: Callable[[Traced], Picked], description: str | None = None
) -> Picked:
    """Trace flat rays chunk by chunk, and keep of each query only what is picked.

    Args:
        tracer: in eval mode.
        rays: flat, at least one.
        pick: a tensor, or a tuple of tensors, whose rows are the rays of one query.
        description: of a progress bar; none shows no bar.

    Returns:
        What was picked, for all rays.
    """
    cut, rows, start = chunks(tracer, rays), Rows(len(rays)), 0
    part: Any = None
    for chunk in cut if description is None else track(cut, description):
        part = pick(tracer.trace(chunk))
        several = [part] if isinstance(part, Tensor) else part
        rows.put(start, {str(place): value for place, value in enumerate(several)})
        start += len(chunk)
    columns = list(rows.columns.values())
    if isinstance(part, Tensor):
        return columns[0]  # pyright: ignore[reportReturnType]
    return type(part)(*columns) if hasattr(part, "_fields") else tuple(columns)  # pyright: ignore[reportReturnType]


@contextmanager
def in_eval_mode(module: Tracer | nn.Module) -> Iterator[None]:
    """Put a field into eval mode inside the block, which traces need; afterwards the mode that was."""
    before = module.training
    module.train(False)
    try:
        yield
    finally:
        module.train(before)
