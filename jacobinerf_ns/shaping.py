"""Shaping: which rays belong together, and the loss that makes their Jacobians parallel.

Letters: n [anchors] rays that take part (every anchor is compared with every other), d [dims] size of a Jacobian,
    f [features] size of a teacher feature, J [n d] Jacobians, T [n f] teacher features, τ temperature of the loss,
    τ_T temperature of the teacher, P_i and N_i positives and negatives of anchor i, rows of two masks [n n],
    Q [n n] soft memberships, rows that sum to 1, S [n n] cosines of Jacobians, P [n n] softmax of the rows of S/τ,
    w [n] weights of anchors.

Mutual-information-gradient (MIG) loss of anchor i, with hard pairs (paper, section 3.2) and with soft ones:
    L_i = −log( Σ_{j∈P_i} e^{cos(J_i,J_j)/τ} / Σ_{j∈P_i∪N_i} e^{cos(J_i,J_j)/τ} )
    L_i = −Σ_{j≠i} Q_ij log( e^{cos(J_i,J_j)/τ} / Σ_{k≠i} e^{cos(J_i,J_k)/τ} ),   Q_ij ∝ e^{cos(T_i,T_j)/τ_T}
both as one n×n matrix, where the release loops over pairs.

Gradients in closed form, which takes one matrix product where autograd takes two and keeps fewer n×n matrices:
    dL/dS_ij = w_i (P_ij − Q_ij) / (τ Σ_k w_k)        of the soft loss
    dL/dJ_i = (Σ_j M_ij u_j − (Σ_j M_ij S_ij) u_i) / ‖J_i‖,   M = dL/dS + (dL/dS)ᵀ,   u_i = J_i / ‖J_i‖
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from jacobinerf_ns.core.gpu import compiled_on_gpu, tf32_products
from jacobinerf_ns.core.jacobian import NORM_EPS
from jacobinerf_ns.core.products import product

PairRule = Literal["soft", "threshold"]

THRESHOLD_START = 0.8
THRESHOLD_STEP = 0.001
THRESHOLD_RANGE = (0.5, 0.9)
WHOLE_BATCH = 0
"""Number of anchors that stands for all rays of a batch."""
POSITIVE_SHARE = (0.05, 0.15)
"""The release: the threshold moves by a step per anchor to keep 5 to 15 % of the rays positive, within its range."""


@dataclass
class ShapingConfig:
    """How rays are paired and how strongly their Jacobians are pulled together."""

    pairs: PairRule = "soft"
    """Which rays belong together: `soft`, every other ray to the degree that the teacher finds it alike; `threshold`,
    the paper's release, those above one adaptive threshold on the teacher's cosine, all others being negatives."""
    temperature: float = 0.15
    """Temperature of the loss: cosines of Jacobians are divided by it (paper: 1)."""
    teacher_temperature: float = 0.1
    """Temperature of the teacher: its cosines are divided by it to become degrees of belonging; `soft` only."""
    balance: float = 0.5
    """How much anchors with many likenesses count less, so that walls do not drown a cup: an anchor weighs (effective
    number of positives)^-balance. 0: all alike; 1: every entity alike, whatever its size; `soft` only."""
    teacher_tf32: bool = True
    """Let a GPU that can multiply the teacher's features in TF32, which keeps as many digits as the half precision they
    are stored in; `soft` only (paper: float32)."""
    mig_loss_mult: float = 0.012
    """Weight of the MIG loss beside the photometric losses (paper: 0.01). With both weights 0 nothing is shaped."""
    norm_loss_mult: float = 0.001
    """Weight of the regulariser that keeps Jacobians at norm 1 (paper: 0.01)."""

    decay_steps: int | None = None
    """Steps of shaping over which both weights fall to final-share of themselves, as half a cosine; what follows
    polishes colour. None: they stay as they are (paper)."""
    final_share: float = 0.05
    """Share (0..1) of both weights that is left after decay-steps."""

    @property
    def active(self) -> bool:
        """Whether this asks for any shaping at all."""
        return self.mig_loss_mult > 0 or self.norm_loss_mult > 0


PAPER_SHAPING = ShapingConfig(pairs="threshold", temperature=1.0, mig_loss_mult=1e-2, norm_loss_mult=1e-2)
"""The released code's behaviour: adaptive threshold, self a positive, no temperature, both weights 0.01."""


class Pairs(NamedTuple):
    """Two masks over pairs of anchors; a pair in neither takes no part in the loss."""

    positive: Bool[Tensor, "anchors anchors"]
    negative: Bool[Tensor, "anchors anchors"]


class ShapingTerms(NamedTuple):
    """The shaping losses of one batch (unweighted), and what to log about it."""

    mig: Float[Tensor, ""]
    norm: Float[Tensor, ""]
    cosine_positive: Float[Tensor, ""] | None = None
    """Mean cosine of the Jacobians of positive pairs, an anchor with itself left out. None where nobody asked."""
    cosine_negative: Float[Tensor, ""] | None = None
    """The same of negative pairs."""
    positive_share: Float[Tensor, ""] | None = None
    """Share of pairs that are positive; for soft pairs the effective share."""


def anchor_rays(num_rays: int, wanted: int, device: torch.device | str = "cpu") -> Int[Tensor, "anchors"] | slice:
    """Which rays of a batch are anchors: `wanted` of them, evenly spaced; a slice where that is all.

    A rule of whole numbers, so that whoever prepares features and whoever renders Jacobians, on whatever device, find
    the same rays. Not the first ones: with images of mixed sizes nerfstudio hands out the rays image by image.
    """
    if wanted == WHOLE_BATCH or wanted >= num_rays:
        return slice(None)  # no copies
    gaps = max(wanted - 1, 1)
    return (2 * torch.arange(wanted, device=device) * (num_rays - 1) + gaps) // (2 * gaps)


def decayed_share(steps_of_shaping: int, decay_steps: int | None, final_share: float) -> float:
    """Share of the shaping weights that is left after some steps of shaping: half a cosine from 1 to `final_share`.

    Structure that is there stays with little push, and the end of training belongs to colour. None: no decay (paper).
    """
    if decay_steps is None:
        return 1.0
    progress = min(1.0, steps_of_shaping / decay_steps)
    return final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_matrix(vectors: Float[Tensor, "anchors dims"]) -> Float[Tensor, "anchors anchors"]:
    """cos(v_i, v_j) for all pairs; a zero vector has cosine 0 with everything. Differentiable once."""
    return _Cosines.apply(vectors)


class _Cosines(torch.autograd.Function):
    """S, and dJ from dS by the second equation of the module: one product instead of autograd's two."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        unit = vectors / norms.clamp_min(NORM_EPS)
        cosines = product(unit, unit)
        ctx.save_for_backward(unit, norms, cosines)
        return cosines

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        unit, norms, cosines = ctx.saved_tensors
        both_ways, radial = _both_ways(gradients[0], cosines, norms)
        return (product(both_ways, unit.T) - radial * unit) / norms.clamp_min(NORM_EPS)


@compiled_on_gpu
def _both_ways(gradient: Tensor, cosines: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Return M, and Σ_j M_ij S_ij of each vector."""
    both_ways = gradient.T.contiguous().add_(gradient)
    # Below NORM_EPS the divisor is a constant, and so has no gradient of its own.
    return both_ways, (both_ways * cosines).sum(dim=-1, keepdim=True) * (norms > NORM_EPS)


def threshold_pairs(
    teacher_cosine: Float[Tensor, "anchors anchors"], threshold: Float[Tensor, ""]
) -> tuple[Pairs, Float[Tensor, ""]]:
    """Return the release's rule: positives above one adaptive threshold, self included, everything else negative.

    The threshold moves after every anchor, before the next one is looked at, so anchors are taken in order; what is
    decided stays on the device, and the host waits for nothing.

    Returns:
        The pairs, and the moved threshold.
    """
    similarity, count = teacher_cosine.detach(), len(teacher_cosine)
    low, high = THRESHOLD_RANGE
    value, rows = threshold.to(similarity.device, _steps_in(similarity.device)), []
    for row in similarity:
        positive = row > value
        rows.append(positive)
        share = positive.sum().to(value.dtype) / count
        down = (share < POSITIVE_SHARE[0]) & (value > low)
        up = (share > POSITIVE_SHARE[1]) & (value < high)
        value = value + THRESHOLD_STEP * (up.to(value.dtype) - down.to(value.dtype))
    positive = torch.stack(rows)
    positive.fill_diagonal_(True)
    return Pairs(positive, ~positive), value.to(threshold)


def _steps_in(device: torch.device) -> torch.dtype:
    """Return the numbers that the threshold's steps are added in: double, where the device has them."""
    return torch.float32 if device.type == "mps" else torch.float64


def soft_pairs(
    teacher_cosine: Float[Tensor, "anchors anchors"], teacher_temperature: float
) -> Float[Tensor, "anchors anchors"]:
    """Q: how much each other ray belongs to an anchor, a softmax over the teacher's cosines without the anchor itself.

    No threshold to tune: a small entity has few strong members, a wall has many weak ones, and a noisy teacher's doubt
    stays doubt. An anchor is not its own positive: cos(J_i, J_i) = 1 teaches nothing and hides the others.
    """
    return _membership(teacher_cosine.detach(), teacher_temperature)


@compiled_on_gpu
def _membership(teacher_cosine: Tensor, teacher_temperature: float) -> Tensor:
    return _without_self(teacher_cosine / teacher_temperature).softmax(dim=-1)


def effective_positives(membership: Float[Tensor, "anchors anchors"]) -> Float[Tensor, "anchors"]:
    """1 / Σ_j Q_ij²: how many rays share an anchor's membership; k if it is spread evenly over k."""
    return 1.0 / membership.square().sum(dim=-1)


def mig_loss(similarity: Float[Tensor, "anchors anchors"], pairs: Pairs, temperature: float) -> Float[Tensor, ""]:
    """Mean over anchors of the hard L_i, from the cosines of Jacobians. Anchors without a positive take no part."""
    logits = similarity / temperature
    nothing = torch.finfo(logits.dtype).min
    over_positive = torch.logsumexp(logits.masked_fill(~pairs.positive, nothing), dim=-1)
    over_both = torch.logsumexp(logits.masked_fill(~(pairs.positive | pairs.negative), nothing), dim=-1)
    has_positive = pairs.positive.any(dim=-1)
    return ((over_both - over_positive) * has_positive).sum() / has_positive.sum().clamp(min=1)


def soft_mig_loss(
    similarity: Float[Tensor, "anchors anchors"],
    membership: Float[Tensor, "anchors anchors"],
    temperature: float,
    balance: float,
) -> Float[Tensor, ""]:
    """Weighted mean over anchors of the soft L_i; anchor i weighs effective_positives^-balance.

    Rays are drawn from all pixels, so without balance the loss is that of the largest surfaces.
    """
    return _SoftMig.apply(similarity, membership, temperature, balance)


class _SoftMig(torch.autograd.Function):
    """The weighted soft loss, and its gradient by the first equation of the module, made in the loss's own matrix."""

    @staticmethod
    def forward(ctx: Any, similarity: Tensor, membership: Tensor, temperature: float, balance: float) -> Tensor:
        loss, gradient = _soft_mig(similarity, membership, temperature, balance)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * gradients[0], None, None, None


@compiled_on_gpu
def _soft_mig(similarity: Tensor, membership: Tensor, temperature: float, balance: float) -> tuple[Tensor, Tensor]:
    """Return the loss, and its gradient by S."""
    weight = effective_positives(membership) ** -balance
    weight = weight / weight.sum()
    # Q is 0 on the diagonal, where the logarithm is finite: the product is 0.
    log_share = _without_self(similarity / temperature).log_softmax(dim=-1)
    loss = -((membership * log_share).sum(dim=-1) * weight).sum()
    return loss, log_share.exp_().sub_(membership).mul_(weight[:, None] / temperature)


def norm_loss(jacobians: Float[Tensor, "anchors dims"]) -> Float[Tensor, ""]:
    """mean((‖J‖ − 1)²): keeps every pixel able to respond: a cosine says nothing of length (paper, section 3.2)."""
    return (torch.linalg.vector_norm(jacobians, dim=-1) - 1.0).square().mean()


def shaping_terms(
    jacobians: Float[Tensor, "anchors dims"],
    features: Float[Tensor, "anchors features"],
    threshold: Float[Tensor, ""],
    config: ShapingConfig,
    statistics: bool = True,
) -> tuple[ShapingTerms, Float[Tensor, ""]]:
    """Both losses of one batch of anchors, what to log, and the moved threshold.

    `features` are the teacher's, of the same pixels; they carry no gradient. Without `statistics` the terms that are
    only logged stay None. Expects float32: call with autocast off.
    """
    with tf32_products(config.teacher_tf32 and config.pairs == "soft"):
        teacher_cosine = cosine_matrix(features)
    similarity = cosine_matrix(jacobians)
    if config.pairs == "threshold":
        pairs, threshold = threshold_pairs(teacher_cosine, threshold)
        mig = mig_loss(similarity, pairs, config.temperature)
        found = _hard_statistics(similarity.detach(), pairs) if statistics else ()
    else:
        membership = soft_pairs(teacher_cosine, config.teacher_temperature)
        mig = soft_mig_loss(similarity, membership, config.temperature, config.balance)
        found = _soft_statistics(similarity.detach(), membership) if statistics else ()
    return ShapingTerms(mig, norm_loss(jacobians), *found), threshold


def _hard_statistics(
    similarity: Float[Tensor, "anchors anchors"], pairs: Pairs
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cosine of positive and of negative pairs, and the share of positive pairs, without an anchor's own."""
    positive, negative = pairs.positive.float(), pairs.negative.float()
    share = positive.fill_diagonal_(0.0).mean()
    return _weighted_mean(similarity, positive), _weighted_mean(similarity, negative), share


def _soft_statistics(
    similarity: Float[Tensor, "anchors anchors"], membership: Float[Tensor, "anchors anchors"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the same for soft pairs: means weighted by Q and by 1 − Q_ij / max_j Q_ij; effective share."""
    count = len(similarity)
    by_row, largest = (similarity * membership).sum(dim=-1), membership.amax(dim=-1)
    far = similarity.sum() - similarity.diagonal().sum() - (by_row / largest).sum()
    far_weight = count * (count - 1) - (1.0 / largest).sum()
    share = effective_positives(membership).mean() / (count - 1)
    return by_row.mean(), far / far_weight.clamp(min=NORM_EPS), share


def _weighted_mean(
    values: Float[Tensor, "anchors anchors"], weight: Float[Tensor, "anchors anchors"]
) -> Float[Tensor, ""]:
    return (values * weight).sum() / weight.sum().clamp(min=NORM_EPS)


def _without_self(logits: Float[Tensor, "anchors anchors"]) -> Float[Tensor, "anchors anchors"]:
    """Fresh logits, in place, with a diagonal that counts as nothing; finite, so that no NaN comes of it."""
    return logits.fill_diagonal_(torch.finfo(logits.dtype).min)
