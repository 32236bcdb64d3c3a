"""A scene taken apart into its surfaces' segments, at several levels from parts to wholes, from what its views see.

`agreement` finds the surfaces, `surfaces` what lies between neighbouring points, `silhouettes` what hides what,
`segments` the tree; here they meet. Letters are theirs.

One segmentation hangs on its settings: with one grain a fox's head falls apart, with another it is one with the wall.
Several can be made, by grains of the grid and weights of looks, and all of them are kept: how many put two points into
one segment says how much they belong together (evidence accumulation; Fred and Jain, PAMI 2005). A leaf is what none
of them divides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import distance_transform_edt

from jacobinerf_ns.core.agreement import SeenView, agreed
from jacobinerf_ns.core.segments import Weights, cut, merge_tree, small_segments
from jacobinerf_ns.core.silhouettes import outlines
from jacobinerf_ns.core.surfaces import (
    FAR_REACH,
    REACH,
    Cloud,
    footprint,
    fuse,
    image_normals,
    nearest,
    neighbours,
)

UNKNOWN = -1
"""Leaf of a pixel in a view of which nothing is known."""
FAR_CONVEX_SHARE = 0.1
"""ε in the tree: what noise rounds is mostly convex."""
OWN_CELLS = 3.0
"""Cells from the nearest point from which on a pixel lies on no surface that is known."""


@dataclass
class PartitionConfig:
    """How surfaces are taken apart. No length is absolute."""

    cells: tuple[float, ...] = (2.2,)
    """Sides of the cells that hold one point each, in footprints of a pixel at the median distance, from fine to
    coarse; a scene is taken apart once for each."""
    agreeing: int = 3
    """Views that must agree on a pixel's distance, within 5 %; one of them is its own."""
    colour_weight: float = 0.5
    """Cost of the largest difference of colour between points that touch, where a concave right angle costs 1."""
    look_weights: tuple[float, ...] = (2.0,)
    """Costs of looking entirely different, for flat segments that merge; a scene is taken apart once for each."""
    body_share: float = 1.0
    """Share (0..1) of these costs for bodies; with less, another colour on a body is a marking and no other thing."""
    bend_weight: float = 1.0
    """Cost of a concave right angle all along the boundary of two segments that merge."""
    jump_weight: float = 0.0
    """Cost of standing entirely before the other, as views see it, for segments that merge; 0 does not look at it."""
    small_scale: float = 0.6
    """k of the small segments: larger, larger."""
    least: int = 8
    """Points of the smallest segment."""
    full: float = 50.0
    """Points from which on a segment's boundary counts whole; smaller ones merge sooner."""
    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.55, 0.75)
    """Heights at which the tree is cut, from parts to wholes."""


class Partition(NamedTuple):
    """Surfaces of a scene, taken apart."""

    points: Float[np.ndarray, "points 3"]
    leaves: Int[np.ndarray, "points"]
    """Small segment of each point, numbered from 0."""
    levels: Int[np.ndarray, "levels segments"]
    """Segment of each leaf in each segmentation, numbered from 0: by grain, then from parts to wholes."""
    cell: float
    """Side of the cells that the points are of, in the unit of the scene."""


def partition(
    views: Sequence[SeenView], config: PartitionConfig
) -> tuple[Partition, list[Int[np.ndarray, "height width"]]]:
    """Take the scene that the views see apart; return that, and the leaf of each pixel of each view.

    A pixel that is known to be on no surface has the leaf of the nearest pixel that is on one.

    Raises:
        ValueError: the views agree on next to nothing.
    """
    corrected = [
        view._replace(distances=distances, known=view.known & (voices >= config.agreeing))
        for view, (distances, voices) in zip(views, agreed(views, views), strict=True)
    ]
    if sum(int(view.known.sum()) for view in corrected) < config.least:
        raise ValueError("the views agree on no surface")
    footprints = [footprint(view.directions, view.distances)[view.known] for view in corrected]
    unit = float(np.median(np.concatenate(footprints)))
    normals = np.concatenate([image_normals(view.points, view.origin)[view.known] for view in corrected])
    points = np.concatenate([view.points[view.known] for view in corrected])
    colours = np.concatenate([view.colours[view.known] for view in corrected])
    clouds = [fuse(points, normals, colours, side * unit) for side in config.cells]
    fine = clouds[0].points
    leaves, rows = [], []
    for cloud in clouds:
        own, cuts = _segmentations(cloud, corrected, config)
        leaves.append(own[nearest(cloud.points, fine, np.inf)])
        rows.append(cuts)
    found = _combined(fine, leaves, rows, clouds[0].cell)
    return found, [leaves_of(view, found) for view in corrected]


def _segmentations(
    cloud: Cloud, views: Sequence[SeenView], config: PartitionConfig
) -> tuple[Int[np.ndarray, "points"], Int[np.ndarray, "levels segments"]]:
    """Return the small segment of each point, and the segment of these at each height, for each weight of looks."""
    near = neighbours(cloud, REACH)
    cost = near.bend + config.colour_weight * near.contrast
    leaves = small_segments(len(cloud.points), near.first, near.second, cost, config.small_scale, config.least)
    far = neighbours(cloud, FAR_REACH, FAR_CONVEX_SHARE)
    bare = Partition(cloud.points, leaves, np.empty((0, int(leaves.max()) + 1), np.int64), cloud.cell)
    looked_at = views if config.jump_weight else ()
    seen = outlines(looked_at, [leaves_of(view, bare) for view in looked_at], cloud.cell)
    points = cloud.points / cloud.cell
    weights = [
        Weights(config.bend_weight, config.jump_weight, look, config.body_share, config.full)
        for look in config.look_weights
    ]
    trees = [merge_tree(leaves, far.first, far.second, far.bend, points, cloud.looks, seen, each) for each in weights]
    return leaves, np.stack([cut(tree, height) for height in config.levels for tree in trees])


def _combined(
    points: Float[np.ndarray, "points 3"],
    leaves: Sequence[Int[np.ndarray, "points"]],
    rows: Sequence[Int[np.ndarray, "levels segments"]],
    cell: float,
) -> Partition:
    """Return segmentations of several grains as one: a leaf for each combination of small segments that occurs."""
    kept, own = np.unique(np.stack(leaves, axis=1), axis=0, return_inverse=True)
    levels = np.stack([row[kept[:, grain]] for grain, cuts in enumerate(rows) for row in cuts])
    return Partition(points.astype(np.float32), own.reshape(-1), levels, cell)


def leaves_of(view: SeenView, found: Partition) -> Int[np.ndarray, "height width"]:
    """Return the leaf of each pixel of a view, `UNKNOWN` everywhere where no pixel is near a surface."""
    place = np.full(view.known.shape, UNKNOWN)
    place[view.known] = nearest(found.points, view.points[view.known], OWN_CELLS * found.cell)
    if (place == UNKNOWN).all():
        return place
    beside = distance_transform_edt(place == UNKNOWN, return_distances=False, return_indices=True)
    assert isinstance(beside, np.ndarray)
    return found.leaves[place[tuple(beside)]]
