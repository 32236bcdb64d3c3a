"""Nearest neighbours both ways, label cosines, margins and confidence: against slow loops and by hand."""

import pytest
import torch
import torch.nn.functional as F

from jacobinerf_ns.core import matching
from jacobinerf_ns.core.matching import UNLABELLED


def some(count: int, seed: int, dims: int = 5) -> torch.Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("chunk", [1, 7, 2048])
def test_mutual_nearest_neighbours_against_a_slow_loop(monkeypatch, chunk):
    monkeypatch.setattr(matching, "_CHUNK", chunk)
    first, second = some(30, seed=0), some(40, seed=1)
    expected = []
    for i, a in enumerate(first):
        j = max(range(len(second)), key=lambda j: cosine(a, second[j]))
        if max(range(len(first)), key=lambda i: cosine(first[i], second[j])) == i:
            expected.append((i, j))
    pairs, cosines = matching.mutual_nearest(first, second)
    assert 0 < len(expected) < 30
    assert [tuple(pair) for pair in pairs.tolist()] == expected
    slow = [cosine(first[i], second[j]) for i, j in expected]
    torch.testing.assert_close(cosines, torch.tensor(slow))


def test_mutual_nearest_neighbours_by_hand():
    first = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 5.0]])
    second = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    pairs, cosines = matching.mutual_nearest(first, second)
    assert pairs.tolist() == [[0, 1], [2, 0]]  # pixel 1 wants [2, 0] too, and is not wanted back
    assert cosines.tolist() == pytest.approx([1.0, 1.0])


def test_a_permuted_and_scaled_set_finds_itself():
    vectors, order = some(25, seed=2), torch.randperm(25, generator=torch.Generator().manual_seed(3))
    pairs, cosines = matching.mutual_nearest(vectors, 7.0 * vectors[order])
    assert torch.equal(order[pairs[:, 1]], pairs[:, 0])
    assert len(pairs) == 25
    assert float(cosines.min()) == pytest.approx(1.0)


def test_label_cosines_are_those_of_the_best_prototype():
    features, prototypes, labels = some(9, seed=4), some(6, seed=5), torch.tensor([2, 0, 0, 2, 2, 0])
    found = matching.label_cosines(features, prototypes, labels, num_labels=3)
    for i, feature in enumerate(features):
        for k in (0, 2):
            best = max(cosine(feature, prototypes[g]) for g in range(6) if int(labels[g]) == k)
            assert float(found[i, k]) == pytest.approx(best, abs=1e-6)
    assert (found[:, 1] == -1.0).all()  # a label without prototypes


@pytest.mark.parametrize("chunk", [4, 2048])
def test_labels_back_are_the_majority_of_the_nearest(monkeypatch, chunk):
    monkeypatch.setattr(matching, "_CHUNK", chunk)
    features, others = some(11, seed=6), some(30, seed=7)
    labels = torch.randint(UNLABELLED, 3, (30,), generator=torch.Generator().manual_seed(8))
    found = matching.label_back(features, others, labels, num_labels=3, neighbours=5)
    for feature, label in zip(features, found.tolist(), strict=True):
        order = sorted(range(30), key=lambda j: -cosine(feature, others[j]))
        votes = [int(labels[j]) for j in order[:5]]
        assert votes.count(label) == max(votes.count(other) for other in votes)
    assert UNLABELLED in found.tolist()
    assert set(found.tolist()) - {UNLABELLED}
    one = matching.label_back(features, others, labels, num_labels=3, neighbours=1)
    assert torch.equal(one, labels[matching.nearest(features, others).index])
    assert len(matching.label_back(features, others[:3], labels[:3], 3)) == 11  # fewer than vote


def test_margins_by_hand():
    cosines = torch.tensor([[0.9, 0.5, -0.2], [0.3, 0.3, 0.1], [0.4, -0.5, -0.6]])
    expected = torch.tensor([[0.4, -0.4, -1.1], [0.0, 0.0, -0.2], [0.4, -0.9, -1.0]])
    torch.testing.assert_close(matching.margins(cosines), expected)
    alone = torch.tensor([[0.7], [-0.1]])
    assert torch.equal(matching.margins(alone), alone)


def test_confidence_by_hand():
    """Two of four pixels count. Label 0: margins 0.6, 0.2 of 0.8 at home, one of two leads back. Label 1: absent."""
    found = torch.tensor([[0.6, -0.6], [0.2, -0.2], [-0.9, -0.1], [-0.5, -0.3]])
    own = torch.tensor([[0.8, -0.8], [0.8, -0.8], [-0.4, 0.5], [0.1, 0.3], [0.0, 0.0]])
    match = matching.match_labels(found, own, torch.tensor([0, UNLABELLED, 1, 1]), count=2)
    assert match.margin.tolist() == pytest.approx([0.4, -0.15])
    assert match.own_margin.tolist() == pytest.approx([0.8, 0.4])
    assert match.returned.tolist() == pytest.approx([0.5, 0.5])
    assert match.confidence.tolist() == pytest.approx([0.5 * 0.5, 0.0])


def test_confidence_is_one_at_home_and_never_more():
    own = torch.tensor([[0.5], [0.4]])
    back = torch.tensor([0, 0])
    assert matching.match_labels(own, own, back, 2).confidence.item() == 1.0
    assert matching.match_labels(2 * own, own, back, 2).confidence.item() == 1.0
    assert matching.match_labels(own, own, back, 20).confidence.item() == 1.0  # fewer pixels than asked for


def test_spread_points_lie_far_apart():
    """On a line 0..10 in steps of 1, from 2: the far end, then the near end, then the middle of the largest gap."""
    line = torch.tensor([2.0, 0, 1, 3, 4, 5, 6, 7, 8, 9, 10])[:, None]
    chosen = matching.spread_out(line, 4)
    assert line[chosen, 0].tolist() == [2.0, 10.0, 6.0, 0.0]
    assert matching.spread_out(line, 50).tolist() == list(range(11))
    assert matching.spread_out(line[:0], 4).tolist() == []
