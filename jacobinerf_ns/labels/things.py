"""What clicks may mean, where a run knows how its scene comes apart: the segments around them that are things.

Letters of `core/persistence.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from jacobinerf_ns.core.partition import UNKNOWN, Partition, leaves_at
from jacobinerf_ns.core.persistence import members, stages
from jacobinerf_ns.core.plateaus import Thing
from jacobinerf_ns.labels.snapshot import LabelSnapshot


class Parts(NamedTuple):
    """A scene taken apart, and the leaf of each of some random pixels in it."""

    partition: Partition
    leaves: Int[np.ndarray, "pixels"]


def things_meant(snapshot: LabelSnapshot, hits: Sequence[Tensor], parts: Parts) -> list[list[Thing]]:
    """Return what each label may be meant to select; nothing for one with seeds of many pixels, which say it.

    Args:
        snapshot: the labels, and where their seeds are.
        hits: of each seed, which of its rays count.
        parts: the scene.
    """
    places = np.array([mark.point for mark in snapshot.marks], dtype=np.float64).reshape(-1, 3)
    leaves = leaves_at(places, parts.partition).tolist()
    sizes = np.bincount(parts.partition.leaves, minlength=parts.partition.tree.leaves)
    found = []
    for label in snapshot.labels:
        own = [place for place, mark in enumerate(snapshot.marks) if mark.seed.label == label.id and mark.hit]
        yes, no = ([place for place in own if snapshot.marks[place].seed.negative is said] for said in (False, True))
        known = [leaves[place] for place in yes if leaves[place] != UNKNOWN]
        clicked = all(len(hits[place]) == 1 for place in yes)
        found.append(_meant(known if clicked else [], [leaves[place] for place in no], parts, sizes))
    return found


def _meant(yes: list[int], no: list[int], parts: Parts, sizes: Int[np.ndarray, "segments"]) -> list[Thing]:
    """Return the things that hold leaves with clicks, and none with one that says "not this"."""
    tree, meant = parts.partition.tree, []
    for stage in stages(tree, sizes, yes):
        inside = members(tree, yes, stage.height)
        if not any(leaf != UNKNOWN and inside[leaf] for leaf in no):
            meant.append(Thing((parts.leaves != UNKNOWN) & inside[parts.leaves], stage.score))
    return meant
