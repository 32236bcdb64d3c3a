"""Nerfacto's depths, outside of training alone: where rays meet surfaces, by `core.distances`, and expected ones."""

import math
from typing import Any

from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.model_components.renderers import DepthRenderer
from torch import Tensor

from jacobinerf_ns.core.distances import surface_distances


class ViewDepthRenderer(DepthRenderer):
    """nerfstudio's depth of views; that of training rays, which no loss asks for, is NaN."""

    def forward(
        self, weights: Float[Tensor, "*rays samples 1"], ray_samples: RaySamples, *args: Any, **kwargs: Any
    ) -> Float[Tensor, "*rays 1"]:
        """Return distances along rays in scene units."""
        if self.training:
            return weights.new_full((1,), math.nan).expand(*weights.shape[:-2], 1)
        return self.of_view(weights, ray_samples, *args, **kwargs)

    def of_view(
        self, weights: Float[Tensor, "*rays samples 1"], ray_samples: RaySamples, *args: Any, **kwargs: Any
    ) -> Float[Tensor, "*rays 1"]:
        """Return distances along the rays of a view, as nerfstudio's method has them."""
        return super().forward(weights, ray_samples, *args, **kwargs)


class SurfaceDepthRenderer(ViewDepthRenderer):
    """The distance of the surface that a ray meets."""

    def of_view(
        self, weights: Float[Tensor, "*rays samples 1"], ray_samples: RaySamples, *_: Any, **__: Any
    ) -> Float[Tensor, "*rays 1"]:
        """Return distances along rays in scene units."""
        frustums = ray_samples.frustums
        middles = (frustums.starts + frustums.ends)[..., 0] / 2
        found = surface_distances(weights[..., 0].flatten(0, -2).float(), middles.flatten(0, -2).float())
        return found.view(*weights.shape[:-2], 1)
