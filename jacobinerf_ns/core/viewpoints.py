"""Where to look at a scene from first: the place of a photo that shows much of what all others look at.

Letters, in the scene's frame; cameras look along their negative z:
    o  [views 3]   where the cameras stand
    d  [views 3]   where they look, unit vectors
    s              how far the cameras stand from their mean: the only measure of the scene that there is
    p  [points 3]  what they look at: points at s / 2, s and 2 s on all axes
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

REACH = (0.5, 1.0, 2.0)
"""Distances of p from their camera, in s."""
NEARLY_MOST = 0.9
"""A view that shows this share of the most points that one shows is as good; then the most central one is taken."""
MOST_VIEWS = 200
"""Views that are compared, evenly spread: p of all views against all views is as much as their number squared."""


class Viewpoint(NamedTuple):
    """A photo to begin with."""

    view: int
    """Its position."""
    distance: float
    """How far in front of it lies what it looks at, scene units."""


def good_viewpoint(poses: Float[Tensor, "views 3 4"], tangents: Float[Tensor, "views 2"]) -> Viewpoint:
    """Return the most central of the photos that show the most of what all photos look at.

    Args:
        poses: camera to scene.
        tangents: of half of the horizontal and of the vertical field of view.
    """
    chosen = torch.linspace(0, len(poses) - 1, min(len(poses), MOST_VIEWS)).round().long()
    origins, rotations = poses[chosen, :, 3], poses[chosen, :, :3]
    centre = origins.mean(0)
    spread = (origins - centre).norm(dim=-1).mean()
    spread = spread if spread > 0 else torch.ones_like(spread)
    axes = -rotations[..., 2]
    looked_at = torch.cat([origins + reach * spread * axes for reach in REACH])
    own = torch.einsum("vji,vpj->vpi", rotations, looked_at - origins[:, None])
    depth = -own[..., 2]
    seen = (depth > 0) & (own[..., :2].abs() <= depth[..., None] * tangents[chosen, None]).all(-1)
    counts = seen.sum(-1)
    off_centre = (origins - centre).norm(dim=-1).masked_fill(counts < NEARLY_MOST * counts.max(), torch.inf)
    best = int(off_centre.argmin())
    return Viewpoint(int(chosen[best]), float(depth[best][seen[best]].median()))
