"""A feature field (DFF): what a teacher says of points in space, learnt on top of a frozen radiance field.

Letters of `jacobian.py`. It answers per sample, and is rendered with the frozen field's weights; density and colour
never change. Its last layer is linear, so it is applied to rendered hidden units instead of to every sample:
Σ_s w_s (V h_s + v) = V (Σ_s w_s h_s) + v Σ_s w_s, which makes a teacher of 384 dimensions as cheap as one of 64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor, nn

from jacobinerf_ns.core import jacobian
from jacobinerf_ns.field import JacobiNeRFField
from jacobinerf_ns.hash_grid.encoding import JitHashEncoding
from jacobinerf_ns.labels.traces import Traced

_CHUNK = 65_536
"""Points asked at a time: bounds memory where the grid runs in plain torch, with eight corners per level and point."""


@dataclass(frozen=True)
class FeatureFieldShape:
    """Size of a feature field. A teacher sees patches, so the grid is far coarser than that of colours."""

    num_levels: int = 6
    """Levels of the hash grid."""
    base_res: int = 16
    """Cells along each axis of the coarsest level; the contracted scene is 4 scene units wide."""
    max_res: int = 64
    """Cells along each axis of the finest level. Finer grids learn the teacher's noise."""
    log2_hashmap_size: int = 15
    """Entries per level, as a power of two."""
    hidden: int = 64
    """Units between grid and features."""


class FeatureField(nn.Module):
    """Teacher features at points in space, distilled from the photographs (DFF): a hash grid and a small network.

    The frozen field is only asked where points lie in its scene; it is no part of this module's parameters or state.
    """

    scale: Float[Tensor, ""]
    """Root mean square of the teacher's features: the network itself learns features of unit size."""

    def __init__(self, frozen: JacobiNeRFField, dims: int, shape: FeatureFieldShape | None = None) -> None:
        super().__init__()
        shape = shape or FeatureFieldShape()
        self._frozen = (frozen,)  # In a tuple, so that it is not registered.
        self.shape, self.dims = shape, dims
        self.encoding = JitHashEncoding(
            num_levels=shape.num_levels,
            min_res=shape.base_res,
            max_res=shape.max_res,
            log2_hashmap_size=shape.log2_hashmap_size,
        )
        self.encoding.position_gradients = False
        self.trunk = nn.Sequential(nn.Linear(self.encoding.get_out_dim(), shape.hidden), nn.ReLU())
        self.output = nn.Linear(shape.hidden, dims)
        self.register_buffer("scale", torch.ones(()))

    def rendered(self, traced: Traced) -> Float[Tensor, "rays features"]:
        """Return Σ_s w_s f(x_s), the feature of each pixel, in the teacher's space."""
        weights = jacobian.effective_weights(traced.weights, traced.background)
        return self.rendered_at(weights, unit_positions(self._frozen[0], traced.trace.ray_samples))

    def rendered_at(
        self, weights: Float[Tensor, "rays samples"], positions: Float[Tensor, "rays samples 3"]
    ) -> Float[Tensor, "rays features"]:
        """Return the same from points in 0..1 (`unit_positions`) and weights that hold the background's share."""
        return self.scale * linear_after_rendering(self.output, weights, self._hidden(positions))

    def _hidden(self, positions: Float[Tensor, "rays samples 3"]) -> Float[Tensor, "rays samples units"]:
        points = positions.reshape(-1, 3).split(_CHUNK)
        return torch.cat([self.trunk(self.encoding(part)) for part in points]).view(*positions.shape[:-1], -1)


def unit_positions(field: JacobiNeRFField, ray_samples: RaySamples) -> Float[Tensor, "rays samples 3"]:
    """Return sample positions in 0..1, contracted and scaled as the field does before its own hash grid.

    Samples outside of the scene lie in the corner (0, 0, 0); the field gives them no density.
    """
    positions = ray_samples.frustums.get_positions()
    if field.spatial_distortion is not None:
        positions = (field.spatial_distortion(positions) + 2.0) / 4.0
    else:
        positions = SceneBox.get_normalized_positions(positions, field.aabb)
    inside = ((positions > 0.0) & (positions < 1.0)).all(dim=-1, keepdim=True)
    return (positions * inside).float()


def linear_after_rendering(
    layer: nn.Linear, weights: Float[Tensor, "rays samples"], values: Float[Tensor, "rays samples units"]
) -> Float[Tensor, "rays features"]:
    """Return V (Σ_s w_s h_s) + v Σ_s w_s of a linear layer (V, v)."""
    rendered = (weights[..., None] * values).sum(dim=-2)
    return rendered @ layer.weight.T + weights.sum(dim=-1, keepdim=True) * layer.bias
