"""How far along a ray the surface is that it meets.

Letters: w [rays samples] rendering weights, t [rays samples] distances of samples along their rays, m [rays] the t at
    which Σ w reaches 1/2 (the median), τ half the width of a window around it, as a share.

    distance = Σ w t / Σ w   over the samples with |ln(t / m)| < ln(1 + τ)
A mean over all samples, nerfacto's `expected_depth`, is drawn off the surface by what a ray grazes before it and by
what shines through behind it; the median is one sample's place. Within the window there is one surface.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.core.jacobian import NORM_EPS

WINDOW = 0.1
"""τ; 0.2 and 0.4 are worse (docs/measurements.md)."""


def surface_distances(
    weights: Float[Tensor, "rays samples"], distances: Float[Tensor, "rays samples"]
) -> Float[Tensor, "rays"]:
    """Return where each ray meets a surface, in the unit of `distances`; the last of them where it meets none.

    Args:
        weights: of the samples, as colours are rendered with them.
        distances: of the samples from the origin of the ray, rising.
    """
    half = weights.new_full((len(weights), 1), 0.5)
    place = torch.searchsorted(weights.cumsum(dim=-1), half).clamp(max=weights.shape[-1] - 1)
    median = distances.gather(-1, place)
    within = ((distances / median).log().abs() < math.log1p(WINDOW)) * weights
    # Offsets from the median round to nothing where it is alone, and are nothing where no sample has weight.
    offset = (within * (distances - median)).sum(-1) / within.sum(-1).clamp(min=NORM_EPS)
    return median[..., 0] + offset
