"""Nerfacto's depth outside of training: where rays meet surfaces, by `core.distances`."""

from typing import Any

from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.model_components.renderers import DepthRenderer
from torch import Tensor

from jacobinerf_ns.core.distances import surface_distances


class SurfaceDepthRenderer(DepthRenderer):
    """Nerfacto's median depth, and outside of training the distance of the surface that a ray meets."""

    def __init__(self) -> None:
        super().__init__(method="median")

    def forward(
        self, weights: Float[Tensor, "*rays samples 1"], ray_samples: RaySamples, *args: Any, **kwargs: Any
    ) -> Float[Tensor, "*rays 1"]:
        """Return distances along rays in scene units. Nobody looks at those of training rays: they are cheap."""
        if self.training:
            return super().forward(weights, ray_samples, *args, **kwargs)
        frustums = ray_samples.frustums
        middles = (frustums.starts + frustums.ends)[..., 0] / 2
        found = surface_distances(weights[..., 0].flatten(0, -2).float(), middles.flatten(0, -2).float())
        return found.view(*weights.shape[:-2], 1)
