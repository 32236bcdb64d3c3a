"""What lasts in a tree: by hand, and what holds for all trees; and what clicks mean by it."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from jacobinerf_ns.annotations.schema import Click, Label
from jacobinerf_ns.core.partition import Partition
from jacobinerf_ns.core.persistence import HIGHEST, LOWEST, PULL, TYPICAL, members, stages
from jacobinerf_ns.core.plateaus import ALIKE, SMALL, Thing, consensus, find_plateaus
from jacobinerf_ns.core.propagation import Prototypes
from jacobinerf_ns.core.segments import MergeTree, cut
from jacobinerf_ns.labels.snapshot import LabelSnapshot, Mark
from jacobinerf_ns.labels.things import Parts, things_meant


def tree_of(merges: list[tuple[int, int, float]], leaves: int) -> MergeTree:
    first, second, height = np.array(merges).T
    return MergeTree(leaves, first.astype(int), second.astype(int), height)


# A head of two patches, a speck on it, its board, and a wall of two parts.
HEAD = tree_of([(0, 1, 0.2), (4, 5, 0.25), (0, 2, 0.3), (0, 3, 1.2), (0, 4, 2.0)], 6)
SIZES = np.array([50, 50, 2, 60, 500, 400])


def score(low: float, high: float) -> float:
    return np.log(high / low) - PULL * (np.log(low * high) / 2 - np.log(TYPICAL)) ** 2


def test_the_stages_of_a_click():
    found = stages(HEAD, SIZES, [0])
    # The speck makes no other thing of the head: it is born at 0.2, and lasts until it has a board.
    assert [stage.height for stage in found] == [0.0, 0.3, 1.2, 2.0]
    expected = [score(LOWEST, 0.2), score(0.2, 1.2), score(1.2, 2.0), score(2.0, HIGHEST)]
    assert [stage.score for stage in found] == pytest.approx(expected)
    head = members(HEAD, [0], found[1].height)
    assert np.flatnonzero(head).tolist() == [0, 1, 2]


def test_clicks_on_two_things_mean_both():
    found = stages(HEAD, SIZES, [0, 4])
    assert [int(SIZES[members(HEAD, [0, 4], stage.height)].sum()) for stage in found] == [600, 1062]


def test_where_nothing_is_known_nothing_is_meant():
    assert stages(HEAD, SIZES, []) == []
    none = MergeTree(6, np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    assert stages(none, SIZES, [0]) == []


@pytest.mark.parametrize("seed", range(10))
def test_stages_grow_and_are_segments_of_the_tree(seed: int):
    rng = np.random.default_rng(seed)
    leaves, alive, merges, height = 30, list(range(30)), [], 0.0
    while len(alive) > 1:
        a, b = rng.choice(len(alive), 2, replace=False)
        height += rng.exponential(0.05)
        merges.append((alive[a], alive[b], height))
        del alive[b]
    tree, sizes = tree_of(merges, leaves), rng.integers(1, 40, leaves)
    seeded = rng.choice(leaves, 2, replace=False).tolist()
    found = stages(tree, sizes, seeded)
    held = [members(tree, seeded, stage.height) for stage in found]
    assert len(found) >= 1
    assert len({stage.height for stage in found}) == len(found)
    for stage, inside in zip(found, held, strict=True):
        segment = cut(tree, stage.height)
        assert inside[seeded].all()
        assert set(segment[inside]).isdisjoint(segment[~inside])
    order = np.argsort([stage.height for stage in found])
    for less, more in pairwise(order):
        assert (held[less] <= held[more]).all()
        assert sizes[held[less]].sum() < sizes[held[more]].sum()


def one_to(count: int) -> np.ndarray:
    return np.arange(1000) < count


def test_what_most_trees_find_is_a_thing_and_what_one_finds_is_less():
    trees = [
        [Thing(one_to(100), 2.0), Thing(one_to(500), 0.1)],
        [Thing(one_to(95), 1.0), Thing(one_to(20), 0.3)],
        [Thing(one_to(500), 3.0)],
        [Thing(one_to(105), 1.5)],
        [],
    ]
    found = consensus(trees)
    # The head that most trees find comes before the corner of the room that one of them thinks much of; nothing twice.
    head, *others = (int(thing.members.sum()) for thing in found)
    assert 95 <= head <= 105
    assert others == [500, 20]
    for thing in found:
        size, votes = int(thing.members.sum()), []
        for tree in trees:
            others = [(float(other.score), int(other.members.sum())) for other in tree]
            votes.append(max([0.0, *(score + ALIKE * np.log(min(n, size) / max(n, size)) for score, n in others)]))
        assert thing.score == pytest.approx(np.mean(sorted(votes)[-3:]), abs=1e-6)
    # In any order of trees, and alone a tree says what it says.
    again = consensus(trees[::-1])
    assert [thing.score for thing in again] == pytest.approx([thing.score for thing in found])
    assert consensus(trees[:1]) == trees[0]
    assert consensus([[], []]) == []


def test_the_natural_level_is_that_of_the_likeliest_thing():
    responses = torch.cat([torch.full((20,), 1.0), torch.full((40,), 0.6), torch.full((940,), 0.1)])
    part, whole = np.arange(1000) < 20, np.arange(1000) < 60
    for likely, size in ((part, 20), (whole, 60)):
        found = find_plateaus(responses, [Thing(likely, 3.0), Thing(part, 1.0), Thing(whole, 1.0)])
        assert [int((responses >= level).sum()) for level in found.levels] == [20, 60]
        assert int((responses >= found.levels[found.natural]).sum()) == size
    # One that hardly lasts says more than a histogram all the same.
    weak = find_plateaus(responses, [Thing(whole, -3.0)])
    assert int((responses >= weak.levels[weak.natural]).sum()) == 60
    assert [int((responses >= level).sum()) for level in weak.levels] == [20, 60]
    # A thing that the field knows nothing of changes nothing, and neither do the scene as a whole and a few pixels.
    other, scene, few = np.arange(1000) > 700, np.ones(1000, bool), np.arange(1000) < 3
    unknown = [Thing(other, 5.0), Thing(scene, 5.0), Thing(few, 5.0)]
    without, found = find_plateaus(responses), find_plateaus(responses, unknown)
    assert found.natural == without.natural
    assert [int((responses >= level).sum()) for level in found.levels] == [20, 60]
    assert [int((responses >= level).sum()) for level in without.levels] == [20, 60]


def test_of_two_that_are_as_much_things_the_smaller_is_meant():
    # Both are selected at the same distance from the usual level, and as well.
    responses = torch.cat([torch.full((30,), 0.88), torch.full((270,), 0.74), torch.full((700,), 0.58)])
    picture, wall = np.arange(1000) < 30, np.arange(1000) < 300
    for more, expected in ((0.0, 30), (0.9 * SMALL, 30), (3.0 * SMALL, 300)):
        found = find_plateaus(responses, [Thing(picture, 1.0), Thing(wall, 1.0 + more)])
        assert int((responses >= found.levels[found.natural]).sum()) == expected


def test_things_of_one_level_are_likelier_together():
    responses = torch.cat([torch.full((20,), 0.9), torch.full((40,), 0.75), torch.full((940,), 0.4)])
    part, whole, most = (np.arange(1000) < size for size in (20, 60, 58))

    def selected(*things: Thing) -> int:
        found = find_plateaus(responses, things)
        return int((responses >= found.levels[found.natural]).sum())

    assert selected(Thing(part, 1.5), Thing(whole, 2.32)) == 20
    assert selected(Thing(part, 1.5), Thing(whole, 2.32), Thing(most, 2.38)) == 60
    assert selected(Thing(part, 2.5), Thing(whole, 2.32), Thing(most, 2.38)) == 20


def parts() -> Parts:
    """Six leaves in a row, one point each, a cell apart."""
    points = np.stack([np.arange(6.0), np.zeros(6), np.zeros(6)], axis=1).repeat(SIZES, axis=0)
    leaves = np.arange(6).repeat(SIZES)
    found = Partition(points, leaves, cut(HEAD, 0.2)[None], 0.1, HEAD, facing=np.zeros((6, 3)))
    return Parts(found, np.array([0, 1, 2, 3, 4, 5, -1]))


def meant(*clicks: tuple[float, bool], rays: int = 1) -> list[list[int]]:
    """Things that clicks at these places (negative or not) may mean, as the leaves of the pixels in them."""
    marks = tuple(
        Mark(Click(label=1, image="a.png", width=9, height=9, pixel=(k, 0), negative=no), (x, 0.0, 0.0), True)
        for k, (x, no) in enumerate(clicks)
    )
    empty = Prototypes(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool(), torch.zeros(0))
    snapshot = LabelSnapshot((Label(id=1, name="head", colour=(1, 2, 3)),), empty, marks=marks)
    (things,) = things_meant(snapshot, [torch.ones(rays, dtype=torch.bool) for _ in marks], [parts()])
    return [np.flatnonzero(thing.members).tolist() for thing in things]


def test_a_click_means_what_holds_it_and_no_not_this():
    assert meant((0.0, False)) == [[0], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert meant((0.0, False), (3.0, True)) == [[0], [0, 1, 2]]
    assert meant((0.0, False), (0.0, True)) == []
    # No surface is known there; and a region says itself what it means.
    assert meant((77.0, False)) == []
    assert meant((0.0, False), rays=30) == []
