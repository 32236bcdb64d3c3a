"""Scores of label maps against ground truth, and of resonance against classes.

Letters: n [pixels] pixels of all views together, d [dims] size of a vector, q [truth] true classes, m [predicted] the
    same classes as predicted, C [q m] pooled confusion matrix: C_qm pixels of class q were called m.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.core.jacobian import NORM_EPS


class Scores(NamedTuple):
    """What the field reports for a label map; all in 0..1, NaN where nothing is to be scored."""

    miou: float
    """Mean intersection over union over the classes that occur in the truth."""
    miou_labelled: float
    """The same over those of them that the annotator labelled."""
    total_accuracy: float
    """Share of pixels that are right."""
    class_average_accuracy: float
    """Share of pixels that are right, per class, averaged over classes."""
    class_iou: list[float]
    """Intersection over union per class id; NaN for classes that do not occur in the truth."""


class CosineGap(NamedTuple):
    """Mean cosine over pairs of different pixels, by whether both are of one class."""

    same: float
    different: float

    @property
    def gap(self) -> float:
        """Same minus different: 0 where vectors know nothing of classes, at most 2."""
        return self.same - self.different


def confusion_matrix(
    predicted: Int[Tensor, "*pixels"], truth: Int[Tensor, "*pixels"], num_classes: int, void: int | None = 0
) -> Int[Tensor, "truth predicted"]:
    """Count (true, predicted) ids over pixels; pixels whose truth is `void` are left out (None: none is).

    Matrices of views add up: scores are taken from the sum, since means of per-view IoUs reward views without a class.
    """
    keep = torch.ones_like(truth, dtype=torch.bool) if void is None else truth != void
    cells = truth[keep] * num_classes + predicted[keep]
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def scores(confusion: Int[Tensor, "truth predicted"], labelled: list[int] | None = None) -> Scores:
    """Scores of a pooled confusion matrix; `labelled` are the ids that the annotator gave (default: all)."""
    counts = confusion.double()
    hits, of_class, called = counts.diagonal(), counts.sum(1), counts.sum(0)
    occurs = of_class > 0
    nan = torch.full_like(hits, torch.nan)
    iou = torch.where(occurs, hits / (of_class + called - hits).clamp(min=1), nan)
    accuracy = torch.where(occurs, hits / of_class.clamp(min=1), nan)
    chosen = iou if labelled is None else iou[torch.tensor(labelled, dtype=torch.long)]
    return Scores(
        miou=float(iou.nanmean()),
        miou_labelled=float(chosen.nanmean()),
        total_accuracy=float(hits.sum() / counts.sum()),
        class_average_accuracy=float(accuracy.nanmean()),
        class_iou=iou.tolist(),
    )


def cosine_gap(vectors: Float[Tensor, "pixels dims"], classes: Int[Tensor, "pixels"]) -> CosineGap:
    """Mean cosine of same-class and of different-class pairs, over all pairs of pixels, a pixel with itself left out.

    No sampling of pairs: with unit vectors u and S_q = Σ_{i of class q} u_i, the sum over same-class pairs is
    Σ_q ‖S_q‖² minus the diagonal, and the sum over all pairs ‖Σ_q S_q‖².
    """
    unit = F.normalize(vectors.double(), dim=-1, eps=NORM_EPS)
    ids, inverse, sizes = torch.unique(classes, return_inverse=True, return_counts=True)
    sums = unit.new_zeros(len(ids), unit.shape[1]).index_add_(0, inverse, unit)
    diagonal = unit.square().sum()
    same, everything = sums.square().sum(), sums.sum(0).square().sum()
    same_pairs, pairs = (sizes * (sizes - 1)).sum(), len(unit) * (len(unit) - 1)
    return CosineGap(
        same=float((same - diagonal) / same_pairs.clamp(min=1)),
        different=float((everything - same) / max(pairs - int(same_pairs), 1)),
    )


def psnr(image: Float[Tensor, "*pixels channels"], truth: Float[Tensor, "*pixels channels"]) -> float:
    """Peak signal-to-noise ratio in dB of colours in 0..1."""
    return float(-10.0 * torch.log10((image - truth).square().mean()))
