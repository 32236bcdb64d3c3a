"""Where one segment hides another: what outlines in the views say about what belongs together.

Letters: S and T segments, v side of a cell, f what a pixel covers of a surface that faces the camera; a and b two
    pixels of a view, `SPAN` apart in a row or a column, in S and in T, and p_a, p_b their points.

a and b touch if ‖p_a − p_b‖ ≤ NEAR·max(SPAN·f, v), else between them lies a jump: the nearer segment's outline. A head
before a wall jumps all around and touches it at the neck; a rug touches the floor wherever it ends. Over all views
N_ST counts what touches and J_ST what jumps.

That is known only to views: in space there are no pairs of points where nothing touches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jacobinerf_ns.core.agreement import SeenView
from jacobinerf_ns.core.surfaces import footprint

SPAN = 3
"""Pixels: between two that are next to each other lies what belongs to neither, the blur of an outline."""
NEAR = 4.0
"""Pixels that a surface may cover in depth and still be one: it is seen at a slant of 1 in 4."""


class Outlines(NamedTuple):
    """How segments meet in views, each two that do once."""

    first: Int[np.ndarray, "borders"]
    """The one with the smaller number."""
    second: Int[np.ndarray, "borders"]
    touching: Int[np.ndarray, "borders"]
    """N: pairs of pixels, in all views."""
    jumping: Int[np.ndarray, "borders"]
    """J."""


def outlines(views: Sequence[SeenView], segments: Sequence[Int[np.ndarray, "height width"]], cell: float) -> Outlines:
    """Return how segments meet in views; pixels in no segment (below 0) and those that are not known meet nothing.

    Args:
        views: what they see.
        segments: of each pixel of each view.
        cell: v, in the unit of the scene.
    """
    count = 1 + max((int(grid.max()) for grid in segments if grid.size), default=-1)
    found = [(np.empty(0, np.int64), np.empty(0, bool))]
    for view, grid in zip(views, segments, strict=True):
        limit = NEAR * np.maximum(SPAN * footprint(view.directions, view.distances), cell)
        found += [_across(view, grid, limit, axis, count) for axis in (0, 1)]
    meeting, jumps = (np.concatenate(part) for part in zip(*found, strict=True))
    kept, place = np.unique(meeting, return_inverse=True)
    touching, jumping = (np.bincount(place[which], minlength=len(kept)) for which in (~jumps, jumps))
    return Outlines(kept // max(count, 1), kept % max(count, 1), touching, jumping)


def _across(
    view: SeenView,
    grid: Int[np.ndarray, "height width"],
    limit: Float[np.ndarray, "height width"],
    axis: int,
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return S·count + T of the pairs along an axis whose segments differ, and which of them jump."""
    here, there = _shifted(axis, slice(None, -SPAN)), _shifted(axis, slice(SPAN, None))
    low, high = np.minimum(grid[here], grid[there]), np.maximum(grid[here], grid[there])
    meets = (low != high) & (low >= 0) & view.known[here] & view.known[there]
    points = view.points
    jumps = np.linalg.norm(points[here] - points[there], axis=-1) > np.maximum(limit[here], limit[there])
    return (low * count + high)[meets], jumps[meets]


def _shifted(axis: int, part: slice) -> tuple[slice, slice]:
    return (part, slice(None)) if axis == 0 else (slice(None), part)
