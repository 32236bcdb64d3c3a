"""Seeds as the field sees them, rendered once each: a further click costs one ray, however many there were before."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from jacobinerf_ns.annotations.rays import SeedRays
from jacobinerf_ns.annotations.schema import Annotations, Seed
from jacobinerf_ns.labels.tracer import Tracer, trace_all
from jacobinerf_ns.labels.traces import Traced, surface_points

SURFACE = 0.02
"""Accumulated opacity (0..1) from which on a seed's ray has hit something. Low: plain walls are thin in many fields."""
REACH = 2
"""Pixels around a seed that refined prototypes start from, in each direction."""


class SeedTrace(NamedTuple):
    """A seed's rays, rendered."""

    rays: RayBundle
    vectors: Float[Tensor, "rays dims"]
    weights: Float[Tensor, "rays"]
    """Pixels that each ray stands for."""
    points: Float[Tensor, "rays 3"]
    """What they hit, scene units."""
    hit: Bool[Tensor, "rays"]
    """Whether that is a surface."""


class SeedTraces:
    """Remembers what seeds look like, for one state of the weights and one folder of mask files."""

    def __init__(self, tracer: Tracer, seed_rays: Callable[[Annotations, Path], SeedRays]) -> None:
        """`seed_rays` turns annotations and their masks' folder into rays."""
        self._tracer, self._seed_rays = tracer, seed_rays
        self._version: Hashable = None
        self._known: dict[Seed, SeedTrace] = {}
        self._around: dict[Seed, Tensor] = {}

    def of(self, annotations: Annotations, folder: Path) -> list[SeedTrace]:
        """Every seed, in the file's order.

        Raises:
            UserError: seeds whose pixels cannot be found.
        """
        self._forget_old(folder)
        missing = tuple(seed for seed in dict.fromkeys(annotations.seeds) if seed not in self._known)
        found = dict(zip(missing, self._render(annotations, missing, folder), strict=True))
        # What is gone from the file may come back by an undo, but must not pile up.
        self._known = {seed: found.get(seed) or self._known[seed] for seed in annotations.seeds}
        return [self._known[seed] for seed in annotations.seeds]

    def around(self, seeds: Sequence[Seed]) -> list[Float[Tensor, "rays neighbours dims"]]:
        """Return the Jacobians around every ray of seeds that `of` has seen."""
        for seed in seeds:
            if seed not in self._around:
                trace = self._known[seed]
                near = rays_around(trace.rays, REACH)
                vectors = trace_all(self._tracer, near, lambda traced: traced.jacobians)
                self._around[seed] = vectors.view(len(trace.vectors), -1, trace.vectors.shape[1])
        self._around = {seed: self._around[seed] for seed in seeds}
        return [self._around[seed] for seed in seeds]

    def _forget_old(self, folder: Path) -> None:
        version = (self._tracer.weights_version, folder)
        if self._version != version:
            self._version, self._known, self._around = version, {}, {}

    def _render(self, annotations: Annotations, seeds: Sequence[Seed], folder: Path) -> list[SeedTrace]:
        if not seeds:
            return []
        rays = self._seed_rays(Annotations(labels=annotations.labels, seeds=tuple(seeds)), folder)
        vectors, points, accumulation = trace_all(self._tracer, rays.rays, _numbers)
        weights, index = rays.weights.to(vectors.device), rays.index.to(vectors.device)
        result = []
        for position in range(len(seeds)):
            mine = index == position
            own = rays.rays[mine.to(rays.rays.origins.device)]
            hit = accumulation[mine, 0] > SURFACE
            result.append(SeedTrace(own, vectors[mine], weights[mine], points[mine], hit))
        return result


def _numbers(traced: Traced) -> tuple[Tensor, Tensor, Tensor]:
    return traced.jacobians, surface_points(traced), traced.outputs["accumulation"]


def rays_around(rays: RayBundle, reach: int) -> RayBundle:
    """Return the rays of the (2·reach + 1)² pixels around each ray, itself included; also for clicks in space.

    Pixels are squares of the ray's own `pixel_area` across it, turned any way: what is around matters, not its order.
    """
    steps = torch.arange(-reach, reach + 1, device=rays.origins.device, dtype=rays.directions.dtype)
    offsets = torch.cartesian_prod(steps, steps)
    axis = torch.eye(3, device=steps.device, dtype=steps.dtype)[rays.directions.abs().argmin(-1)]
    right = torch.nn.functional.normalize(torch.cross(rays.directions, axis, dim=-1), dim=-1)
    up = torch.cross(rays.directions, right, dim=-1)
    plane = torch.stack([right, up], dim=1) * rays.pixel_area.sqrt()[..., None]
    directions = rays.directions[:, None] + offsets @ plane
    which = torch.arange(len(rays), device=steps.device).repeat_interleave(len(offsets))
    return replace(rays[which], directions=torch.nn.functional.normalize(directions.flatten(0, 1), dim=-1))
