"""A scene taken apart into its surfaces' segments, at several levels from parts to wholes, from what its views see.

`agreement` finds the surfaces, `planes` what is flat of them, `surfaces` what lies between neighbouring points,
`silhouettes` what hides what, `segments` the tree; here they meet. Letters are theirs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import distance_transform_edt

from jacobinerf_ns.core.agreement import SeenView, agreed
from jacobinerf_ns.core.planes import flattened
from jacobinerf_ns.core.segments import MergeTree, Weights, cut, merge_tree, small_segments
from jacobinerf_ns.core.silhouettes import Outlines, outlines
from jacobinerf_ns.core.surfaces import (
    FAR_REACH,
    REACH,
    Cloud,
    Neighbours,
    facing,
    footprint,
    fuse,
    image_normals,
    means,
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

    cell: float = 2.2
    """Side of the cells that hold one point each, in footprints of a pixel at the median distance."""
    agreeing: int = 3
    """Views that must agree on a pixel's distance, within 5 %; one of them is its own."""
    plane_share: float = 0.03
    """Share (0..1) of the points from which on a plane is a plane, however noisy its depth: walls, floors, doors. Of
    smaller ones fur and cushions become planes too; 1 finds none."""
    colour_weight: float = 0.5
    """Cost of the largest difference of colour between points that touch, where a concave right angle costs 1."""
    look_weight: float = 3.0
    """Cost of looking entirely different, for flat segments that merge."""
    body_share: float = 0.15
    """Share (0..1) of this cost for bodies: another colour on a body is a marking more than another thing; 1 makes no
    difference."""
    bend_weight: float = 1.5
    """Cost of a concave right angle all along the boundary of two segments that merge."""
    jump_weight: float = 3.0
    """Cost of standing entirely before the other, as views see it, for segments that merge."""
    small_scale: float = 0.6
    """k of the small segments: larger, larger."""
    least: int = 8
    """Points of the smallest segment."""
    full: float = 50.0
    """Points from which on a segment's boundary counts whole; smaller ones merge sooner."""
    levels: tuple[float, ...] = (0.1, 0.2, 0.28, 0.34, 0.4, 0.55, 0.8)
    """Heights at which the tree is cut, from parts to wholes."""
    trees: int = 5
    """How often the scene is taken apart, from all views and then from random ones: what trees agree on counts. Some
    seconds each."""
    view_share: float = 0.75
    """Share (0..1) of the views that another tree is made of."""


class Partition(NamedTuple):
    """Surfaces of a scene, taken apart."""

    points: Float[np.ndarray, "points 3"]
    leaves: Int[np.ndarray, "points"]
    """Small segment of each point, numbered from 0."""
    levels: Int[np.ndarray, "levels segments"]
    """Segment of each leaf at each level, numbered from 0, from parts to wholes."""
    cell: float
    """Side of the cells that the points are of, in the unit of the scene."""
    tree: MergeTree
    """Of the leaves."""
    facing: Float[np.ndarray, "segments 3"]
    """Which way each leaf faces, on average."""


def partitions(
    views: Sequence[SeenView], config: PartitionConfig
) -> Iterator[tuple[Partition, list[Int[np.ndarray, "height width"]]]]:
    """Yield the scene that the views see, taken apart as often as is asked, and the leaf of each pixel of each view.

    First as all views see it, and then as a random share of them does. Which segments merge first hangs on small
    things, and what the trees agree on is the scene (bagging; Breiman, 1996).

    Raises:
        ValueError: the views agree on next to nothing.
    """
    rng = np.random.default_rng(0)
    fewest = min(len(views), config.agreeing)
    for tree in range(config.trees):
        count = len(views) if tree == 0 else max(fewest, round(config.view_share * len(views)))
        chosen = set(rng.permutation(len(views))[:count].tolist())
        try:
            found, seen = partition([views[place] for place in sorted(chosen)], config)
        except ValueError:
            if tree == 0:
                raise
            continue  # these few agree on nothing
        grids = iter(seen)
        yield found, [next(grids) if place in chosen else leaves_of(view, found) for place, view in enumerate(views)]


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
    cloud = flattened(_cloud(corrected, config.cell), config.plane_share)
    near = neighbours(cloud, REACH)
    cost = near.bend + config.colour_weight * near.contrast
    leaves = small_segments(len(cloud.points), near.first, near.second, cost, config.small_scale, config.least)
    points = cloud.points.astype(np.float32)
    grids = [_leaves_of(view, points, leaves, cloud.cell) for view in corrected]
    tree = _tree(cloud, near, leaves, outlines(corrected, grids, cloud.cell), config)
    levels = np.stack([cut(tree, height) for height in config.levels])
    faces = means(facing(cloud.normals), leaves, levels.shape[1])
    return Partition(points, leaves, levels, cloud.cell, tree, faces), grids


def _cloud(views: Sequence[SeenView], cell: float) -> Cloud:
    """Return what all views see as one point a cell, of a side in footprints."""
    footprints = [footprint(view.directions, view.distances)[view.known] for view in views]
    unit = float(np.median(np.concatenate(footprints)))
    normals = np.concatenate([image_normals(view.points, view.origin)[view.known] for view in views])
    points = np.concatenate([view.points[view.known] for view in views])
    colours = np.concatenate([view.colours[view.known] for view in views])
    return fuse(points, normals, colours, cell * unit)


def _tree(
    cloud: Cloud, near: Neighbours, leaves: Int[np.ndarray, "points"], seen: Outlines, config: PartitionConfig
) -> MergeTree:
    far = _across_no_gap(neighbours(cloud, FAR_REACH, FAR_CONVEX_SHARE), near, cloud.plane, leaves)
    weights = Weights(config.bend_weight, config.jump_weight, config.look_weight, config.body_share, config.full)
    points = cloud.points / cloud.cell
    return merge_tree(leaves, far.first, far.second, far.bend, points, cloud.looks, seen, weights)


def _across_no_gap(
    far: Neighbours, near: Neighbours, plane: Int[np.ndarray, "points"], leaves: Int[np.ndarray, "points"]
) -> Neighbours:
    """Leave out pairs on one plane of segments that nowhere touch: two table tops are one plane, and no thing."""
    same = (plane[far.first] == plane[far.second]) & (plane[far.first] >= 0)
    touch = np.isin(_meeting(far, leaves), _meeting(near, leaves))
    return Neighbours(*(part[~same | touch] for part in far))


def _meeting(pairs: Neighbours, leaves: Int[np.ndarray, "points"]) -> Int[np.ndarray, "pairs"]:
    """Return a number for which two segments each pair is of."""
    i, j = leaves[pairs.first], leaves[pairs.second]
    return np.minimum(i, j) * (int(leaves.max()) + 1) + np.maximum(i, j)


def leaves_of(view: SeenView, found: Partition) -> Int[np.ndarray, "height width"]:
    """Return the leaf of each pixel of a view, `UNKNOWN` everywhere where no pixel is near a surface."""
    return _leaves_of(view, found.points, found.leaves, found.cell)


def _leaves_of(
    view: SeenView, points: Float[np.ndarray, "points 3"], leaves: Int[np.ndarray, "points"], cell: float
) -> Int[np.ndarray, "height width"]:
    found = np.full(view.known.shape, UNKNOWN)
    found[view.known] = _leaves_at(view.points[view.known], points, leaves, cell)
    if (found == UNKNOWN).all():
        return found
    beside = distance_transform_edt(found == UNKNOWN, return_distances=False, return_indices=True)
    assert isinstance(beside, np.ndarray)
    return found[tuple(beside)]


def leaves_at(places: Float[np.ndarray, "places 3"], found: Partition) -> Int[np.ndarray, "places"]:
    """Return the leaf at each of some places, `UNKNOWN` where no surface is near."""
    return _leaves_at(places, found.points, found.leaves, found.cell)


def _leaves_at(
    places: Float[np.ndarray, "places 3"],
    points: Float[np.ndarray, "points 3"],
    leaves: Int[np.ndarray, "points"],
    cell: float,
) -> Int[np.ndarray, "places"]:
    near = nearest(points, places, OWN_CELLS * cell)
    return np.where(near == UNKNOWN, UNKNOWN, leaves[near])
