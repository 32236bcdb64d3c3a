"""Prototypes, responses and decisions on cases small enough to know the answer."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from jacobinerf_ns.core import refinement
from jacobinerf_ns.core.jacobian import cosine_response
from jacobinerf_ns.core.partition import UNKNOWN
from jacobinerf_ns.core.propagation import (
    PAPER_CLIP,
    PAPER_PROPAGATION,
    PropagationConfig,
    Prototypes,
    Seeds,
    centre_shares,
    centres_fit,
    decide,
    decide_paper,
    kmeans,
    label_responses,
    select_prototypes,
    voters,
)
from jacobinerf_ns.evaluation.rivals import aggregator


def known(labels: list[int]) -> torch.Tensor:
    return torch.ones(len(labels), dtype=torch.bool)


def seeds(vectors: list[list[float]], labels: list[int], positive: list[bool] | None = None) -> Seeds:
    sign = known(labels) if positive is None else torch.tensor(positive)
    return Seeds(torch.tensor(vectors), torch.tensor(labels), sign, torch.ones(len(labels)))


def bundle(direction: torch.Tensor, count: int, spread: float, generator: torch.Generator) -> torch.Tensor:
    return F.normalize(direction + spread * torch.randn(count, len(direction), generator=generator), dim=-1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_mean_prototype_is_the_mean_gradient_of_its_label_only():
    found = select_prototypes(
        seeds([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]], [0, 0, 2]), PropagationConfig(prototypes="mean")
    )
    assert found.vectors.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert found.labels.tolist() == [0, 2]
    assert found.positive.all()


@pytest.mark.parametrize("kind", ["all", "mean", "kmeans", "adaptive"])
def test_negative_seeds_are_kept_apart_and_as_they_are(kind):
    found = select_prototypes(
        seeds([[1.0, 0.0], [0.0, 5.0], [0.9, 0.1]], [0, 0, 0], [True, False, True]), PropagationConfig(prototypes=kind)
    )
    assert found.vectors[~found.positive].tolist() == [[0.0, 5.0]]
    assert not (found.vectors[found.positive][:, 1] > 1).any()


@pytest.mark.parametrize("kind", ["all", "mean", "kmeans", "adaptive"])
def test_no_seeds_give_no_prototypes(kind):
    nothing = Seeds(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool(), torch.zeros(0))
    assert len(select_prototypes(nothing, PropagationConfig(prototypes=kind)).vectors) == 0


def test_kmeans_finds_directions_not_lengths(generator):
    axes = torch.eye(6)[:3]
    vectors = torch.cat([bundle(axis, 30, 0.05, generator) for axis in axes]) * torch.rand(90, 1, generator=generator)
    centres = kmeans(vectors, 3, generator)
    assert torch.allclose((centres @ axes.T).amax(0), torch.ones(3), atol=0.02)
    assert torch.allclose(centres.norm(dim=-1), torch.ones(3))


def test_kmeans_never_makes_more_centres_than_vectors(generator):
    assert len(kmeans(torch.eye(2), 5, generator)) == 2


def test_adaptive_keeps_the_best_round_not_the_last(generator):
    """More rounds can only segment the seeds better; the released code keeps the last round, which does not."""
    vectors = torch.cat([bundle(axis, 60, 0.6, generator) for axis in torch.eye(8)[:4]])
    labels = torch.arange(4).repeat_interleave(60)
    data = Seeds(vectors, labels, known(labels.tolist()), torch.ones(len(labels)))

    def score(rounds: int) -> float:
        config = PropagationConfig(prototypes="adaptive", clusters=2, rounds=rounds)
        chosen = select_prototypes(data, config)
        right = chosen.labels[cosine_response(vectors, chosen.vectors).argmax(-1)] == labels
        return float(right.float().mean())

    scores = [score(rounds) for rounds in (1, 4, 16)]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0]


def slow_label_responses(similarity, prototypes, num_labels):
    """Written from the sentence: best positive prototype, zero where a negative one is nearer."""
    rows = []
    for row in similarity.tolist():
        found = []
        for k in range(num_labels):
            mine = [(s, p) for s, l, p in zip(row, prototypes.labels.tolist(), prototypes.positive.tolist()) if l == k]  # noqa: B905, E741
            best = max([s for s, p in mine if p] + [0.0])
            worst = max([s for s, p in mine if not p] + [0.0])
            found.append(best if best >= worst else 0.0)
        rows.append(found)
    return torch.tensor(rows).clamp(0, 1)


def test_responses_equal_a_slow_loop(generator):
    labels, sign = torch.tensor([0, 0, 1, 1, 1, 3, 3, 0, 3]), torch.tensor([True] * 7 + [False] * 2)
    prototypes = Prototypes(torch.randn(9, 5, generator=generator), labels, sign, torch.ones(9))
    similarity = torch.rand(50, 9, generator=generator) * 1.8 - 0.8
    assert torch.allclose(
        label_responses(similarity, prototypes, 5), slow_label_responses(similarity, prototypes, 5), atol=1e-6
    )


def test_a_label_without_seeds_never_answers():
    prototypes = Prototypes(torch.eye(2), torch.tensor([0, 2]), known([0, 2]), torch.ones(len([0, 2])))
    assert label_responses(torch.tensor([[0.3, 0.6]]), prototypes, 3).tolist()[0] == pytest.approx([0.3, 0.0, 0.6])


def test_votes_overrule_a_stray_seed():
    prototypes = Prototypes(
        torch.zeros(6, 1), torch.tensor([0, 0, 0, 1, 1, 1]), known([0] * 6), torch.ones(len([0] * 6))
    )
    similarity = torch.tensor([[0.90, 0.89, 0.88, 0.91, 0.1, 0.1]])
    assert label_responses(similarity, prototypes, 2, neighbours=1).argmax() == 1
    voted = label_responses(similarity, prototypes, 2, neighbours=3)
    assert voted.argmax() == 0
    assert voted[0, 0] == pytest.approx(0.90)


def test_votes_count_by_the_area_that_was_marked():
    """Two labels look alike here; one mask was five times as large, and only some of its pixels were rendered."""
    prototypes = Prototypes(
        torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]), known([0] * 4), torch.tensor([5.0, 5.0, 1, 1])
    )
    similarity = torch.tensor([[0.90, 0.90, 0.92, 0.92]])
    assert label_responses(similarity, prototypes, 2, neighbours=2).argmax() == 1  # the two nearest are of one label
    equal = prototypes._replace(weights=torch.ones(4))
    assert label_responses(similarity, equal, 2, neighbours=1).argmax() == 1
    mixed = torch.tensor([[0.90, 0.10, 0.91, 0.10]])
    assert label_responses(mixed, prototypes, 2, neighbours=2).argmax() == 0
    assert label_responses(mixed, equal, 2, neighbours=2).argmax() == 1


def test_one_click_a_label_is_plain_nearest_prototype():
    one_each = Prototypes(torch.eye(4), torch.arange(4), known([0] * 4), torch.ones(len([0] * 4)))
    assert voters(one_each, 40) == 1
    many = Prototypes(torch.zeros(100, 2), torch.arange(2).repeat(50), known([0] * 100), torch.ones(len([0] * 100)))
    assert voters(many, 40) == 40


def test_decision_confidence_and_void_by_hand():
    config = PropagationConfig(threshold=0.7, temperature=0.1, void_below=0.5)
    found = decide(torch.tensor([[0.9, 0.2], [0.72, 0.71], [0.3, 0.1], [0.0, 0.0]]), config)
    share = torch.tensor([9.0, 2.0, 7.0]).exp()
    assert found.confidence[0] == pytest.approx(float(share[0] / share.sum()))
    assert found.labels.tolist() == [1, 0, 0, 0]  # sure; between two; nothing near; no response
    assert decide(torch.tensor([[0.3, 0.1]]), PropagationConfig()).labels.tolist() == [1]


def test_a_single_label_is_a_sigmoid_around_the_threshold():
    config = PropagationConfig(threshold=0.6, temperature=0.05)
    confidence = decide(torch.tensor([[0.6], [0.8], [0.4]]), config).confidence
    assert confidence.tolist() == pytest.approx([0.5, 1 / (1 + 2.718281828**-4), 1 / (1 + 2.718281828**4)], rel=1e-4)


def test_what_does_not_hang_together_with_its_seeds_is_unsure_and_void_where_a_label_is_alone():
    responses = torch.tensor([[0.9, 0.2], [0.9, 0.2]])
    connected = torch.tensor([[0.9, 0.2], [0.1, 0.2]])
    config = PropagationConfig(threshold=0.7, temperature=0.1)
    found = decide(responses, config, connected=connected)
    assert found.labels.tolist() == [1, 1]
    # Label 1 against label 2 and "none": e^1, e^2 and e^7 in the second row.
    shares = torch.tensor([[9.0, 2.0, 7.0], [1.0, 2.0, 7.0]]).softmax(-1)[:, 0]
    torch.testing.assert_close(found.confidence, shares)
    assert decide(responses, replace(config, void_below=0.5), connected=connected).labels.tolist() == [1, 0]
    assert decide(responses, config, alone=True, connected=connected).labels.tolist() == [1, 0]


def test_confidence_is_measured_against_the_winners_own_threshold():
    found = decide(torch.tensor([[0.6, 0.1], [0.1, 0.6]]), PropagationConfig(temperature=0.1), [0.6, 0.2])
    shares = torch.tensor([6.0, 1.0, 6.0]).exp(), torch.tensor([1.0, 6.0, 2.0]).exp()
    assert found.labels.tolist() == [1, 2]
    assert found.confidence.tolist() == pytest.approx([float(s.max() / s.sum()) for s in shares])


def test_a_label_alone_ends_at_its_threshold():
    responses = torch.tensor([[0.5], [0.4], [0.0]])
    assert decide(responses, PropagationConfig(), [0.5], alone=True).labels.tolist() == [1, 0, 0]
    assert decide(responses, PropagationConfig(), [0.5]).labels.tolist() == [1, 1, 0]
    assert decide(responses, PropagationConfig(), [0.0], alone=True).labels.tolist() == [1, 1, 0]


def test_decisions_without_labels_are_void():
    found = decide(torch.zeros(3, 0), PropagationConfig())
    assert found.labels.tolist() == [0, 0, 0]
    assert found.confidence.tolist() == [0.0, 0.0, 0.0]


def slow_paper_decision(responses):
    """The release's steps in loops: clip, 3x3 Gaussian with repeated borders, divide by maximum, absence, argmax."""
    height, width, count = responses.shape
    weights = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
    maps = torch.zeros(height, width, count)
    for k in range(count):
        clipped = responses[..., k].clamp(max=PAPER_CLIP)
        blurred = torch.zeros(height, width)
        for i in range(height):
            for j in range(width):
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        row, col = min(max(i + di, 0), height - 1), min(max(j + dj, 0), width - 1)
                        blurred[i, j] += weights[di + 1, dj + 1] * clipped[row, col]
        absent = blurred.std() < 0.05 and blurred.mean() < 0.01
        maps[..., k] = 0.0 if absent else blurred / blurred.max()
    return maps.argmax(-1) + 1


def test_paper_decision_equals_a_slow_loop(generator):
    responses = torch.rand(7, 9, 4, generator=generator)
    responses[..., 2] *= 0.001  # absent
    decided = decide_paper(responses)
    assert torch.equal(decided.labels, slow_paper_decision(responses))
    assert not (decided.labels == 3).any()


def test_paper_preset_is_the_release():
    paper = replace(PropagationConfig(), prototypes="mean", response="raw", exact=True, decision="paper")
    assert paper == PAPER_PROPAGATION
    assert PAPER_PROPAGATION.step == 0.1


def test_refinement_moves_a_shaded_click_to_its_entity_and_keeps_negatives(generator):
    floor, chair, lamp = torch.eye(12)[:3]
    scene = torch.cat([bundle(axis, 200, 0.05, generator) for axis in (floor, chair, lamp)])
    clicks = F.normalize(torch.stack([floor + 0.5 * torch.eye(12)[5], chair, lamp + 0.3 * floor]), dim=-1)
    start = Prototypes(3.0 * clicks, torch.tensor([0, 1, 0]), torch.tensor([True, True, False]), torch.ones(3))
    moved = refinement.refine_prototypes(start, scene, rounds=10)
    assert float(F.cosine_similarity(moved.vectors[0], floor, dim=0)) > 0.99
    assert float(F.cosine_similarity(start.vectors[0], floor, dim=0)) < 0.9
    assert torch.allclose(moved.vectors[2], start.vectors[2], atol=1e-6)  # a negative seed stays
    assert torch.allclose(moved.vectors.norm(dim=-1), start.vectors.norm(dim=-1))


def test_refinement_leaves_a_prototype_that_nothing_resembles():
    start = Prototypes(torch.eye(3)[:1], torch.tensor([0]), known([0]), torch.ones(len([0])))
    assert torch.equal(refinement.refine_prototypes(start, torch.eye(3)[1:], 5).vectors, start.vectors)


def test_refinement_ignores_pixels_between_two_labels():
    between = F.normalize(torch.tensor([[1.0, 0.98, 0.0]]), dim=-1).expand(50, -1)
    start = Prototypes(torch.eye(3)[:2], torch.tensor([0, 1]), known([0, 1]), torch.ones(len([0, 1])))
    assert torch.allclose(refinement.refine_prototypes(start, between, 5).vectors, start.vectors)


def test_a_label_of_few_pixels_is_not_outvoted_where_its_centre_speaks():
    angle = torch.tensor([0.0] * 10 + [0.3, 0.3])
    vectors = torch.stack([angle.cos(), angle.sin()], dim=-1)
    ones = torch.ones(12)
    marked = Prototypes(vectors, torch.tensor([0] * 10 + [1, 1]), ones.bool(), ones)
    centres = Prototypes(vectors[[0, -1]], torch.tensor([0, 1]), ones[:2].bool(), ones[:2])
    pixel = torch.tensor([[0.25], [0.02]])
    pixel = torch.cat([pixel.cos(), pixel.sin()], dim=-1)
    similarity = cosine_response(pixel, vectors)
    leaning = centre_shares(cosine_response(pixel, centres.vectors), centres, 2)
    assert torch.allclose(leaning.sum(-1), torch.ones(2))
    alone = label_responses(similarity, marked, 2, neighbours=6)
    helped = label_responses(similarity, marked, 2, neighbours=6, leaning=leaning)
    assert alone.argmax(-1).tolist() == [0, 0]
    assert float(helped[0, 1] / helped[0, 0]) > float(alone[0, 1] / alone[0, 0])
    assert helped[1].argmax() == 0


def test_centres_fit_labels_of_one_kind_and_not_those_of_many():
    marked = seeds([[1.0, 0.0, 0.0]] * 3 + [[0.0, 1.0, 0.0]] * 3, [0] * 3 + [1] * 3)
    centres = select_prototypes(marked, PropagationConfig(prototypes="mean"))
    assert centres_fit(centres, marked) == 1.0
    # Label 0 is red, green and blue: its mean is grey, and label 1, an olive, lies between red and green.
    motley = seeds([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, 0.6, 0.2]], [0, 0, 0, 1])
    centres = select_prototypes(motley, PropagationConfig(prototypes="mean"))
    assert centres_fit(centres, motley) == pytest.approx(1 / 3)


def test_a_place_says_what_its_segments_do_in_every_tree():
    vectors = torch.tensor([[2.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 1.0]])
    segments = torch.tensor([[0, 1], [0, UNKNOWN], [1, 0]])
    own = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 3.0], [0.0, 2.0, 0.0]])
    within = torch.tensor([[0, UNKNOWN], [UNKNOWN, 2], [1, 1]])  # nobody has seen segment 2 of the second tree
    found = refinement.over_segments(own, within, vectors, segments)
    half, quarter = 0.5**0.5, torch.tensor([0.5, 0.5, 0.5**0.5])
    assert torch.allclose(found[0], 3.0 * F.normalize(quarter, dim=0))  # mean of (1, 1, 0) / √2 and its own (0, 0, 1)
    assert torch.equal(found[1], own[1])
    assert torch.allclose(found[2], 2.0 * torch.tensor([half, 0.0, half]))
    assert not refinement.over_segments(own[:0], within[:0], vectors, segments).numel()


def test_what_seeds_tell_apart_is_no_segment():
    pixels = torch.tensor([[0, 0], [1, 0], [2, 1], [UNKNOWN, 1]])
    seeds_in, kinds = torch.tensor([[0, 0], [0, 0], [1, 1], [1, UNKNOWN], [UNKNOWN, 1]]), torch.tensor([3, 1, 3, 3, 3])
    expected = torch.tensor([[UNKNOWN, UNKNOWN], [1, UNKNOWN], [2, 1], [UNKNOWN, 1]])
    assert torch.equal(refinement.uncontested(pixels, seeds_in, kinds), expected)
    assert pixels[0].tolist() == [0, 0]


def test_a_pixel_is_smoothed_with_neighbours_of_its_own_kind():
    vectors = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    near = torch.tensor([[[3.0, 0.0], [0.0, 5.0]], [[1.0, 0.0], [0.0, 1.0]]])
    shares = refinement.alike_shares(vectors, near, temperature=0.5)
    e = torch.exp(torch.tensor(2.0))
    assert torch.allclose(shares[0], torch.stack([e, torch.tensor(1.0)]) / (1 + e))
    assert torch.allclose(shares[1], torch.tensor([0.5, 0.5]))  # no kind of its own: all alike


def test_growing_takes_what_resembles_the_seed():
    around = torch.tensor([[[0.9, 0.1], [0.0, 1.0]]])
    grown = refinement.grow(torch.tensor([[2.0, 0.0]]), around)
    expected = F.normalize(torch.tensor([1.0, 0.0]) + F.normalize(torch.tensor([0.9, 0.1]), dim=-1), dim=-1)
    assert torch.allclose(grown, 2 * expected[None])


def test_aggregator_learns_and_is_deterministic(generator):
    axes = torch.eye(10)[:4]
    vectors = torch.cat([bundle(axis, 80, 0.3, generator) for axis in axes])
    labels = torch.arange(4).repeat_interleave(80)
    before = torch.get_rng_state()
    network = aggregator.train_aggregator(vectors, labels, 4, per_label=5, steps=150)
    assert torch.equal(torch.get_rng_state(), before)  # the user's randomness is left alone
    fresh = torch.cat([bundle(axis, 80, 0.3, generator) for axis in axes])
    assert (network(fresh).argmax(-1) == labels).float().mean() > 0.9
    again = aggregator.train_aggregator(vectors, labels, 4, per_label=5, steps=150)
    assert torch.equal(network(fresh), again(fresh))


def test_aggregator_with_one_pixel_a_label():
    network = aggregator.train_aggregator(torch.eye(4), torch.arange(4), 4, steps=5)
    assert network(torch.eye(4)).shape == (4, 4)
