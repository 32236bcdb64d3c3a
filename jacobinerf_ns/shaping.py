"""Shaping: which rays belong together, and the loss that makes their Jacobians parallel.

Letters: n [anchors] rays that take part (every anchor is compared with every other), d [dims] size of a Jacobian,
    f [features] size of a teacher feature, J [n d] Jacobians, τ temperature,
    P_i, N_i  positives and negatives of anchor i, rows of two masks [n n].

Mutual-information-gradient loss (paper, section 3.2), for anchor i:
    L_i = −log( Σ_{j∈P_i} e^{cos(J_i,J_j)/τ} / Σ_{j∈P_i∪N_i} e^{cos(J_i,J_j)/τ} )
as one masked n×n matrix, where the release loops over pairs.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from jacobinerf_ns.jacobian import NORM_EPS

PairRule = Literal["quantile", "threshold"]

THRESHOLD_START = 0.8
THRESHOLD_STEP = 0.001
THRESHOLD_RANGE = (0.5, 0.9)
POSITIVE_SHARE = (0.05, 0.15)
"""The release: the threshold moves by a step per anchor to keep 5 to 15 % of the rays positive, within its range."""


class Pairs(NamedTuple):
    """Two masks over pairs of anchors; a pair in neither takes no part in the loss."""

    positive: Bool[Tensor, "anchors anchors"]
    negative: Bool[Tensor, "anchors anchors"]


class ShapingTerms(NamedTuple):
    """The shaping loss of one batch and what to log about it."""

    mig: Float[Tensor, ""]
    norm: Float[Tensor, ""]
    cosine_positive: Float[Tensor, ""]
    cosine_negative: Float[Tensor, ""]
    positive_share: Float[Tensor, ""]


def cosine_matrix(vectors: Float[Tensor, "anchors dims"]) -> Float[Tensor, "anchors anchors"]:
    """cos(v_i, v_j) for all pairs; a zero vector has cosine 0 with everything."""
    unit = F.normalize(vectors, dim=-1, eps=NORM_EPS)
    return unit @ unit.T


def threshold_pairs(
    teacher_cosine: Float[Tensor, "anchors anchors"], threshold: Float[Tensor, ""]
) -> tuple[Pairs, Float[Tensor, ""]]:
    """The release's rule: positives above one adaptive threshold, self included, everything else negative.

    The threshold moves after every anchor, before the next one is looked at, so anchors are taken in order (on the CPU:
    the loop branches on each count). Returns the pairs and the moved threshold.
    """
    similarity = teacher_cosine.detach().cpu()
    value, rows, count = float(threshold), [], similarity.shape[0]
    for row in similarity:
        positive = row > value
        rows.append(positive)
        share = float(positive.sum()) / count
        if share < POSITIVE_SHARE[0] and value > THRESHOLD_RANGE[0]:
            value -= THRESHOLD_STEP
        elif share > POSITIVE_SHARE[1] and value < THRESHOLD_RANGE[1]:
            value += THRESHOLD_STEP
    positive = torch.stack(rows).to(teacher_cosine.device)
    positive.fill_diagonal_(True)
    return Pairs(positive, ~positive), torch.full_like(threshold, value)


def quantile_pairs(
    teacher_cosine: Float[Tensor, "anchors anchors"], positive_share: float, negative_share: float
) -> Pairs:
    """The default rule: for each anchor its most similar share is positive, its least similar share negative.

    Relative to the anchor's own distribution, so it needs no threshold and works for teachers of any scale; what lies
    between is undecided and left alone, and an anchor is not its own positive (cos(J_i, J_i) = 1 teaches nothing and
    hides the others).
    """
    count = teacher_cosine.shape[0]
    positives = max(1, round(positive_share * (count - 1)))
    negatives = max(1, min(round(negative_share * (count - 1)), count - 1 - positives))
    others = teacher_cosine.detach().clone()
    others.fill_diagonal_(-torch.inf)
    order = others.argsort(dim=-1, descending=True)
    positive = torch.zeros_like(others, dtype=torch.bool).scatter_(1, order[:, :positives], True)
    negative = torch.zeros_like(positive).scatter_(1, order[:, count - 1 - negatives : count - 1], True)
    return Pairs(positive, negative)


def mig_loss(similarity: Float[Tensor, "anchors anchors"], pairs: Pairs, temperature: float) -> Float[Tensor, ""]:
    """Mean over anchors of L_i, from the cosines of their Jacobians. Anchors without a positive take no part."""
    logits = similarity / temperature
    nothing = torch.finfo(logits.dtype).min
    over_positive = torch.logsumexp(logits.masked_fill(~pairs.positive, nothing), dim=-1)
    over_both = torch.logsumexp(logits.masked_fill(~(pairs.positive | pairs.negative), nothing), dim=-1)
    has_positive = pairs.positive.any(dim=-1)
    return ((over_both - over_positive) * has_positive).sum() / has_positive.sum().clamp(min=1)


def norm_loss(jacobians: Float[Tensor, "anchors dims"]) -> Float[Tensor, ""]:
    """mean((‖J‖ − 1)²): keeps every pixel able to respond, since a cosine says nothing about length (paper, section 3.2)."""
    return (torch.linalg.vector_norm(jacobians, dim=-1) - 1.0).square().mean()


@dataclass
class ShapingConfig:
    """How rays are paired and how strongly their Jacobians are pulled together."""

    pairs: PairRule = "quantile"
    """Which rays belong together: `quantile`, for each anchor its most similar share of the others by teacher feature; or
    `threshold`, the paper's release: one adaptive threshold on the teacher's cosine, every other ray a negative."""
    temperature: float = 0.3
    """Temperature of the contrastive loss, a cosine is divided by it (paper: 1)."""
    positive_share: float = 0.1
    """Share of the other rays (0..1) that are an anchor's positives; `quantile` only."""
    negative_share: float = 0.5
    """Share of the other rays (0..1) that are an anchor's negatives; `quantile` only."""
    mig_loss_mult: float = 0.005
    """Weight of the MIG loss beside the photometric losses (paper: 0.01). 0 together with norm-loss-mult 0: no shaping."""
    norm_loss_mult: float = 0.005
    """Weight of the regulariser that keeps Jacobians at norm 1 (paper: 0.01)."""

    @property
    def active(self) -> bool:
        """Whether this asks for any shaping at all."""
        return self.mig_loss_mult > 0 or self.norm_loss_mult > 0


PAPER = ShapingConfig(pairs="threshold", temperature=1.0, mig_loss_mult=1e-2, norm_loss_mult=1e-2)
"""The released code's behaviour: adaptive threshold, self a positive, no temperature, both weights 0.01."""


def shaping_terms(
    jacobians: Float[Tensor, "anchors dims"],
    features: Float[Tensor, "anchors features"],
    threshold: Float[Tensor, ""],
    config: ShapingConfig,
) -> tuple[ShapingTerms, Float[Tensor, ""]]:
    """Both losses of one batch of anchors (unweighted), what to log, and the moved threshold.

    `features` are the teacher's, of the same pixels; they carry no gradient. Float32 is expected: call with autocast off.
    """
    teacher_cosine = cosine_matrix(features)
    if config.pairs == "threshold":
        pairs, threshold = threshold_pairs(teacher_cosine, threshold)
    else:
        pairs = quantile_pairs(teacher_cosine, config.positive_share, config.negative_share)
    similarity = cosine_matrix(jacobians)
    with torch.no_grad():
        off_diagonal = ~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        positive, negative = pairs.positive & off_diagonal, pairs.negative & off_diagonal
        statistics = [_masked_mean(similarity, positive), _masked_mean(similarity, negative), positive.float().mean()]
    return ShapingTerms(mig_loss(similarity, pairs, config.temperature), norm_loss(jacobians), *statistics), threshold


def _masked_mean(values: Float[Tensor, "anchors anchors"], mask: Bool[Tensor, "anchors anchors"]) -> Float[Tensor, ""]:
    return (values * mask).sum() / mask.sum().clamp(min=1)
