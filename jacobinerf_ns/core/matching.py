"""Which pixel of one capture looks to a teacher like which pixel of another, and how sure that is per label.

Letters: f [pixels d] teacher features, g [prototypes d] features that stand for labels, k [labels] labels as positions,
C [pixels k] cosine of a pixel to a label, M [pixels k] margin.

Nothing here knows of cameras: features of any two image sets compare, if one teacher made them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.core.jacobian import NORM_EPS

UNLABELLED = -1
"""Label of a pixel that has none, as a position."""
_CHUNK = 2048
"""Rows of a cosine matrix held at a time: bounds memory with many pixels on both sides."""


class Nearest(NamedTuple):
    """The most similar vector of another set."""

    index: Int[Tensor, "pixels"]
    cosine: Float[Tensor, "pixels"]


class LabelMatch(NamedTuple):
    """How well each label of one capture is found in another; 0 where it is not."""

    confidence: Float[Tensor, "labels"]
    """min(1, margin ÷ own margin) · returned, 0..1."""
    margin: Float[Tensor, "labels"]
    """Mean M of the label's best pixels there."""
    own_margin: Float[Tensor, "labels"]
    """The same in the capture that the labels come from: what is to be had with this teacher."""
    returned: Float[Tensor, "labels"]
    """Share of the best pixels whose own nearest pixels in the first capture mostly have the label."""


def nearest(vectors: Float[Tensor, "pixels dims"], others: Float[Tensor, "others dims"]) -> Nearest:
    """Return the vector of `others` with the largest cosine to each vector; the first of equals."""
    directions = _directions(others)
    found = [(part @ directions.T).max(-1) for part in _directions(vectors).split(_CHUNK)]
    return Nearest(torch.cat([part.indices for part in found]), torch.cat([part.values for part in found]))


def mutual_nearest(
    first: Float[Tensor, "firsts dims"], second: Float[Tensor, "seconds dims"]
) -> tuple[Int[Tensor, "pairs 2"], Float[Tensor, "pairs"]]:
    """Pairs (i, j) that are each other's nearest by cosine, and their cosines, in the order of i.

    One-sided nearest neighbours exist for every pixel, also for one of a thing that the other picture does not show;
    few of those are wanted back.
    """
    there, back = nearest(first, second), nearest(second, first)
    rows = torch.arange(len(first), device=first.device)
    both = back.index[there.index] == rows
    return torch.stack([rows[both], there.index[both]], dim=-1), there.cosine[both]


def label_back(
    features: Float[Tensor, "pixels dims"],
    others: Float[Tensor, "others dims"],
    labels: Int[Tensor, "others"],
    num_labels: int,
    neighbours: int = 16,
) -> Int[Tensor, "pixels"]:
    """Return what most of the nearest `neighbours` of `others` are, as a position, or `UNLABELLED`.

    One neighbour would do if all labels were right; those of propagation are not.
    """
    directions, count = _directions(others), min(neighbours, len(others))
    parts = []
    for part in _directions(features).split(_CHUNK):
        found = labels[(part @ directions.T).topk(count, dim=-1).indices]
        votes = part.new_zeros(len(part), num_labels + 1)
        parts.append(votes.scatter_add_(1, found - UNLABELLED, torch.ones_like(found, dtype=votes.dtype)).argmax(-1))
    return torch.cat(parts) + UNLABELLED


def label_cosines(
    features: Float[Tensor, "pixels dims"],
    prototypes: Float[Tensor, "prototypes dims"],
    labels: Int[Tensor, "prototypes"],
    num_labels: int,
) -> Float[Tensor, "pixels labels"]:
    """C_ik = max over the prototypes g of label k of cos(f_i, g); −1 for a label without prototypes."""
    directions = _directions(prototypes)
    parts = []
    for part in _directions(features).split(_CHUNK):
        best = part.new_full((len(part), num_labels), -1.0)
        parts.append(best.scatter_reduce(1, labels.expand(len(part), -1), part @ directions.T, "amax"))
    return torch.cat(parts)


def margins(cosines: Float[Tensor, "pixels labels"]) -> Float[Tensor, "pixels labels"]:
    """M_ik = C_ik − max(0, max over other labels j of C_ij): how much more a pixel is of k than of anything else.

    Unrelated features have a cosine of about 0, which is what a label without rivals is held against.
    """
    if cosines.shape[-1] == 1:
        return cosines
    top = cosines.topk(2, dim=-1).values
    is_best = F.one_hot(cosines.argmax(-1), cosines.shape[-1]).bool()
    rival = torch.where(is_best, top[:, 1:], top[:, :1])
    return cosines - rival.clamp(min=0.0)


def best_pixels(margin: Float[Tensor, "pixels labels"], count: int) -> Int[Tensor, "count labels"]:
    """Return the `count` pixels with the largest margins of each label, best first, or all where there are fewer."""
    return margin.topk(min(count, len(margin)), dim=0).indices


def match_labels(
    found: Float[Tensor, "pixels labels"],
    own: Float[Tensor, "others labels"],
    back: Int[Tensor, "pixels"],
    count: int,
) -> LabelMatch:
    """Confidence of each label, from the `count` pixels with its largest margins in both captures.

    A margin alone says little: it depends on the teacher. In the capture that labels come from their best pixels show
    what a good one is, chosen by the same rule. And a label that is absent there has best pixels too, but those have
    other things nearest to them: mutual consistency.

    Args:
        found: M in the capture where labels are looked for.
        own: M in the capture that labels come from, on other images than the seeds', which resemble themselves.
        back: label of each found pixel's nearest pixels in the first capture (`label_back`).
        count: pixels.
    """
    best, best_own = best_pixels(found, count), best_pixels(own, count)
    margin, own_margin = found.gather(0, best).mean(0), own.gather(0, best_own).mean(0)
    positions = torch.arange(found.shape[1], device=found.device)
    returned = (back[best] == positions).to(found.dtype).mean(0)
    share = (margin / own_margin.clamp(min=NORM_EPS)).clamp(0.0, 1.0)
    return LabelMatch(share * returned, margin, own_margin, returned)


def spread_out(points: Float[Tensor, "pixels axes"], count: int) -> Int[Tensor, "chosen"]:
    """At most `count` points far from each other: the first, and then always the one farthest from all chosen ones."""
    if len(points) <= count:
        return torch.arange(len(points), device=points.device)
    chosen = [0]
    distance = (points - points[0]).norm(dim=-1)
    for _ in range(count - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=-1))
    return torch.tensor(chosen, device=points.device)


def _directions(vectors: Float[Tensor, "pixels dims"]) -> Float[Tensor, "pixels dims"]:
    return F.normalize(vectors.float(), dim=-1, eps=NORM_EPS)
