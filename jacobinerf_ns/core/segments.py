"""Parts and wholes of anything whose neighbours are known: small segments, and the tree in which they merge.

Letters: i and j two points that are neighbours, w_ij what it costs to cross between them, S and T segments, |S| points
    of one, W_ST sum of the costs of all pairs between S and T, M_ST number of these pairs, J_ST pairs that there would
    be if nothing jumped where views see one of the two before the other, φ_S [features] mean look of the points of S,
    λ_k variances of its points along its own axes, in cells², λ_3 the smallest; γ, c and μ weights of crossings, jumps
    and looks, β share of μ for bodies.

Small segments (Felzenszwalb and Huttenlocher, IJCV 2004): pairs in the order of their costs join two segments while
    w_ij ≤ min(h_S + k/|S|, h_T + k/|T|),   h_S the largest cost that joined S.
Only pairs of the minimum spanning tree can join anything, so others are never looked at.
The tree: of all neighbours S, T those merge first that nothing parts and that look alike,
    height_ST = (γ·W_ST / M_ST + c·s⁴ + μ_R·‖φ_S − φ_T‖² / 2) · √min(1, |R| / full),
    s = J_ST / (M_ST / CLEAR + J_ST),   R the smaller of the two,
small ones before large ones. What stands before another thing, and touches it hardly, has s near 1. A snout hides a
part of the throat too, and is one with it: hence the fourth power.
    μ_R = μ·(β + (1 − β)·flat_R),   flat_R = exp(−max(λ_3 − 1, 0) / (λ_2·BODY²))
What is flat and of another colour is a thing of its own, since nothing else could tell a rug from the floor; on a body
another colour is a marking. One cell² of λ_3 is what the grid itself adds.
Heights are made to rise; a cut at any height gives a segmentation, and a higher one merges segments of a lower one:
parts and wholes.
"""

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from jacobinerf_ns.core.silhouettes import Outlines
from jacobinerf_ns.core.surfaces import means

CLEAR = 3.0
"""Times that more is to touch than to jump where two segments are as much one thing as two."""
BODY = 0.4
"""Thickness, as a share of the second longest extent, from which on a segment is a body more than a plane."""
TINY = 1e-9
COST_FLOOR = 1e-9
"""Added to costs in the spanning tree: scipy takes a zero for no pair at all."""


class Weights(NamedTuple):
    """What parts two segments."""

    bend: float
    """γ."""
    jump: float
    """c."""
    look: float
    """μ."""
    body_share: float
    """β, 0..1."""
    full: float
    """Size in points from which on a segment's boundary counts whole."""


class Meeting(NamedTuple):
    """What lies between two segments."""

    cost: float = 0.0
    """W."""
    pairs: int = 0
    """M; segments without any never merge."""
    jumps: float = 0.0
    """J."""


Boundary = dict[int, Meeting]
"""Of a segment: how it meets each neighbour."""


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
    """Segments while they merge: boundary, size, look, shape and name of each; a merged one is added at the end."""

    def __init__(
        self,
        boundary: list[Boundary],
        size: list[int],
        look: list[Float[np.ndarray, "features"]],
        moments: Float[np.ndarray, "segments 4 4"],
    ) -> None:
        """`moments` are sums of (1, x, y, z)ᵀ(1, x, y, z) over the points of each segment, in cells."""
        self.boundary: list[Boundary | None] = [*boundary]
        self.size, self.look, self.name = size, look, list(range(len(size)))
        self.moments, self.flat = list(moments), flatness(moments).tolist()

    def join(self, a: int, b: int) -> int:
        """Merge two and return their number."""
        merged, size = len(self.size), self.size[a] + self.size[b]
        self.look.append((self.look[a] * self.size[a] + self.look[b] * self.size[b]) / size)
        self.size.append(size)
        self.name.append(self.name[a])
        self.moments.append(self.moments[a] + self.moments[b])
        self.flat.append(float(flatness(self.moments[merged])))
        joined: Boundary = {}
        for part in (a, b):
            for other, meeting in (self.boundary[part] or {}).items():
                if other not in (a, b):
                    cost, pairs, jumps = joined.get(other, Meeting())
                    joined[other] = Meeting(cost + meeting.cost, pairs + meeting.pairs, jumps + meeting.jumps)
        for other, meeting in joined.items():
            theirs = self.boundary[other]
            assert theirs is not None
            theirs.pop(a, None)
            theirs.pop(b, None)
            theirs[merged] = meeting
        self.boundary.append(joined)
        self.boundary[a] = self.boundary[b] = None
        return merged

    def height(self, a: int, b: int, weights: Weights) -> float:
        """Return at which height two neighbours merge."""
        meeting = (self.boundary[a] or {})[b]
        smaller = a if self.size[a] < self.size[b] else b
        jumps = meeting.jumps / (meeting.pairs / CLEAR + meeting.jumps)
        look = weights.look * (weights.body_share + (1 - weights.body_share) * self.flat[smaller])
        unlike = float(np.square(self.look[a] - self.look[b]).sum()) / 2
        between = weights.bend * meeting.cost / meeting.pairs + weights.jump * jumps**4 + look * unlike
        return between * min(1.0, self.size[smaller] / weights.full) ** 0.5

    def mergeable(self, a: int) -> list[int]:
        """Return the neighbours that a segment touches."""
        return [other for other, meeting in (self.boundary[a] or {}).items() if meeting.pairs]


def flatness(moments: Float[np.ndarray, "*segments 4 4"]) -> Float[np.ndarray, "*segments"]:
    """Return flat_S from the sums of (1, x, y, z)ᵀ(1, x, y, z) over the points of S, in cells: 1 for what is flat."""
    count, total = moments[..., :1, :1], moments[..., :1, 1:]
    middle = total / count
    variances = np.linalg.eigvalsh(moments[..., 1:, 1:] / count - middle.swapaxes(-1, -2) * middle)
    return np.exp(-np.maximum(variances[..., 0] - 1, 0) / np.maximum(variances[..., 1] * BODY**2, TINY))


def merge_tree(
    segment: Int[np.ndarray, "points"],
    first: Int[np.ndarray, "pairs"],
    second: Int[np.ndarray, "pairs"],
    cost: Float[np.ndarray, "pairs"],
    points: Float[np.ndarray, "points 3"],
    looks: Float[np.ndarray, "points features"],
    seen: Outlines,
    weights: Weights,
) -> MergeTree:
    """Return the order in which segments merge.

    Segments without a common boundary never merge.

    Args:
        segment: of each point, numbered from 0.
        first: one point of each pair that is near enough to be a boundary.
        second: the other one.
        cost: w of each pair.
        points: in cells.
        looks: φ of each point.
        seen: how segments meet in views.
        weights: γ, c, μ, β and the full size.
    """
    count = int(segment.max()) + 1
    homogeneous = np.concatenate([np.ones((len(points), 1)), points - points.mean(0)], axis=1)
    squares = (homogeneous[:, :, None] * homogeneous[:, None, :]).reshape(-1, 16)
    size = np.bincount(segment, minlength=count)
    growing = _Growing(
        _boundaries(segment, first, second, cost, seen),
        size.tolist(),
        list(means(looks, segment, count)),
        (means(squares, segment, count) * size[:, None]).reshape(-1, 4, 4),
    )
    waiting = [(growing.height(a, b, weights), a, b) for a in range(count) for b in growing.mergeable(a) if a < b]
    heapq.heapify(waiting)
    merges, top = [], 0.0
    while waiting:
        found, a, b = heapq.heappop(waiting)
        if growing.boundary[a] is None or growing.boundary[b] is None:
            continue
        top = max(top, found)
        merges.append((growing.name[a], growing.name[b], top))
        merged = growing.join(a, b)
        for other in growing.mergeable(merged):
            heapq.heappush(waiting, (growing.height(merged, other, weights), merged, other))
    columns = np.array(merges, dtype=float).reshape(-1, 3).T
    return MergeTree(count, columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2])


def _boundaries(
    segment: Int[np.ndarray, "points"],
    first: Int[np.ndarray, "pairs"],
    second: Int[np.ndarray, "pairs"],
    cost: Float[np.ndarray, "pairs"],
    seen: Outlines,
) -> list[Boundary]:
    count = int(segment.max()) + 1
    a, b = segment[first], segment[second]
    crosses = a != b
    flat, place = np.unique(np.minimum(a, b)[crosses] * count + np.maximum(a, b)[crosses], return_inverse=True)
    totals, pairs = np.bincount(place, cost[crosses]), np.bincount(place)
    found: list[Boundary] = [{} for _ in range(count)]
    for key, total, number in zip(flat.tolist(), totals.tolist(), pairs.tolist(), strict=True):
        low, high = divmod(key, count)
        found[low][high] = found[high][low] = Meeting(total, number)
    # Views show a border many times: as often as they show those that touch, and those are known in pairs too.
    scale = pairs.sum() / max(int(seen.touching.sum()), 1)
    for low, high, jumps in zip(seen.first.tolist(), seen.second.tolist(), seen.jumping.tolist(), strict=True):
        if jumps:
            meeting = found[low].get(high, Meeting())
            found[low][high] = found[high][low] = meeting._replace(jumps=scale * jumps)
    return found


def cut(tree: MergeTree, height: float) -> Int[np.ndarray, "segments"]:
    """Return the segment, numbered from 0, that each leaf belongs to when all merges up to a height are made."""
    made = tree.height <= height
    ones = np.ones(int(made.sum()))
    graph = coo_matrix((ones, (tree.first[made], tree.second[made])), shape=(tree.leaves, tree.leaves))
    return connected_components(graph, directed=False)[1]
