"""What clicks may mean, where a run knows how its scene comes apart: the segments around them that are things.

Letters of `core/persistence.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.core.partition import UNKNOWN, Partition, leaves_at
from jacobinerf_ns.core.persistence import members, stages
from jacobinerf_ns.core.plateaus import Thing, consensus
from jacobinerf_ns.labels.snapshot import LabelSnapshot


class Parts(NamedTuple):
    """A scene taken apart, and the leaf of each of some random pixels in it."""

    partition: Partition
    leaves: Int[np.ndarray, "pixels"]


def segments_at(points: Float[Tensor, "places 3"], parted: Sequence[Parts]) -> Int[Tensor, "places trees"]:
    """Return the leaf at each of some points in the scene, as often as it was taken apart; `UNKNOWN` at no surface."""
    places = points.detach().nan_to_num(0.0, 0.0, 0.0).double().cpu().numpy()
    return torch.from_numpy(np.stack([leaves_at(places, parts.partition) for parts in parted], axis=-1))


def things_meant(snapshot: LabelSnapshot, hits: Sequence[Tensor], parted: Sequence[Parts]) -> list[list[Thing]]:
    """Return what each label may be meant to select; nothing for one with seeds of many pixels, which say it.

    Args:
        snapshot: the labels, and where their seeds are.
        hits: of each seed, which of its rays count.
        parted: the scene, as often as it was taken apart.
    """
    places = np.array([mark.point for mark in snapshot.marks], dtype=np.float64).reshape(-1, 3)
    scenes = [_Scene(parts, leaves_at(places, parts.partition).tolist(), _sizes(parts.partition)) for parts in parted]
    found = []
    for label in snapshot.labels:
        own = [place for place, mark in enumerate(snapshot.marks) if mark.seed.label == label.id and mark.hit]
        yes, no = ([place for place in own if snapshot.marks[place].seed.negative is said] for said in (False, True))
        clicked = all(len(hits[place]) == 1 for place in yes)
        found.append(consensus([_meant(yes, no, scene) for scene in scenes]) if clicked else [])
    return found


class _Scene(NamedTuple):
    parts: Parts
    clicked: list[int]
    """Leaf at each mark."""
    sizes: Int[np.ndarray, "segments"]
    """Points of each leaf."""


def _sizes(partition: Partition) -> Int[np.ndarray, "segments"]:
    return np.bincount(partition.leaves, minlength=partition.tree.leaves)


def _meant(yes: list[int], no: list[int], scene: _Scene) -> list[Thing]:
    """Return the things that hold marks, and none with one that says "not this"."""
    tree, leaves, meant = scene.parts.partition.tree, scene.parts.leaves, []
    known = [scene.clicked[place] for place in yes if scene.clicked[place] != UNKNOWN]
    denied = [scene.clicked[place] for place in no if scene.clicked[place] != UNKNOWN]
    for stage in stages(tree, scene.sizes, known):
        inside = members(tree, known, stage.height)
        if not inside[denied].any():
            meant.append(Thing((leaves != UNKNOWN) & inside[leaves], stage.score))
    return meant
