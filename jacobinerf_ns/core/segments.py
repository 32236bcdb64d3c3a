"""Parts and wholes of anything whose neighbours are known: small segments, and the tree in which they merge.

Letters: i and j two points that are neighbours, w_ij what it costs to cross between them, S and T segments, |S| points
    of one, W_ST sum of the costs of all pairs between S and T, M_ST number of these pairs, φ_S [features] mean look of
    the points of S, μ weight of looks.

Small segments (Felzenszwalb and Huttenlocher, IJCV 2004): pairs in the order of their costs join two segments while
    w_ij ≤ min(h_S + k/|S|, h_T + k/|T|),   h_S the largest cost that joined S.
Only pairs of the minimum spanning tree can join anything, so others are never looked at.
The tree: of all neighbours S, T those merge first whose boundary is cheapest and that look alike,
    height_ST = (W_ST / M_ST + μ·‖φ_S − φ_T‖² / 2) · √min(1, min(|S|, |T|) / full),
small ones before large ones. Heights are made to rise; a cut at any height gives a segmentation, and a higher one
merges segments of a lower one: parts and wholes.
"""

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from jacobinerf_ns.core.surfaces import means

COST_FLOOR = 1e-9
"""Added to costs in the spanning tree: scipy takes a zero for no pair at all."""


Boundary = dict[int, tuple[float, int]]
"""Of a segment: sum of costs and number of pairs to each neighbour."""


class MergeTree(NamedTuple):
    """Which segments merge, in order; segments are 0 to `leaves` − 1, and a merged one goes by its first member."""

    leaves: int
    first: Int[np.ndarray, "merges"]
    second: Int[np.ndarray, "merges"]
    height: Float[np.ndarray, "merges"]
    """Rises."""


class _Forest:
    """Disjoint sets with path halving."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def root(self, member: int) -> int:
        parent = self.parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member


def small_segments(
    count: int,
    first: Int[np.ndarray, "pairs"],
    second: Int[np.ndarray, "pairs"],
    cost: Float[np.ndarray, "pairs"],
    scale: float,
    least: int,
) -> Int[np.ndarray, "points"]:
    """Return the segment of each of `count` points, numbered from 0; `scale` is k.

    Segments of fewer than `least` points join the neighbour that costs least.
    """
    graph = coo_matrix((cost + COST_FLOOR, (first, second)), shape=(count, count))
    tree = minimum_spanning_tree(graph.tocsr()).tocoo()
    order = np.argsort(tree.data, kind="stable")
    forest, size, limit = _Forest(count), [1] * count, [scale] * count
    refused = []
    for i, j, w in zip(tree.row[order].tolist(), tree.col[order].tolist(), tree.data[order].tolist(), strict=True):
        a, b = forest.root(i), forest.root(j)
        if w <= limit[a] and w <= limit[b]:
            forest.parent[b] = a
            size[a] += size[b]
            limit[a] = w + scale / size[a]
        else:
            refused.append((a, b))
    for i, j in refused:
        a, b = forest.root(i), forest.root(j)
        if min(size[a], size[b]) < least:
            forest.parent[b] = a
            size[a] += size[b]
    roots = np.array([forest.root(i) for i in range(count)])
    return np.unique(roots, return_inverse=True)[1]


class _Growing:
    """Segments while they merge: boundary, size, look and name of each; a merged one is added at the end."""

    def __init__(self, boundary: list[Boundary], size: list[int], look: list[Float[np.ndarray, "features"]]) -> None:
        self.boundary: list[Boundary | None] = [*boundary]
        self.size, self.look, self.name = size, look, list(range(len(size)))

    def join(self, a: int, b: int) -> int:
        """Merge two and return their number."""
        merged, size = len(self.size), self.size[a] + self.size[b]
        self.look.append((self.look[a] * self.size[a] + self.look[b] * self.size[b]) / size)
        self.size.append(size)
        self.name.append(self.name[a])
        joined: Boundary = {}
        for part in (a, b):
            for other, (total, pairs) in (self.boundary[part] or {}).items():
                if other not in (a, b):
                    before = joined.get(other, (0.0, 0))
                    joined[other] = (before[0] + total, before[1] + pairs)
        for other, edge in joined.items():
            theirs = self.boundary[other]
            assert theirs is not None
            theirs.pop(a, None)
            theirs.pop(b, None)
            theirs[merged] = edge
        self.boundary.append(joined)
        self.boundary[a] = self.boundary[b] = None
        return merged


def merge_tree(
    segment: Int[np.ndarray, "points"],
    first: Int[np.ndarray, "pairs"],
    second: Int[np.ndarray, "pairs"],
    cost: Float[np.ndarray, "pairs"],
    looks: Float[np.ndarray, "points features"],
    look_weight: float,
    full: float,
) -> MergeTree:
    """Return the order in which segments merge.

    Segments without a common boundary never merge.

    Args:
        segment: of each point, numbered from 0.
        first: one point of each pair that is near enough to be a boundary.
        second: the other one.
        cost: w of each pair.
        looks: φ of each point.
        look_weight: μ.
        full: size in points from which on a segment's boundary counts whole.
    """
    count = int(segment.max()) + 1
    look = list(means(looks, segment, count))
    growing = _Growing(
        _boundaries(segment, first, second, cost, count), np.bincount(segment, minlength=count).tolist(), look
    )

    def height(a: int, b: int, edge: tuple[float, int]) -> float:
        unlike = float(np.square(look[a] - look[b]).sum()) / 2
        small = min(1.0, min(growing.size[a], growing.size[b]) / full)
        return (edge[0] / edge[1] + look_weight * unlike) * small**0.5

    waiting = [
        (height(a, b, edge), a, b) for a in range(count) for b, edge in (growing.boundary[a] or {}).items() if a < b
    ]
    heapq.heapify(waiting)
    merges, top = [], 0.0
    while waiting:
        found, a, b = heapq.heappop(waiting)
        if growing.boundary[a] is None or growing.boundary[b] is None:
            continue
        top = max(top, found)
        merges.append((growing.name[a], growing.name[b], top))
        merged = growing.join(a, b)
        for other, edge in (growing.boundary[merged] or {}).items():
            heapq.heappush(waiting, (height(merged, other, edge), merged, other))
    columns = np.array(merges, dtype=float).reshape(-1, 3).T
    return MergeTree(count, columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2])


def _boundaries(
    segment: Int[np.ndarray, "points"],
    first: Int[np.ndarray, "pairs"],
    second: Int[np.ndarray, "pairs"],
    cost: Float[np.ndarray, "pairs"],
    count: int,
) -> list[Boundary]:
    a, b = segment[first], segment[second]
    crosses = a != b
    flat, place = np.unique(np.minimum(a, b)[crosses] * count + np.maximum(a, b)[crosses], return_inverse=True)
    totals, pairs = np.bincount(place, cost[crosses]), np.bincount(place)
    found: list[Boundary] = [{} for _ in range(count)]
    for key, total, number in zip(flat.tolist(), totals.tolist(), pairs.tolist(), strict=True):
        low, high = divmod(key, count)
        found[low][high] = found[high][low] = (total, number)
    return found


def cut(tree: MergeTree, height: float) -> Int[np.ndarray, "segments"]:
    """Return the segment, numbered from 0, that each leaf belongs to when all merges up to a height are made."""
    made = tree.height <= height
    ones = np.ones(int(made.sum()))
    graph = coo_matrix((ones, (tree.first[made], tree.second[made])), shape=(tree.leaves, tree.leaves))
    return connected_components(graph, directed=False)[1]
