"""What one field query leaves behind, and the part of it that is kept of whole views.

Letters of `jacobian.py`.
"""

from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from jacobinerf_ns.core import jacobian
from jacobinerf_ns.core.jacobian import Background
from jacobinerf_ns.core.refinement import alike_shares
from jacobinerf_ns.field import FieldTrace

NEAR_POINTS = 8
"""Surface points that stand for the surroundings of a pixel."""


_PLACES_AT_ONCE = 1 << 14
"""Places whose distances to all points are taken at a time: half a gigabyte."""


class Traced(NamedTuple):
    """One field query, and what its samples were."""

    outputs: dict[str, Tensor]
    """The model's own outputs, flat over rays."""
    trace: FieldTrace
    weights: Float[Tensor, "rays samples"]
    """Rendering weights w, float32."""
    jacobians: Float[Tensor, "rays dims"]
    """Over the shaped layers."""
    logits: Float[Tensor, "rays samples channels"]
    """Pre-sigmoid colours z, float32."""
    background: Background


class Piece:
    """Rays as they were rendered once: all that labels are answered from, in vectors that are kept with ease.

    Only exact and per-sample raw responses and edits need the samples themselves, which take many times the memory.
    """

    def __init__(self, traced: Traced) -> None:
        self.outputs = traced.outputs
        self.samples: Traced | None = traced
        # Each with what it was found for: two tabs may show a view at once, of other labels.
        self._near: tuple[KDTree, Tensor] | None = None
        self._shares: tuple[Tensor, Tensor] | None = None

    @cached_property
    def lengths(self) -> Float[Tensor, "rays 1"]:
        """‖J‖."""
        return self._traced.jacobians.norm(dim=-1, keepdim=True)

    @cached_property
    def jacobians(self) -> Float[Tensor, "rays dims"]:
        """J/‖J‖ over the shaped layers."""
        return F.normalize(self._traced.jacobians, dim=-1, eps=jacobian.NORM_EPS)

    @cached_property
    def means(self) -> Float[Tensor, "rays dims"]:
        """Mean unit Jacobians of the samples over the RGB layer, from which resonance in 3D is taken."""
        traced = self._traced
        activations = traced.trace.activations.float()
        return jacobian.mean_direction(traced.weights, traced.logits, activations, traced.background).flatten(1)

    @cached_property
    def points(self) -> Float[Tensor, "rays 3"]:
        """Where the rays hit, scene units."""
        return surface_points(self._traced)

    def light(self) -> "Piece":
        """Return the same without its samples."""
        for part in (self.lengths, self.jacobians, self.means, self.points):
            assert part is not None
        return self._with(None)

    def compact(self) -> "Piece":
        """Return the same without the inputs of its samples, which labels never ask for."""
        samples = self.samples
        return self._with(None if samples is None else samples._replace(trace=replace(samples.trace, inputs=None)))

    def _with(self, samples: Traced | None) -> "Piece":
        other = copy(self)
        other.samples = samples
        return other

    def nearest(self, tree: KDTree) -> Int[Tensor, "rays neighbours"]:
        """Return the `NEAR_POINTS` nearest points of a tree; found once, since they do not depend on labels."""
        known = self._near
        if known is None or known[0] is not tree:
            known = self._near = (tree, nearest_points(tree, self.points))
        return known[1]

    def neighbours(
        self, tree: KDTree, vectors: Float[Tensor, "points dims"]
    ) -> tuple[Int[Tensor, "rays neighbours"], Float[Tensor, "rays neighbours"]]:
        """Return the nearest points of a tree and their `alike_shares`, found once too."""
        near, known = self.nearest(tree), self._shares
        if known is None or known[0] is not near:
            known = self._shares = (near, alike_shares(self.jacobians, vectors[near]))
        return known

    @property
    def nbytes(self) -> int:
        """Memory that the piece keeps alive."""
        own = [*self.outputs.values(), self.lengths, self.jacobians, self.means, self.points]
        if self.samples is not None:
            trace = self.samples.trace
            own += [self.samples.weights, self.samples.logits, self.samples.jacobians, trace.density, trace.colours]
            # Of the samples' places, directions and origins are one per ray, expanded: only their ends take room.
            own += [trace.activations, trace.ray_samples.frustums.starts, trace.ray_samples.frustums.ends]
        return sum(tensor.nbytes for tensor in own if isinstance(tensor, Tensor))

    @property
    def _traced(self) -> Traced:
        assert self.samples is not None, "the samples were dropped"
        return self.samples


def nearest_points(tree: KDTree, points: Float[Tensor, "*places 3"]) -> Int[Tensor, "*places neighbours"]:
    """Return the `NEAR_POINTS` points of a tree (or all, where it has fewer) nearest to each place.

    Rays that miss a crop box have no place; they resonate with nothing, and get any points.
    """
    finite = points.detach().nan_to_num(0.0, 0.0, 0.0)
    if points.device.type != "cpu":
        return _nearest_of_all(torch.from_numpy(tree.data).to(finite), finite, min(NEAR_POINTS, tree.n))
    count = np.arange(1, min(NEAR_POINTS, tree.n) + 1)
    _, found = tree.query(finite.numpy(), k=count, workers=-1)  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(found)


def _nearest_of_all(
    known: Float[Tensor, "points 3"], places: Float[Tensor, "*places 3"], count: int
) -> Int[Tensor, "*places neighbours"]:
    """Do the same by all distances: a GPU has them sooner than a CPU its tree, and the host need not wait."""
    flat = places.reshape(-1, 3)
    parts = [
        torch.cdist(part, known, compute_mode="donot_use_mm_for_euclid_dist").topk(count, largest=False).indices
        for part in flat.split(_PLACES_AT_ONCE)
    ]
    return torch.cat(parts).view(*places.shape[:-1], count)


def surface_points(traced: Traced) -> Float[Tensor, "rays 3"]:
    """Where rays meet surfaces (`core.distances`), in scene units."""
    frustums = traced.trace.ray_samples.frustums
    return frustums.origins[:, 0] + frustums.directions[:, 0] * traced.outputs["depth"]
