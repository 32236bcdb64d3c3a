"""Surfaces of a scene, from what its views see: points on a grid, their normals, and what lies between neighbours.

Letters: p [points 3] points on surfaces, n [points 3] their unit normals, towards the eye, c [points 3] their colours
    in CIELAB, o [3] a camera's place, v side of a cell of the grid, i and j two points that are neighbours, β the angle
    between their normals, ΔE the difference of their colours with lightness halved, φ [points features] looks.

No length is absolute: v is made of what a pixel covers, so a scene may be given in any unit.

    bend_ij = (1 − cos β)·(1 if concave, ε if convex),   convex: (n_i − n_j)·(p_i − p_j) > 0
Things are convex parts that meet others in concave edges (LCCP; Stein et al., CVPR 2014): a chair stands on a floor.
Where one wall of a room meets the next, nothing bends: who says "the walls" means all of them.

The look of a place is the mean of φ(c) over what surrounds it on the surface, where φ are random Fourier features of a
Gaussian kernel of ΔE (Rahimi and Recht 2007): a kernel mean, so ‖φ_S − φ_T‖² / 2 compares the colours of two segments
as histograms would, without bins. The stripes of a rug are different colours with the same look.

How a segment lies, up being the third axis: which way it faces, m, the mean of
    [max(n_z, 0)², max(−n_z, 0)², 1 − n_z²]
over its points, how low and how high it reaches between the lowest places of the scene and the highest, and its size,
the logarithm of its points between few and all; a, b, s in 0..1, which harmonics turn into angles:
    lie = [m/‖m‖, H(a), H(b), H(s)] / 2,   H(x) = [cos(k·x·π/2), sin(k·x·π/2)]_k / √K,  k = 1..K
Four walls face four ways and are walls: they reach from floor to ceiling, which no picture does. ⟨H(x), H(y)⟩ is 1
where x = y and falls to 0 where they differ by 0.4, where one angle alone would still say 0.8.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix, csr_matrix
from scipy.spatial import KDTree

REACH = 1.8
"""Cells within which two points touch: the 26 cells around a cell, short of the far corners."""
FAR_REACH = 3.0
"""Cells within which bends are judged: a corner that noise has rounded is one over several cells."""
CONVEX_SHARE = 0.2
"""ε: what a convex edge costs, against a concave one of the same angle."""
FULL_DIFFERENCE = 20.0
"""ΔE (CIELAB units) from which on two colours are as different as any."""
LIGHTNESS_SHARE = 0.5
"""Weight of lightness in ΔE: shade falls across things."""
LOOK_WIDTH = 12.0
"""Width of the kernel of colours, ΔE."""
LOOK_FREQUENCIES = 24
NORM_EPS = 1e-12
FEW = 32
"""Places that are compared with all points one by one."""
LOWEST, HIGHEST = 0.01, 0.99
"""Shares of the points between whose heights a and b run from 0 to 1: a few float below the floor."""
BOTTOM, TOP = 0.05, 0.95
"""Shares of a segment's points between whose heights it reaches."""
HARMONICS = 4
"""K."""
SMALLEST = 30.0
"""Points from which on the size of a segment says something."""
FACING = 3
"""How many numbers say which way a place faces."""


class Cloud(NamedTuple):
    """Points on surfaces, one for each cell of a grid that holds any."""

    points: Float[np.ndarray, "points 3"]
    normals: Float[np.ndarray, "points 3"]
    colours: Float[np.ndarray, "points 3"]
    """CIELAB."""
    looks: Float[np.ndarray, "points features"]
    cell: float
    """Side of a cell, in the unit of the points."""
    plane: Int[np.ndarray, "points"]
    """Number of the large plane that each point is on (`planes.py`), −1 for none."""
    walls: Bool[np.ndarray, "points"]
    """Whether that is a wall of the room."""


class Neighbours(NamedTuple):
    """Pairs of points near each other, each pair once."""

    first: Int[np.ndarray, "pairs"]
    second: Int[np.ndarray, "pairs"]
    bend: Float[np.ndarray, "pairs"]
    """What it costs to cross from one to the other on the surface, 0 to 2."""
    contrast: Float[np.ndarray, "pairs"]
    """How much their colours differ, 0 to 1."""


def facing(normals: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
    """Return how much places face up, down and aside; adds up to 1."""
    up = normals[:, 2]
    return np.stack([np.maximum(up, 0) ** 2, np.maximum(-up, 0) ** 2, 1 - up**2], axis=1)


def lies(
    points: Float[np.ndarray, "points 3"],
    segment: Int[np.ndarray, "points"],
    faces: Float[np.ndarray, "points 3"],
) -> Float[np.ndarray, "segments dims"]:
    """Return how segments lie, as unit vectors; `faces` are the places' `facing`."""
    count, size = int(segment.max()) + 1, np.bincount(segment)
    low, high = np.quantile(points[:, 2], (LOWEST, HIGHEST))
    height = np.clip((points[:, 2] - low) / max(high - low, NORM_EPS), 0, 1)
    share = np.log(np.maximum(size, SMALLEST) / SMALLEST) / max(np.log(len(points) / SMALLEST), 1.0)
    told = [_unit(means(faces, segment, count))]
    told += [harmonics(x) for x in (*_reach(height, segment, size), share)]
    return np.concatenate(told, axis=1) / 2


def harmonics(x: Float[np.ndarray, "segments"]) -> Float[np.ndarray, "segments dims"]:
    """Return H(x), unit vectors, of numbers in 0..1."""
    angles = x[:, None] * np.arange(1, HARMONICS + 1) * (np.pi / 2)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / HARMONICS**0.5


def _reach(
    height: Float[np.ndarray, "points"], segment: Int[np.ndarray, "points"], size: Int[np.ndarray, "segments"]
) -> list[Float[np.ndarray, "segments"]]:
    """Return the heights below which BOTTOM and TOP of each segment's points are."""
    ordered = height[np.lexsort((height, segment))]
    first = np.cumsum(size) - size
    return [ordered[first + np.minimum((share * size).astype(int), size - 1)] for share in (BOTTOM, TOP)]


def image_normals(
    points: Float[np.ndarray, "height width 3"], origin: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "height width 3"]:
    """Return unit normals of the surface that a view shows, towards the camera.

    Of the differences to the pixel before and to the one after, that with the smaller step in distance is taken, along
    rows and along columns: a central difference would lie across the outlines of things. Zero where one vanishes.
    """
    distance = np.linalg.norm(points - origin, axis=-1)
    across = np.cross(_smaller_difference(points, distance, 0), _smaller_difference(points, distance, 1))
    normals = across / np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), NORM_EPS)
    away = ((origin - points) * normals).sum(-1) < 0
    normals[away] *= -1
    return normals


def _smaller_difference(
    points: Float[np.ndarray, "height width 3"], distance: Float[np.ndarray, "height width"], axis: int
) -> Float[np.ndarray, "height width 3"]:
    before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
    before[axis], after[axis] = (1, 0), (0, 1)
    difference, step = np.diff(points, axis=axis), np.abs(np.diff(distance, axis=axis))
    steps = [np.pad(step, side, constant_values=np.inf) for side in (before, after)]
    differences = [np.pad(difference, [*side, (0, 0)]) for side in (before, after)]
    return np.where((steps[0] < steps[1])[..., None], differences[0], differences[1])


def footprint(
    directions: Float[np.ndarray, "height width 3"], distances: Float[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width"]:
    """Return how much of a surface that faces the camera a pixel covers: its distance times the angle to the next."""
    angles = [
        np.linalg.norm(np.diff(directions, axis=axis), axis=-1).mean() for axis in (0, 1) if directions.shape[axis] > 1
    ]
    return distances * (np.mean(angles) if angles else 0.0)


def fuse(
    points: Float[np.ndarray, "pixels 3"],
    normals: Float[np.ndarray, "pixels 3"],
    colours: Float[np.ndarray, "pixels 3"],
    cell: float,
    normal_rounds: int = 2,
    look_rounds: int = 3,
) -> Cloud:
    """Return one point for each cell of a grid: means of what lies in it, then smoothed over points that touch.

    Points whose normals disagree by a right angle do not smooth each other, and others the more, the better they agree:
    an edge stays one.
    """
    number, count = _numbered(points, cell)
    p, n, c, looks = (means(values, number, count) for values in (points, normals, colours, look_of(colours)))
    n = _unit(n)
    first, second = _pairs(p, REACH * cell)
    for _ in range(normal_rounds):
        n = _unit(n + _agreeing(n, first, second) @ n)
    beside = _agreeing(n, first, second)
    weight = 1 + np.asarray(beside.sum(1))
    for _ in range(look_rounds):
        looks = (looks + beside @ looks) / weight
    return Cloud(p, n, c, looks, cell, np.full(count, -1), np.zeros(count, bool))


def _numbered(points: Float[np.ndarray, "pixels 3"], cell: float) -> tuple[Int[np.ndarray, "pixels"], int]:
    """Return the number of each point's cell, among the cells that hold a point, and how many these are."""
    cells = np.floor((points - points.min(axis=0)) / cell).astype(np.int64)
    kept, number = np.unique(np.ravel_multi_index(tuple(cells.T), tuple(cells.max(axis=0) + 1)), return_inverse=True)
    return number, len(kept)


def means(
    values: Float[np.ndarray, "pixels dims"], number: Int[np.ndarray, "pixels"], count: int
) -> Float[np.ndarray, "cells dims"]:
    """Return the mean of the values of each number, 0 where there is none."""
    ones = np.ones(len(number))
    members = csr_matrix((ones, (number, np.arange(len(number)))), shape=(count, len(number)))
    return (members @ values) / np.maximum(np.bincount(number, minlength=count), 1)[:, None]


def look_of(colours: Float[np.ndarray, "pixels 3"]) -> Float[np.ndarray, "pixels features"]:
    """Return φ(c): scalar products of unit vectors that are about exp(−ΔE² / 2·width²)."""
    directions = np.random.default_rng(0).normal(size=(3, LOOK_FREQUENCIES))
    scaled = colours * np.array([LIGHTNESS_SHARE, 1, 1]) / LOOK_WIDTH
    angles = scaled.astype(np.float32) @ directions.astype(np.float32)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / LOOK_FREQUENCIES**0.5


def _unit(vectors: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), NORM_EPS)


def _pairs(
    points: Float[np.ndarray, "points 3"], within: float
) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]]:
    found = KDTree(points).query_pairs(within, output_type="ndarray")
    first, second = found[np.lexsort(found.T[::-1])].T
    return first, second


def _agreeing(
    normals: Float[np.ndarray, "points 3"], first: Int[np.ndarray, "pairs"], second: Int[np.ndarray, "pairs"]
) -> csr_matrix:
    """Return how much points that touch go on in the same direction, as a symmetric matrix without a diagonal."""
    weight = np.clip((normals[first] * normals[second]).sum(1), 0, 1) ** 2
    one_way = coo_matrix((weight, (first, second)), shape=(len(normals), len(normals))).tocsr()
    return one_way + one_way.T


def neighbours(cloud: Cloud, reach: float, convex_share: float = CONVEX_SHARE) -> Neighbours:
    """Return the points within `reach` cells of each other, and what lies between them; `convex_share` is ε."""
    p, n, c = cloud.points, cloud.normals, cloud.colours
    i, j = _pairs(p, reach * cloud.cell)
    bend = 1 - np.clip((n[i] * n[j]).sum(1), -1, 1)
    concave = ((n[i] - n[j]) * (p[i] - p[j])).sum(1) < 0
    difference = np.linalg.norm((c[i] - c[j]) * [LIGHTNESS_SHARE, 1, 1], axis=1)
    share = np.where(cloud.walls[i] & cloud.walls[j], 0, np.where(concave, 1, convex_share))
    return Neighbours(i, j, bend * share, np.minimum(difference / FULL_DIFFERENCE, 1))


def nearest(
    points: Float[np.ndarray, "points 3"], queries: Float[np.ndarray, "pixels 3"], within: float
) -> Int[np.ndarray, "pixels"]:
    """Return the point nearest to each query, −1 where none is `within` reach."""
    if len(queries) <= FEW:  # a tree is not worth its making
        found = np.array([((points - query) ** 2).sum(axis=1).argmin() for query in queries], dtype=np.int64)
        return np.where(np.linalg.norm(points[found] - queries, axis=1) < within, found, -1)
    _, found = KDTree(points).query(queries, distance_upper_bound=within)
    return np.where(found == len(points), -1, found)
