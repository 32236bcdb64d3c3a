"""Large planes of a scene: walls, floors, ceilings, doors and the sides of cupboards are flat, however noisy depth is.

Letters: p [points 3] points on surfaces, in cells, n [points 3] their unit normals, towards the eye; v and o a plane,
    the places x with v·x = o, v towards the eye; δ how far from it a point lies, |v·p − o|.

White walls have no texture, so their depth is off by decimetres and the corners between them are round: a wall becomes
a ceiling in steps that are small each, and a door a floor of the same wood. Nothing between two neighbours tells that,
but the planes do. They are found by sampling (RANSAC; Fischler and Bolles, 1981) with one point and its normal for each
guess, the largest first. A point near a plane, and facing nearly the way it does, has the plane's normal then: a corner
is an edge again. What is small keeps its own normals: a face or a cushion is no plane.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree

from jacobinerf_ns.core.surfaces import Cloud

FLAT, FLAT_ANGLE = 1.5, 30.0
"""Cells from a plane, and degrees away from its normal, within which a point tells of it."""
NEAR, NEAR_ANGLE = 2.5, 60.0
"""The same within which a point is on it, as rounded corners are."""
BESIDE = 6.0
"""Cells from the nearest point that tells of a plane within which another is on it."""
MOST, TRIES, ASKED, ROUNDS = 32, 256, 8000, 4
"""Planes at most; guesses for each; points that judge a guess; how often the best one is fitted to its points."""
FEWEST = 8
"""Points of the smallest plane."""
BEHIND, OUTSIDE = 3.0, 0.02
"""Cells behind a plane from which on a point counts as behind it, and the share (0..1) of points that may be there for
a plane to bound the scene."""
UPRIGHT = 0.3
"""Vertical part of a unit normal up to which a plane stands upright."""


Points = Bool[np.ndarray, "points"]


class Plane(NamedTuple):
    """The places x with normal·x = offset."""

    normal: Float[np.ndarray, "3"]
    offset: float

    def tells(self, points: Float[np.ndarray, "points 3"], normals: Float[np.ndarray, "points 3"]) -> Points:
        """Return which points are flat on it."""
        return _within(points, normals, self, FLAT, FLAT_ANGLE)


def flattened(cloud: Cloud, share: float) -> Cloud:
    """Return a cloud whose points on large planes have the planes' normals, and know which these are.

    Args:
        cloud: points and normals.
        share: of the points (0..1) from which on a plane is large.
    """
    points = cloud.points / cloud.cell
    planes = large_planes(points, cloud.normals, share)
    number = plane_of(points, cloud.normals, planes)
    normals, walls = cloud.normals.copy(), np.zeros(len(points), bool)
    for own, plane in enumerate(planes):
        normals[number == own] = plane.normal
        walls[number == own] = is_wall(points, plane)
    return cloud._replace(normals=normals, plane=number, walls=walls)


def large_planes(
    points: Float[np.ndarray, "points 3"], normals: Float[np.ndarray, "points 3"], share: float
) -> list[Plane]:
    """Return the planes that at least a share of the points tells of, the largest first; a point tells of one."""
    rng, least = np.random.default_rng(0), max(FEWEST, share * len(points))
    found: list[Plane] = []
    while len(found) < MOST and len(points) >= least:
        plane = _fitted(points, normals, _best_guess(points, normals, rng))
        tells = plane.tells(points, normals)
        if tells.sum() < least:
            break
        found.append(plane)
        points, normals = points[~tells], normals[~tells]
    return found


def _best_guess(
    points: Float[np.ndarray, "points 3"], normals: Float[np.ndarray, "points 3"], rng: np.random.Generator
) -> Plane:
    guesses = rng.choice(len(points), min(TRIES, len(points)), replace=False)
    asked = rng.choice(len(points), min(ASKED, len(points)), replace=False)
    v = normals[guesses]
    o = (points[guesses] * v).sum(1)
    agree = (np.abs(points[asked] @ v.T - o) < FLAT) & (normals[asked] @ v.T > np.cos(np.radians(FLAT_ANGLE)))
    best = int(agree.sum(0).argmax())
    return Plane(v[best], float(o[best]))


def _fitted(points: Float[np.ndarray, "points 3"], normals: Float[np.ndarray, "points 3"], plane: Plane) -> Plane:
    """Return the plane of least squares through the points that tell of one, over and over."""
    for _ in range(ROUNDS):
        tells = plane.tells(points, normals)
        if tells.sum() < FEWEST:
            return plane
        middle = points[tells].mean(0)
        across = np.linalg.eigh(np.cov((points[tells] - middle).T))[1][:, 0]
        normal = across if across @ plane.normal > 0 else -across
        plane = Plane(normal, float(middle @ normal))
    return plane


def plane_of(
    points: Float[np.ndarray, "points 3"], normals: Float[np.ndarray, "points 3"], planes: list[Plane]
) -> Int[np.ndarray, "points"]:
    """Return the number of the plane that each point is on, the nearest and most like it, or −1 for none."""
    best, number = np.full(len(points), np.inf), np.full(len(points), -1)
    for own, plane in enumerate(planes):
        tells = plane.tells(points, normals)
        near = np.flatnonzero(_within(points, normals, plane, NEAR, NEAR_ANGLE))
        if not tells.any():
            continue
        away, _ = KDTree(points[tells]).query(points[near], distance_upper_bound=BESIDE)
        near = near[np.isfinite(away)]
        cost = np.abs(points[near] @ plane.normal - plane.offset) / NEAR + 1 - normals[near] @ plane.normal
        better = cost < best[near]
        best[near[better]], number[near[better]] = cost[better], own
    return number


def _within(
    points: Float[np.ndarray, "points 3"],
    normals: Float[np.ndarray, "points 3"],
    plane: Plane,
    distance: float,
    angle: float,
) -> Points:
    close = np.abs(points @ plane.normal - plane.offset) < distance
    return close & (normals @ plane.normal > np.cos(np.radians(angle)))


def is_wall(points: Float[np.ndarray, "points 3"], plane: Plane) -> bool:
    """Return whether a plane stands upright, up being the third axis, and next to nothing is behind it."""
    behind = points @ plane.normal < plane.offset - BEHIND
    return bool(abs(plane.normal[2]) < UPRIGHT and behind.mean() < OUTSIDE)
