"""Scores by hand, against a slow count, and against all pairs."""

import math

import pytest
import torch

from jacobinerf_ns.core import metrics


def test_scores_by_hand():
    truth = torch.tensor([1, 1, 1, 2, 2, 0])
    predicted = torch.tensor([1, 1, 2, 2, 3, 1])
    confusion = metrics.confusion_matrix(predicted, truth, 4)
    assert confusion.sum() == 5  # void is left out
    found = metrics.scores(confusion)
    # class 1: 2 of 3; class 2: 1 of (2 true + 2 called − 1); class 3 never occurs
    assert found.class_iou[1] == pytest.approx(2 / 3)
    assert found.class_iou[2] == pytest.approx(1 / 3)
    assert math.isnan(found.class_iou[3])
    assert found.miou == pytest.approx(0.5)
    assert found.total_accuracy == pytest.approx(3 / 5)
    assert found.class_average_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics.scores(confusion, labelled=[1]).miou_labelled == pytest.approx(2 / 3)


def test_confusion_of_views_adds_up():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(0, 5, (2, 8, 6), generator=generator) for _ in range(2))
    pooled = metrics.confusion_matrix(predicted, truth, 5)
    of_views = [metrics.confusion_matrix(p, t, 5) for p, t in zip(predicted, truth, strict=True)]
    assert torch.equal(pooled, torch.stack(of_views).sum(0))
    for q in range(1, 5):
        for m in range(5):
            assert pooled[q, m] == ((truth == q) & (predicted == m)).sum()
    assert metrics.confusion_matrix(predicted, truth, 5, void=None).sum() == truth.numel()


def test_perfect_and_useless_predictions():
    truth = torch.tensor([1, 2, 3, 3])
    assert metrics.scores(metrics.confusion_matrix(truth, truth, 4)).miou == 1.0
    wrong = metrics.scores(metrics.confusion_matrix(torch.tensor([2, 3, 1, 1]), truth, 4))
    assert wrong.miou == 0.0
    assert wrong.total_accuracy == 0.0


def test_cosine_gap_equals_the_mean_over_all_pairs():
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(40, 7, generator=generator)
    classes = torch.randint(0, 4, (40,), generator=generator)
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    cosines, same = unit @ unit.T, classes[:, None] == classes[None]
    off = ~torch.eye(40, dtype=torch.bool)
    found = metrics.cosine_gap(vectors, classes)
    assert found.same == pytest.approx(float(cosines[same & off].mean()), abs=1e-6)
    assert found.different == pytest.approx(float(cosines[~same].mean()), abs=1e-6)
    assert found.gap == pytest.approx(found.same - found.different)


def test_psnr_by_hand():
    assert metrics.psnr(torch.full((2, 2, 3), 0.5), torch.full((2, 2, 3), 0.4)) == pytest.approx(20.0, abs=1e-4)
