"""What hangs together with what was clicked: how far a response carries over the surfaces of a scene.

Letters (those of `propagation.py` apart):
    p  [pixels 3]       surface points of random pixels, from all over the scene
    (i, j)              two points that are near each other
    C  [pixels labels]  what carries to a point:  C_i = max over paths from a seed to i of min over the path of R,
                        where points at a seed count as 1: the seed itself is the thing, whatever stands for its place

{min(R, C) ≥ θ} is that part of {R ≥ θ} which hangs together with a seed, at every θ at once: so thresholds, sizes and
masks come from these connected responses as they come from R. Things are of one piece, and a field that has many things
to tell apart lets some that lie far from each other answer alike. The widest path between two points (Pollack, 1960)
runs along the maximum spanning tree of their graph (Hu, 1961), here with min(R_i, R_j) on the pair (i, j).
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial import KDTree

NEIGHBOURS = 12
"""Points that a point is paired with: fewer, and a thin thing falls apart; more, and things that nearly touch join."""
FARTHEST = 3.0
"""Pairs farther apart than this many times the median pair are none: between two things is nothing."""
TOP = 2.0
"""What responses are taken from, to make the largest the least; above 1, since scipy takes a zero for no pair."""


def surface_graph(points: Float[np.ndarray, "pixels 3"]) -> csr_matrix:
    """Return which points are near each other: a matrix of ones, each pair in it at least once.

    Points in one place are one for their neighbours: a pixel that was drawn many times is not surrounded by itself.
    """
    _, kept, place = np.unique(points, axis=0, return_index=True, return_inverse=True)
    first, second = _near(points[kept])
    own = np.flatnonzero(kept[place.ravel()] != np.arange(len(points)))
    rows, columns = np.concatenate([kept[first], own]), np.concatenate([kept[second], kept[place.ravel()][own]])
    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(points), len(points)))


def _near(
    points: Float[np.ndarray, "pixels 3"],
) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]]:
    """Return the pairs of points that are apart from each other, and not far."""
    if len(points) < 2:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    ranks = np.arange(2, min(NEIGHBOURS + 1, len(points)) + 1)  # the first is the point itself
    distances, found = map(np.asarray, KDTree(points).query(points, k=ranks))  # pyright: ignore[reportArgumentType]
    first, second, apart = np.repeat(np.arange(len(points)), len(ranks)), found.ravel(), distances.ravel()
    near = apart <= FARTHEST * np.median(apart)
    return first[near], second[near]


def carried_responses(
    responses: Float[np.ndarray, "pixels labels"], graph: csr_matrix, starts: Sequence[Int[np.ndarray, "seeds"]]
) -> Float[np.ndarray, "pixels labels"]:
    """Return C: how much of each label's responses carries to the points from its seeds; 0 where nothing does.

    Args:
        responses: R of surface points, 0..1.
        graph: of these points, from `surface_graph`.
        starts: for each label, the points at its seeds; a path begins at any of them.
    """
    pairs = graph.tocoo()
    first, second = pairs.row.astype(np.int64), pairs.col.astype(np.int64)
    found = np.zeros_like(responses)
    for label, begins in enumerate(starts):
        if len(begins):
            found[:, label] = _widest(responses[:, label], first, second, np.unique(begins))
    return found


def _widest(
    responses: Float[np.ndarray, "pixels"],
    first: Int[np.ndarray, "pairs"],
    second: Int[np.ndarray, "pairs"],
    starts: Int[np.ndarray, "seeds"],
) -> Float[np.ndarray, "pixels"]:
    """Return C of one label, from the tree that grows out of a point before all starts."""
    count = len(responses)
    widths = np.append(responses, 1.0)
    widths[starts] = 1.0
    one, other = np.concatenate([first, np.full(len(starts), count)]), np.concatenate([second, starts])
    tree = minimum_spanning_tree(_single(one, other, TOP - np.minimum(widths[one], widths[other]), count + 1))
    # Its types say that there may be no predecessors.
    walk = cast(Any, breadth_first_order(tree, count, directed=False))
    order, before = walk
    carried = np.zeros(count + 1)
    carried[count] = 1.0
    # Along a path the least response decides, and every point of it is passed: no need to look pairs up in the tree.
    for place in order[1:].tolist():
        carried[place] = min(carried[before[place]], widths[place])
    return carried[:count]


def _single(
    first: Int[np.ndarray, "pairs"], second: Int[np.ndarray, "pairs"], length: Float[np.ndarray, "pairs"], count: int
) -> csr_matrix:
    """Return a graph where each pair stands once: scipy would add up those that stand twice."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    _, kept = np.unique(low * count + high, return_index=True)
    return csr_matrix((length[kept], (low[kept], high[kept])), shape=(count, count))
