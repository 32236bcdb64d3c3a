"""J-NeRF+: what the whole scene says about a few seeds.

Letters of `propagation.py`. Everything here is without labels but for the seeds: prototypes move to what resonates with
them, and vectors are averaged over the surface that several views see, or over the segments that the scene is known to
come apart into, in each of several trees.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.core.jacobian import NORM_EPS, cosine_response
from jacobinerf_ns.core.partition import UNKNOWN
from jacobinerf_ns.core.propagation import Prototypes

LEADS = (0.03, 0.07, 0.1, 0.15, 0.2)
"""Cosines by which pixels have to be nearer to one label than to the others, of the refinements that are tried."""


def refine_prototypes(
    prototypes: Prototypes,
    vectors: Float[Tensor, "pixels dims"],
    rounds: int,
    keep: float = 0.1,
    lead: float = 0.07,
    least: float = 0.7,
) -> Prototypes:
    """Prototypes move to the mean direction of the scene's pixels that are clearly nearest to them.

    A click is one pixel with its own shade; the mean of what resonates with it stands for the entity. Pixels between
    two labels move neither: followed, they pull a weak prototype over to its neighbour. Negative prototypes take part
    in the assignment and stay where they are.

    Args:
        prototypes: where to start.
        vectors: pixels from all over the scene, without labels.
        rounds: how often to assign and move.
        keep: share of the start that stays in, so that a label cannot wander off.
        lead: cosine by which a pixel has to be nearer to its prototype than to any of another label.
        least: cosine that it needs at all; what resembles no prototype is nobody's.
    """
    start = F.normalize(prototypes.vectors, dim=-1, eps=NORM_EPS)
    unit, moved = F.normalize(vectors, dim=-1, eps=NORM_EPS), start
    for _ in range(rounds):
        similarity = unit @ moved.T
        cosine, nearest = similarity.max(-1)
        others = prototypes.labels[nearest, None] != prototypes.labels
        second = similarity.masked_fill(~others, -1.0).amax(-1)
        clear = (cosine >= least) & (cosine - second >= lead)
        sums = torch.zeros_like(moved).index_add_(0, nearest, unit * clear[:, None])
        target = keep * start + (1.0 - keep) * F.normalize(sums, dim=-1, eps=NORM_EPS)
        moves = prototypes.positive & (sums.norm(dim=-1) > 0)
        moved = torch.where(moves[:, None], F.normalize(target, dim=-1, eps=NORM_EPS), moved)
    return prototypes._replace(vectors=moved * prototypes.vectors.norm(dim=-1, keepdim=True))


def clearest_refinement(starts: Sequence[Prototypes], vectors: Float[Tensor, "pixels dims"], rounds: int) -> Prototypes:
    """Of refinements from several starts and with several leads, the one that tells the scene apart most clearly.

    A weak click can lose its entity to a neighbour, and then two prototypes stand for one thing. That shows without any
    label: pixels have two prototypes about as near. So the mean lead of the nearest prototype decides.
    """
    found = [refine_prototypes(start, vectors, rounds, lead=lead) for start in starts for lead in LEADS]
    return max(found, key=lambda prototypes: _separation(prototypes, vectors))


def _separation(prototypes: Prototypes, vectors: Float[Tensor, "pixels dims"]) -> float:
    """Mean over pixels of the nearest prototype's cosine minus that of the nearest of any other label."""
    similarity = cosine_response(vectors, prototypes.vectors)
    best, nearest = similarity.max(-1)
    others = prototypes.labels[nearest, None] != prototypes.labels
    return float((best - similarity.masked_fill(~others, 0.0).amax(-1)).mean())


def alike_shares(
    vectors: Float[Tensor, "pixels dims"], near: Float[Tensor, "pixels neighbours dims"], temperature: float = 0.1
) -> Float[Tensor, "pixels neighbours"]:
    """Share of each neighbour in what a pixel is smoothed with: a softmax over the cosines of their Jacobians.

    Points that lie side by side on a surface may belong to two things. Taken alike, they blur the border between them,
    and things smaller than the distance of the points vanish; those that resonate with the pixel are of its own kind.
    """
    unit = F.normalize(vectors, dim=-1, eps=NORM_EPS)
    others = F.normalize(near, dim=-1, eps=NORM_EPS)
    return ((others @ unit[..., None])[..., 0] / temperature).softmax(-1)


def grow(
    seed: Float[Tensor, "seeds dims"], around: Float[Tensor, "seeds pixels dims"], least: float = 0.8
) -> Float[Tensor, "seeds dims"]:
    """Each seed's direction averaged with those pixels around it that resemble it (cosine of at least `least`).

    One pixel may be noisy, or half of another thing at its border.
    """
    unit = F.normalize(seed, dim=-1, eps=NORM_EPS)
    near = F.normalize(around, dim=-1, eps=NORM_EPS)
    alike = (near @ unit[..., None])[..., 0] >= least
    mean = F.normalize(unit + (near * alike[..., None]).sum(1), dim=-1, eps=NORM_EPS)
    return mean * seed.norm(dim=-1, keepdim=True)


def over_segments(
    own: Float[Tensor, "places dims"],
    within: Int[Tensor, "places trees"],
    vectors: Float[Tensor, "pixels dims"],
    segments: Int[Tensor, "pixels trees"],
) -> Float[Tensor, "places dims"]:
    """Return each place's direction as its segments have it: the mean over trees of the mean direction of the segment.

    A segment is a part of one thing, and what differs within it is noise: of places that look flat or dark, mostly. A
    tree that knows nothing of a place, or has none of the pixels there, says what the place itself does.

    Args:
        own: Jacobians of the places.
        within: segment of each place in each tree, or `UNKNOWN`.
        vectors: Jacobians of pixels from all over the scene.
        segments: theirs, likewise.
    """
    norms = own.norm(dim=-1, keepdim=True)
    unit, others = F.normalize(own, dim=-1, eps=NORM_EPS), F.normalize(vectors, dim=-1, eps=NORM_EPS)
    total = torch.zeros_like(unit)
    for here, there in zip(within.unbind(-1), segments.unbind(-1), strict=True):
        count = int(torch.cat([here, there]).clamp(min=0).max()) + 1
        known = there != UNKNOWN
        sums = others.new_zeros(count, others.shape[1]).index_add_(0, there[known], others[known])
        mean = F.normalize(sums, dim=-1, eps=NORM_EPS)[here.clamp(min=0)]
        told = (here != UNKNOWN) & (mean.norm(dim=-1) > 0)
        total += torch.where(told[:, None], mean, unit)
    return F.normalize(total, dim=-1, eps=NORM_EPS) * norms


def uncontested(
    segments: Int[Tensor, "pixels trees"], within: Int[Tensor, "seeds trees"], kinds: Int[Tensor, "seeds"]
) -> Int[Tensor, "pixels trees"]:
    """Return the segments of pixels, `UNKNOWN` in the place of those that hold seeds of several kinds.

    Seeds outrank segments: what somebody tells apart within one is not one.

    Args:
        segments: of the pixels, in each tree.
        within: of the seeds, likewise.
        kinds: which seeds say the same: their labels, and whether they speak for them.
    """
    found = segments.clone()
    for tree, here in enumerate(within.unbind(-1)):
        pairs = torch.stack([here, kinds], dim=-1)[here != UNKNOWN].unique(dim=0)
        several, count = pairs[:, 0].unique(return_counts=True)
        found[:, tree] = torch.where(torch.isin(segments[:, tree], several[count > 1]), UNKNOWN, segments[:, tree])
    return found
