"""Nerfacto's depths, outside of training alone: where rays meet surfaces, by `core.distances`, and expected ones."""

import math
from typing import Any

from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.model_components.renderers import DepthRenderer
from torch import Tensor

from jacobinerf_ns.core.distances import surface_distances


class SurfaceDepthRenderer(DepthRenderer):
    """The distance of the surface that a ray meets."""

    def __init__(self) -> None:
        super().__init__(method="median")

    def forward(
        self, weights: Float[Tensor, "*rays samples 1"], ray_samples: RaySamples, *_: Any, **__: Any
    ) -> Float[Tensor, "*rays 1"]:
        """Return distances along rays in scene units; of training rays, whose depth no loss asks for, NaN."""
        if self.training:
            return _not_rendered(weights)
        frustums = ray_samples.frustums
        middles = (frustums.starts + frustums.ends)[..., 0] / 2
        found = surface_distances(weights[..., 0].flatten(0, -2).float(), middles.flatten(0, -2).float())
        return found.view(*weights.shape[:-2], 1)


class ExpectedDepthRenderer(DepthRenderer):
    """Nerfacto's expected depth."""

    def __init__(self) -> None:
        super().__init__(method="expected")

    def forward(
        self, weights: Float[Tensor, "*rays samples 1"], ray_samples: RaySamples, *args: Any, **kwargs: Any
    ) -> Float[Tensor, "*rays 1"]:
        """Return distances along rays in scene units; of training rays NaN."""
        return _not_rendered(weights) if self.training else super().forward(weights, ray_samples, *args, **kwargs)


def _not_rendered(weights: Float[Tensor, "*rays samples 1"]) -> Float[Tensor, "*rays 1"]:
    return weights.new_full((1,), math.nan).expand(*weights.shape[:-2], 1)
