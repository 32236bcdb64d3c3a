"""The matrix loss against a slow loop written from the paper, pair rules by hand, and properties."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jacobinerf_ns import shaping as S


def slow_mig_loss(jacobians: Tensor, pairs: S.Pairs, temperature: float) -> Tensor:
    """Anchor by anchor and pair by pair, as the formula reads."""
    losses = []
    for i in range(len(jacobians)):
        if not pairs.positive[i].any():
            continue
        over_positive, over_both = torch.zeros(()), torch.zeros(())
        for j in range(len(jacobians)):
            norms = jacobians[i].norm() * jacobians[j].norm()
            term = torch.exp(torch.dot(jacobians[i], jacobians[j]) / norms / temperature)
            if pairs.positive[i, j]:
                over_positive = over_positive + term
            if pairs.positive[i, j] or pairs.negative[i, j]:
                over_both = over_both + term
        losses.append(-torch.log(over_positive / over_both))
    return torch.stack(losses).mean()


def random_pairs(count: int, seed: int) -> S.Pairs:
    kind = torch.randint(0, 3, (count, count), generator=torch.Generator().manual_seed(seed))
    return S.Pairs(kind == 0, kind == 1)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_mig_loss_and_its_gradient_equal_the_slow_loop(seed: int, temperature: float):
    jacobians = torch.rand(14, 30, generator=torch.Generator().manual_seed(seed)).requires_grad_(True)
    pairs = random_pairs(14, seed)
    found = S.mig_loss(S.cosine_matrix(jacobians), pairs, temperature)
    expected = slow_mig_loss(jacobians, pairs, temperature)
    assert abs(float((found - expected).detach())) <= 1e-6
    gradients = [torch.autograd.grad(loss, jacobians)[0] for loss in (found, expected)]
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) <= 1e-5


def test_loss_falls_when_positives_align_and_is_zero_when_negatives_are_far():
    pairs = S.Pairs(torch.tensor([[False, True], [True, False]]), torch.zeros(2, 2, dtype=torch.bool))
    assert float(S.mig_loss(torch.eye(2), pairs, 0.1)) == 0.0  # no negative: nothing to tell apart
    positive = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    negative = torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.bool)
    pairs = S.Pairs(positive, negative)
    losses = [
        float(S.mig_loss(torch.tensor([[1, c, 0.2], [c, 1, 0.2], [0.2, 0.2, 1]]), pairs, 0.1)) for c in (0.1, 0.5, 0.9)
    ]
    assert losses[0] > losses[1] > losses[2] > 0


def test_an_anchor_without_a_positive_takes_no_part():
    similarity = torch.tensor([[1.0, 0.3, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 1.0]])
    positive = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    negative = torch.tensor([[0, 0, 1], [1, 0, 1], [1, 1, 0]], dtype=torch.bool)
    expected = -math.log(math.exp(0.3) / (math.exp(0.3) + math.exp(0.1)))
    assert math.isclose(float(S.mig_loss(similarity, S.Pairs(positive, negative), 1.0)), expected, rel_tol=1e-6)


def test_threshold_rule_moves_per_anchor_like_the_release():
    # 20 rays, each similar only to itself: 1 of 20 is 5 %, not below it, so the threshold stays.
    pairs, moved = S.threshold_pairs(torch.eye(20), torch.tensor(0.8))
    assert torch.equal(pairs.positive, torch.eye(20, dtype=torch.bool))
    assert torch.equal(pairs.negative, ~pairs.positive)
    assert math.isclose(float(moved), 0.8, abs_tol=1e-6)
    # 40 such rays: 2.5 % positives, a step down for each of them.
    _, moved = S.threshold_pairs(torch.eye(40), torch.tensor(0.8))
    assert math.isclose(float(moved), 0.8 - 40 * S.THRESHOLD_STEP, abs_tol=1e-6)
    # All alike: a step up for each, until 0.9.
    _, moved = S.threshold_pairs(torch.ones(30, 30), torch.tensor(0.88))
    assert math.isclose(float(moved), 0.9, abs_tol=1.1 * S.THRESHOLD_STEP)
    # The threshold that an anchor sees was moved by those before it.
    similarity = torch.full((40, 40), 0.79)
    pairs, _ = S.threshold_pairs(similarity.fill_diagonal_(1.0), torch.tensor(0.8))
    counts = pairs.positive.sum(-1)
    assert counts[0] == 1
    assert counts.max() == 40


def slow_threshold_pairs(cosines: torch.Tensor, threshold: float) -> tuple[torch.Tensor, float]:
    """The release's rule as a loop that looks at every count."""
    rows = []
    for row in cosines:
        rows.append(row > threshold)
        share = int(rows[-1].sum()) / len(cosines)
        if share < 0.05 and threshold > 0.5:
            threshold -= 0.001
        elif share > 0.15 and threshold < 0.9:
            threshold += 0.001
    return torch.stack(rows).fill_diagonal_(True), threshold


def test_threshold_rule_without_the_host_is_the_loop_that_counts():
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        vectors = F.normalize(torch.randn(2 + seed % 70, 2 + seed % 9, generator=generator), dim=-1)
        start = torch.tensor(0.45 + 0.005 * seed)
        pairs, moved = S.threshold_pairs(vectors @ vectors.T, start)
        positive, expected = slow_threshold_pairs(vectors @ vectors.T, float(start))
        assert torch.equal(pairs.positive, positive)
        assert torch.equal(pairs.negative, ~positive)
        assert torch.equal(moved, torch.tensor(expected))


def test_threshold_stays_in_its_range():
    threshold = torch.tensor(0.5)
    for _ in range(3):
        _, threshold = S.threshold_pairs(torch.eye(40), threshold)
    assert math.isclose(float(threshold), 0.5, abs_tol=1.1 * S.THRESHOLD_STEP)


def slow_soft_mig_loss(jacobians: Tensor, features: Tensor, config: S.ShapingConfig) -> Tensor:
    """The soft loss as its formula reads, anchor by anchor and pair by pair."""

    def cosine(vectors: Tensor, i: int, j: int) -> Tensor:
        return torch.dot(vectors[i], vectors[j]) / (vectors[i].norm() * vectors[j].norm())

    count, losses, weights = len(jacobians), [], []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        degree = torch.stack([torch.exp(cosine(features, i, j) / config.teacher_temperature) for j in others])
        membership = degree / degree.sum()
        term = torch.stack([torch.exp(cosine(jacobians, i, j) / config.temperature) for j in others])
        losses.append(-(membership * torch.log(term / term.sum())).sum())
        weights.append((1 / membership.square().sum()) ** -config.balance)
    return (torch.stack(losses) * torch.stack(weights)).sum() / torch.stack(weights).sum()


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_soft_loss_and_its_gradient_equal_the_slow_loop(balance: float):
    generator = torch.Generator().manual_seed(3)
    jacobians = torch.rand(11, 24, generator=generator).requires_grad_(True)
    features = torch.randn(11, 6, generator=generator)
    config = S.ShapingConfig(balance=balance, temperature=0.3, teacher_temperature=0.4)
    terms, _ = S.shaping_terms(jacobians, features, torch.tensor(0.8), config)
    expected = slow_soft_mig_loss(jacobians, features, config)
    assert abs(float((terms.mig - expected).detach())) <= 1e-6
    gradients = [torch.autograd.grad(loss, jacobians)[0] for loss in (terms.mig, expected)]
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) <= 1e-5


def plain_terms(jacobians: Tensor, features: Tensor, config: S.ShapingConfig) -> tuple[Tensor, Tensor]:
    """Soft loss and norm loss by the formulas on whole matrices, for autograd to differentiate."""

    def cosines(vectors: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(vectors, dim=-1, eps=S.NORM_EPS)
        return unit @ unit.T

    itself = torch.eye(len(jacobians), dtype=torch.bool)
    membership = (cosines(features) / config.teacher_temperature).masked_fill(itself, -math.inf).softmax(-1)
    logits = cosines(jacobians) / config.temperature
    per_anchor = logits.masked_fill(itself, -math.inf).logsumexp(-1) - (membership * logits).sum(-1)
    weight = membership.square().sum(-1) ** config.balance
    return (per_anchor * weight).sum() / weight.sum(), (jacobians.norm(dim=-1) - 1).square().mean()


def random_batch(count: int, dims: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Jacobians, and features in clusters."""
    generator = torch.Generator().manual_seed(count)
    kinds = torch.randn(5, 8, generator=generator)[torch.randint(0, 5, (count,), generator=generator)]
    features = kinds + 0.5 * torch.randn(count, 8, generator=generator)
    return (torch.rand(count, dims, generator=generator) - 0.2).to(dtype), features.to(dtype)


@pytest.mark.parametrize("count", [40, 1030])  # the second is enough for oneDNN to be asked
def test_losses_and_gradients_are_those_of_the_plain_formula(count: int):
    jacobians, features = random_batch(count, 12)
    leaf, config = jacobians.requires_grad_(), S.ShapingConfig()
    terms, _ = S.shaping_terms(leaf, features, torch.tensor(0.8), config)
    for found, expected in zip((terms.mig, terms.norm), plain_terms(leaf, features, config), strict=True):
        assert abs(float((found - expected).detach())) <= 1e-6 * max(1.0, float(expected))
        gradient, exact = (torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in (found, expected))
        assert float((gradient - exact).norm() / exact.norm()) <= 1e-5


@pytest.mark.parametrize("pairs", ["soft", "threshold"])
def test_gradients_in_closed_form_are_those_of_finite_differences(pairs: S.PairRule):
    jacobians, features = random_batch(9, 4, torch.float64)
    config = S.ShapingConfig(pairs=pairs, temperature=0.3)

    def losses(jacobians: Tensor) -> tuple[Tensor, Tensor]:
        terms, _ = S.shaping_terms(jacobians, features, torch.tensor(0.8), config)
        return terms.mig, terms.norm

    assert torch.autograd.gradcheck(losses, jacobians.requires_grad_())


def test_a_ray_that_hits_nothing_gets_the_gradient_of_autograd():
    jacobians, features = random_batch(12, 6)
    jacobians[3] = 0.0
    leaf, config = jacobians.requires_grad_(), S.ShapingConfig(norm_loss_mult=0.0)
    found = torch.autograd.grad(S.shaping_terms(leaf, features, torch.tensor(0.8), config)[0].mig, leaf)[0]
    expected = torch.autograd.grad(plain_terms(leaf, features, config)[0], leaf)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("pairs", ["soft", "threshold"])
def test_statistics_are_made_where_they_are_asked_for(pairs: S.PairRule):
    jacobians, features = random_batch(30, 6)
    config = S.ShapingConfig(pairs=pairs)
    with_them, moved = S.shaping_terms(jacobians, features, torch.tensor(0.8), config)
    without, moved_too = S.shaping_terms(jacobians, features, torch.tensor(0.8), config, statistics=False)
    assert torch.equal(with_them.mig, without.mig)
    assert torch.equal(with_them.norm, without.norm)
    assert torch.equal(moved, moved_too)
    assert None not in with_them
    assert without[2:] == (None, None, None)


def test_soft_membership_leaves_self_out_and_follows_the_teacher():
    membership = S.soft_pairs(torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]]), 0.1)
    assert torch.equal(membership.diagonal(), torch.zeros(3))
    assert torch.allclose(membership.sum(-1), torch.ones(3))
    assert membership[0, 1] / membership[0, 2] == pytest.approx(math.exp(8), rel=1e-4)
    assert membership[2, 0] == membership[2, 1]


def test_effective_positives_counts_an_even_spread():
    membership = torch.tensor([[0, 1 / 3, 1 / 3, 1 / 3], [1.0, 0, 0, 0], [0.5, 0, 0, 0.5], [0, 0, 1.0, 0]])
    assert torch.allclose(S.effective_positives(membership), torch.tensor([3.0, 1.0, 2.0, 1.0]))


def test_balance_gives_small_entities_the_same_say():
    # Nine rays of one thing and two of another; only the two are badly shaped.
    kinds = torch.tensor([0] * 9 + [1] * 2)
    teacher = torch.where(kinds[:, None] == kinds[None], 1.0, -1.0)
    similarity = teacher.clone()
    similarity[9:, 9:] = 0.0
    membership = S.soft_pairs(teacher, 0.05)
    shares = []
    for balance in (0.0, 0.5, 1.0):
        leaf = similarity.clone().requires_grad_(True)
        gradient = torch.autograd.grad(S.soft_mig_loss(leaf, membership, 0.2, balance), leaf)[0].abs()
        shares.append(float(gradient[9:].sum() / gradient.sum()))
    assert shares[0] < shares[1] < shares[2]


def test_shaping_terms_report_what_they_compare():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    jacobians = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    terms, threshold = S.shaping_terms(jacobians, features, torch.tensor(0.8), S.ShapingConfig())
    assert terms.cosine_positive is not None
    assert terms.cosine_negative is not None
    assert terms.positive_share is not None
    assert math.isclose(float(terms.cosine_positive), 1.0, abs_tol=1e-3)
    assert math.isclose(float(terms.cosine_negative), 0.6, abs_tol=1e-3)
    assert math.isclose(float(terms.positive_share), 1 / 3, abs_tol=1e-3)
    assert float(terms.norm) == pytest.approx(0.0, abs=1e-10)
    assert float(threshold) == pytest.approx(0.8)
    terms, _ = S.shaping_terms(jacobians, features, torch.tensor(0.8), S.PAPER_SHAPING)
    # Self is a positive of the paper's rule: two positives of cosine 1, two negatives of cosine 0.6.
    assert math.isclose(float(terms.mig), -math.log(math.e / (math.e + math.exp(0.6))), abs_tol=1e-6)
    assert terms.cosine_positive is not None
    assert terms.positive_share is not None
    assert math.isclose(float(terms.cosine_positive), 1.0, abs_tol=1e-6)
    assert math.isclose(float(terms.positive_share), 1 / 4, abs_tol=1e-6)


def test_anchors_are_evenly_spaced():
    assert S.anchor_rays(12, S.WHOLE_BATCH) == S.anchor_rays(12, 12) == S.anchor_rays(12, 99) == slice(None)
    assert torch.equal(torch.as_tensor(S.anchor_rays(4096, 64)), 65 * torch.arange(64))
    assert torch.as_tensor(S.anchor_rays(12, 4)).tolist() == [0, 4, 7, 11]
    assert torch.as_tensor(S.anchor_rays(12, 1)).tolist() == [0]
    gaps = torch.as_tensor(S.anchor_rays(1000, 333)).diff()
    assert gaps.min() == 3
    assert gaps.max() == 4


def test_decay_is_half_a_cosine_and_then_stays():
    assert S.decayed_share(10**6, None, 0.1) == 1.0
    shares = [S.decayed_share(step, 100, 0.1) for step in (0, 50, 100, 500)]
    assert shares == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_norm_loss_by_hand():
    assert float(S.norm_loss(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))) == pytest.approx(8.0)
