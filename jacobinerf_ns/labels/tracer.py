"""The little that labels ask of a trained field, so that nothing here knows a model, and chunks of rays."""

from collections.abc import Callable, Hashable, Iterator
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
    cut = chunks(tracer, rays)
    parts = [pick(tracer.trace(chunk)) for chunk in (cut if description is None else track(cut, description))]
    first: Any = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)  # pyright: ignore[reportArgumentType, reportCallIssue, reportReturnType]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]  # pyright: ignore[reportArgumentType]
    return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)  # pyright: ignore


@contextmanager
def in_eval_mode(module: Tracer | nn.Module) -> Iterator[None]:
    """Put a field into eval mode inside the block, which traces need; afterwards the mode that was."""
    before = module.training
    module.train(False)
    try:
        yield
    finally:
        module.train(before)
