"""How long what was clicked lasts in a tree of parts and wholes: which of its segments are things.

Letters: h a height of the tree, N_h the union of the segments that hold seeds at h, |N_h| its points, b and d the
    heights between which N_h hardly changes, from its birth to its death.

As the tree is cut higher, the segment of a click grows from a patch to a part, a thing, a corner of the room. Between
two things that merge lies a boundary that much parts, so that a thing stays what it is over a wide range of heights
(persistence; Edelsbrunner, Letscher and Zomorodian, 2002). Heights are ratios of costs, so ranges are too:
    score = log(d / b) − pull · (½ log(b·d) − log typical)²
A few points more are no other thing: d is where |N_h| first exceeds `SAME` times what it was at b, and N_h that of just
below d.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jacobinerf_ns.core.segments import MergeTree, cut

TYPICAL, PULL = 0.65, 1.0
"""Height around which things are born and die, and what it costs to be far from it. 0.6 to 0.8 and 0.75 to 1.5 select
about the same."""
SAME = 1.2
"""Growth up to which a segment is the same thing."""
LOWEST, HIGHEST = 0.14, 4.0
"""Heights that births and deaths are taken at where they are lower or higher: there all is noise."""


class Stage(NamedTuple):
    """One of the things that seeds can mean."""

    height: float
    """Of the tree: cut here, the segments that hold the seeds are the thing."""
    score: float
    """How much it is one."""


def stages(tree: MergeTree, sizes: Int[np.ndarray, "segments"], seeded: Sequence[int]) -> list[Stage]:
    """Return what seeds can mean, from part to whole; nothing where nothing is known to merge.

    Args:
        tree: order in which segments merge.
        sizes: points of each leaf.
        seeded: leaves that hold seeds.
    """
    if not len(tree.height) or not len(seeded):
        return []
    births, grown = _growth(tree, sizes, seeded)
    deaths = [*births[1:], np.inf]
    found: dict[float, float] = {}
    for birth, size in zip(births, grown, strict=True):
        last = int(np.searchsorted(grown, SAME * size, side="right")) - 1
        low, high = np.clip([birth, deaths[last]], LOWEST, HIGHEST)
        if high > low:
            middle = 0.5 * np.log(low * high)
            score = np.log(high / low) - PULL * (middle - np.log(TYPICAL)) ** 2
            found[births[last]] = max(float(score), found.get(births[last], -np.inf))
    return [Stage(*stage) for stage in found.items()]


def _growth(
    tree: MergeTree, sizes: Int[np.ndarray, "segments"], seeded: Sequence[int]
) -> tuple[list[float], list[int]]:
    """Return the heights at which the segments that hold seeds grow, and their points from there on."""
    inside = np.zeros(tree.leaves, dtype=bool)
    inside[list(seeded)] = True
    size = sizes.tolist()
    births, grown = [0.0], [int(sizes[inside].sum())]
    for first, second, height in zip(tree.first.tolist(), tree.second.tolist(), tree.height.tolist(), strict=True):
        if inside[first] != inside[second]:
            gained = size[second] if inside[first] else size[first]
            if height > births[-1]:
                births.append(height)
                grown.append(grown[-1])
            grown[-1] += gained
        inside[first] |= inside[second]
        size[first] += size[second]
    return births, grown


def members(tree: MergeTree, seeded: Sequence[int], height: float) -> Bool[np.ndarray, "segments"]:
    """Return which leaves are in N_h."""
    segment = cut(tree, height)
    return np.isin(segment, segment[list(seeded)])
