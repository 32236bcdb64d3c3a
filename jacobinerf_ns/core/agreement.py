"""Depth that views agree on: each pixel's point is moved along its ray to where other views see the surface.

Letters: o [3] a camera's place, r [pixels 3] unit directions of its pixels, d [pixels] their distances, p = o + d·r,
    u another view, d_u(p) the distance that u sees in the direction of p, s_u = d_u(p) − ‖p − o_u‖ how far before u's
    surface p lies, τ the share of the distance within which u is taken to see the same surface.

    d ← d + mean of s_u over the views with |s_u| < τ‖p − o_u‖
which ends where the mean of the truncated signed distances is zero: the surface of volumetric fusion (Curless and
Levoy, SIGGRAPH 1996), without a volume. A field's depth is off by another amount in each view; their mean is thin.

Cameras are known by their rays alone, so any lens will do. A direction is looked up on a plane on which its angle to
the middle of the view is its distance from the origin (azimuthal equidistant projection).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt

SAME_SURFACE = 0.1
"""τ."""
AGREES = 0.05
"""Share of the distance within which another view is said to agree."""
CELLS_PER_PIXEL = 2
"""Cells of the look-up plane for a pixel, along each side."""
HOLE = 1.5
"""Cells from the nearest pixel from which on a direction is outside of the view, in pixels."""
TINY = 1e-9


class SeenView(NamedTuple):
    """What one view sees, at the pixels of a grid."""

    origin: Float[np.ndarray, "3"]
    directions: Float[np.ndarray, "height width 3"]
    """Unit vectors."""
    distances: Float[np.ndarray, "height width"]
    """Along the rays, in the unit of the scene."""
    known: Bool[np.ndarray, "height width"]
    """Where there is a surface at all."""
    colours: Float[np.ndarray, "height width 3"]
    """CIELAB."""

    @property
    def points(self) -> Float[np.ndarray, "height width 3"]:
        """Points on the surface."""
        return self.origin + self.directions * self.distances[..., None]


class _Plane:
    """The pixels of a view by their directions."""

    def __init__(self, directions: Float[np.ndarray, "height width 3"]) -> None:
        flat = directions.reshape(-1, 3)
        axis = flat.mean(0)
        axis /= max(float(np.linalg.norm(axis)), TINY)
        side = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
        side /= np.linalg.norm(side)
        self._frame = np.stack([side, np.cross(axis, side), axis])
        places = self._places(flat)
        height, width = directions.shape[:2]
        self._low = places.min(0)
        area = np.prod(np.maximum(places.max(0) - self._low, TINY))
        self._cell = (area / (height * width)) ** 0.5 / CELLS_PER_PIXEL
        cells = np.floor((places - self._low) / self._cell).astype(np.int64)
        table = np.full(cells.max(0) + 1, -1)
        table[tuple(cells.T)] = np.arange(len(flat))
        nearest = distance_transform_edt(table < 0, return_distances=False, return_indices=True)
        assert isinstance(nearest, np.ndarray)
        away = np.linalg.norm(nearest - np.indices(table.shape), axis=0)
        self._table = np.where(away <= HOLE * CELLS_PER_PIXEL, table[tuple(nearest)], -1)

    def _places(self, directions: Float[np.ndarray, "pixels 3"]) -> Float[np.ndarray, "pixels 2"]:
        x, y, z = self._frame @ directions.T
        across = np.hypot(x, y)
        stretch = np.arctan2(across, z) / np.maximum(across, TINY)
        return np.stack([x * stretch, y * stretch], axis=1)

    def pixels(self, directions: Float[np.ndarray, "pixels 3"]) -> Int[np.ndarray, "pixels"]:
        """Return the pixel that looks in each direction, −1 where none does."""
        rows, cols = ((self._places(directions) - self._low) / self._cell).T
        inside = np.flatnonzero(
            (rows >= 0) & (cols >= 0) & (rows < self._table.shape[0]) & (cols < self._table.shape[1])
        )
        found = np.full(len(rows), -1)
        found[inside] = self._table[rows[inside].astype(np.intp), cols[inside].astype(np.intp)]
        return found


def agreed(
    views: Sequence[SeenView], others: Sequence[SeenView], most: int = 16, rounds: int = 3
) -> list[tuple[Float[np.ndarray, "height width"], Int[np.ndarray, "height width"]]]:
    """Return, for each view, distances that `others` agree on, and how many of them agree with each.

    Args:
        views: whose distances are corrected; what is not known stays as it is, and nobody agrees with it.
        others: who is asked; a view that is among them is one voice of several.
        most: views that are asked for each view, the most alike.
        rounds: how often distances are moved.
    """
    planes = [_Plane(other.directions) for other in others]
    middles = np.stack([_middle(other) for other in others])
    origins = np.stack([other.origin for other in others])
    found = []
    for view in views:
        apart = np.linalg.norm(middles - _middle(view), axis=1) + np.linalg.norm(origins - view.origin, axis=1) / 2
        asked = np.argsort(apart, kind="stable")[:most].tolist()
        found.append(_agreed_view(view, [(others[k], planes[k]) for k in asked], rounds))
    return found


def _middle(view: SeenView) -> Float[np.ndarray, "3"]:
    return np.median(view.points[view.known], axis=0) if view.known.any() else view.origin


def _agreed_view(
    view: SeenView, asked: Sequence[tuple[SeenView, _Plane]], rounds: int
) -> tuple[Float[np.ndarray, "height width"], Int[np.ndarray, "height width"]]:
    directions, distances = view.directions[view.known], view.distances[view.known].astype(np.float64)
    agree = np.zeros(len(distances), int)
    for _ in range(rounds):
        points = view.origin + directions * distances[:, None]
        total, count = np.zeros(len(points)), np.zeros(len(points), int)
        agree = np.zeros(len(points), int)
        for other, plane in asked:
            rays = points - other.origin
            away = np.sqrt(np.einsum("ij,ij->i", rays, rays))
            pixels = plane.pixels(rays / np.maximum(away, TINY)[:, None])
            seen = (pixels >= 0) & other.known.ravel()[pixels]
            before = np.where(seen, other.distances.ravel()[pixels] - away, np.inf)
            same = np.abs(before) < SAME_SURFACE * away
            total[same] += before[same]
            count += same
            agree += np.abs(before) < AGREES * away
        # One voice is mostly the view's own.
        distances = distances + np.where(count > 1, total / np.maximum(count, 1), 0)
    moved, voices = view.distances.astype(np.float64), np.zeros(view.known.shape, int)
    moved[view.known], voices[view.known] = distances, agree
    return moved, voices
