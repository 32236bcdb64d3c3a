"""Keeps the labels that a model renders in step with the annotation file and with the weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from nerfstudio.cameras.rays import RayBundle
from scipy.spatial import KDTree
from torch import Tensor

from jacobinerf_ns.annotation_store import AnnotationStore
from jacobinerf_ns.annotations import Annotations
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.eval_mode import in_eval_mode
from jacobinerf_ns.jacobian import cosine_response
from jacobinerf_ns.label_rendering import LabelSnapshot, SurfacePool, Traced, prototype_responses, surface_points
from jacobinerf_ns.model import JacobiNeRFModel
from jacobinerf_ns.propagation import PropagationConfig, Prototypes, Seeds, label_responses, select_prototypes
from jacobinerf_ns.refinement import clearest_refinement, consistent_vectors, grow
from jacobinerf_ns.seeds import SeedRays

SURFACE = 0.02
"""Accumulated opacity (0..1) from which on a seed's ray has hit something. Low: plain walls are thin in many fields."""
POOL_RAYS = 8192
"""Random training pixels that refined prototypes are averaged over."""
REACH = 2
"""Pixels around a seed that refined prototypes start from, in each direction."""
FEW_SEEDS = 128
"""Seeds up to which each is averaged with its surroundings and refined; masks need neither."""
SHOWN_BY = ("threshold", "void_below")
"""Settings that need no new prototypes."""


class _Built(NamedTuple):
    made_of: tuple
    prototypes: Prototypes
    scale: Tensor | None
    pool: SurfacePool | None


class _Surface(NamedTuple):
    """Random training pixels, rendered."""

    version: tuple
    vectors: Tensor
    points: Tensor


class FixedAnnotations:
    """Stands in for an annotation file where its labels must not change: in a long command, and in evaluation."""

    problem = None

    def __init__(self, annotations: Annotations, folder: Path) -> None:
        """`folder` is what the mask files of seeds are relative to."""
        self._annotations, self.folder = annotations, folder

    def snapshot(self) -> tuple[int, Annotations]:
        """Always the same."""
        return 0, self._annotations


class LabelKeeper:
    """Answers with the current `LabelSnapshot`; renders seeds only when seeds, their treatment or weights changed."""

    def __init__(
        self,
        store: AnnotationStore | FixedAnnotations,
        model: JacobiNeRFModel,
        seed_rays: Callable[[Annotations, Path], SeedRays],
        random_rays: Callable[[int], RayBundle],
    ) -> None:
        """`seed_rays` turns annotations and their masks' folder into rays, `random_rays` draws training pixels."""
        self.store = store
        self.needs_surface = True
        """Refuse labels none of whose seeds hits a surface; otherwise take every seed as it is."""
        self.problem: str | None = None
        """Why the current annotations cannot be shown; the last ones that could are."""
        self._model, self._seed_rays, self._random_rays = model, seed_rays, random_rays
        self._built: _Built | None = None
        self._snapshot: LabelSnapshot | None = None
        self._surface_pixels: _Surface | None = None

    def __call__(self) -> LabelSnapshot | None:
        """Labels for a frame; None while there are none. Never raises: rendering goes on with the last good ones."""
        try:
            self._snapshot = self.current()
            self.problem = self.store.problem
        except UserError as error:
            self.problem = self.store.problem or str(error)
        return self._snapshot

    def current(self) -> LabelSnapshot | None:
        """Labels as the file has them now. Errors: `UserError` for seeds that cannot be found or hit nothing."""
        _, annotations = self.store.snapshot()
        if not annotations.labels:
            return None
        view, ids = annotations.view, [label.id for label in annotations.labels]
        built = self._build(annotations)
        return LabelSnapshot(
            labels=annotations.labels,
            prototypes=built.prototypes,
            config=view.propagation,
            scale=built.scale,
            pool=built.pool,
            selected=0 if view.selected is None else ids.index(view.selected),
            opacity=view.opacity,
            edits=tuple(edit for edit in annotations.edits if annotations.seeds_of(edit.label)),
        )

    def _build(self, annotations: Annotations) -> _Built:
        defaults = {name: getattr(PropagationConfig(), name) for name in SHOWN_BY}
        treatment = replace(annotations.view.propagation, **defaults)
        ids = tuple(label.id for label in annotations.labels)
        made_of = (annotations.seeds, ids, treatment, self._model.weights_version)
        if self._built is None or self._built.made_of != made_of:
            self._built = _Built(made_of, *self._render_seeds(annotations))
        return self._built

    @torch.no_grad()
    def _render_seeds(self, annotations: Annotations) -> tuple[Prototypes, Tensor | None, SurfacePool | None]:
        config, count = annotations.view.propagation, len(annotations.labels)
        rays = self._seed_rays(annotations, self.store.folder)
        with in_eval_mode(self._model):
            traces = [self._model.trace(chunk) for chunk in self._model.chunks(rays.rays)]
            seeds, hit = self._seeds(annotations, rays, traces)
            prototypes = select_prototypes(seeds, config)
            if config.refine > 0 and 0 < len(seeds.vectors) <= FEW_SEEDS:
                grown = select_prototypes(self._grown(seeds, rays.rays, hit), config)
                prototypes = clearest_refinement([grown, prototypes], self._surface().vectors, config.refine)
            scale = None
            if config.response == "raw" and config.decision != "paper" and len(seeds.vectors):
                scale = _own_responses(traces, seeds, hit, prototypes, config, count)
            smooths = config.smooth > 0 and config.response == "cosine" and len(prototypes.vectors) > 0
            return prototypes, scale, self._smoothing(prototypes, config, count) if smooths else None

    def _seeds(self, annotations: Annotations, rays: SeedRays, traces: list[Traced]) -> tuple[Seeds, Tensor]:
        """Seeds that hit a surface, and which of the rays those are."""
        if not traces:
            nothing = torch.zeros(0, dtype=torch.bool, device=self._model.device)
            empty = torch.zeros(0, 1, device=self._model.device)
            return Seeds(empty, nothing.long(), nothing, empty[:, 0]), nothing
        vectors = torch.cat([traced.jacobians for traced in traces])
        least = SURFACE if self.needs_surface else -1.0
        hit = torch.cat([traced.outputs["accumulation"][:, 0] > least for traced in traces])
        seeds = Seeds(vectors, *(part.to(vectors.device) for part in (rays.labels, rays.positive, rays.weights)))
        _check_surfaces(annotations, seeds, hit)
        return Seeds(*(part[hit] for part in seeds)), hit

    def _grown(self, seeds: Seeds, rays: RayBundle, hit: Tensor) -> Seeds:
        """Seeds averaged with what resembles them around them."""
        near = self._model.chunks(rays_around(rays[hit.to(rays.origins.device)], REACH))
        around = torch.cat([self._model.trace(chunk).jacobians for chunk in near])
        return seeds._replace(vectors=grow(seeds.vectors, around.view(len(seeds.vectors), -1, around.shape[1])))

    def _surface(self) -> _Surface:
        """Surface points of random training pixels, their Jacobians consistent between views; once per weights."""
        version = self._model.weights_version
        if self._surface_pixels is None or self._surface_pixels.version != version:
            traces = [self._model.trace(chunk) for chunk in self._model.chunks(self._random_rays(POOL_RAYS))]
            points = torch.cat([surface_points(traced) for traced in traces])
            vectors = torch.cat([traced.jacobians for traced in traces])
            self._surface_pixels = _Surface(version, consistent_vectors(vectors, points), points)
        return self._surface_pixels

    def _smoothing(self, prototypes: Prototypes, config: PropagationConfig, count: int) -> SurfacePool:
        surface = self._surface()
        similarity = cosine_response(surface.vectors, prototypes.vectors)
        found = label_responses(similarity, prototypes, count, config.neighbours, config.temperature)
        return SurfacePool(KDTree(surface.points.cpu().numpy()), found)


def rays_around(rays: RayBundle, reach: int) -> RayBundle:
    """The rays of the (2·reach + 1)² pixels around each ray and of itself, seed by seed; also for clicks in space.

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


def _check_surfaces(annotations: Annotations, seeds: Seeds, hit: Tensor) -> None:
    for position, label in enumerate(annotations.labels):
        mine = (seeds.labels == position) & seeds.positive
        if bool(mine.any()) and not bool(hit[mine].any()):
            raise UserError(
                f"no seed of label {label.name!r} hits a surface ({int(mine.sum())} tried, all in the background or "
                "sky): click on the object"
            )


def _own_responses(
    traces: list[Traced], seeds: Seeds, hit: Tensor, prototypes: Prototypes, config: PropagationConfig, count: int
) -> Tensor:
    """How strongly each label's seeds answer to its own prototypes: what a raw response is measured against."""
    rows = torch.cat([prototype_responses(traced, prototypes.vectors, config) for traced in traces])[hit]
    scale = rows.new_ones(count)
    for position in seeds.labels[seeds.positive].unique().tolist():
        mine = (seeds.labels == position) & seeds.positive
        own = (prototypes.labels == position) & prototypes.positive
        scale[position] = rows[mine][:, own].amax(-1).mean()
    return scale
