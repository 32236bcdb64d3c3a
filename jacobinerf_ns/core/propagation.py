"""From a few seeds to labels: seeds → prototypes → responses → labels.

Letters (those of `jacobian.py` apart):
    v  [seeds d]       Jacobians of the seed pixels
    g  [prototypes d]  prototypes, the directions that W is perturbed along
    R  [pixels k]      responses of pixels to labels, 0..1
    k  [labels]        labels as positions 0..K−1 (the ids people see are given outside); a *decided* label is
                       position + 1, and 0 is void.

Everything here compares directions, so it serves Jacobians, teacher features and distilled features alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jacobinerf_ns.core.jacobian import NORM_EPS, cosine_response

VOID = 0
"""Decided label of a pixel that gets none."""
KMEANS_ROUNDS = 20
COMMON_THRESHOLD = 0.7
"""Threshold of labels of which nothing is known: the middle of a poor lot (the best was 0.02 to 0.84, by object)."""
PAPER_CLIP = 0.8
PAPER_ABSENT_STD, PAPER_ABSENT_MEAN = 0.05, 0.01
"""The released code's response ceiling, and below which spread and mean a label is taken to be absent from a view."""


@dataclass(frozen=True)
class PropagationConfig:
    """How seeds become labels. The defaults are for a few clicks; the released code's are `PAPER_PROPAGATION`."""

    prototypes: Literal["all", "mean", "kmeans", "adaptive"] = "all"
    """Prototypes of a label: each of its seeds, their mean (paper, sparse), `clusters` centres by cosine, or the best
    of random subsets by how well they segment the seeds themselves (paper, dense)."""
    clusters: int = 20
    """Prototypes per label for `kmeans` and `adaptive` (paper: 20)."""
    rounds: int = 5
    """Random subsets that `adaptive` tries (paper: 5)."""
    space: Literal["2d", "3d"] = "2d"
    """Where responses are taken: on rendered Jacobians, or per sample and then rendered."""
    response: Literal["cosine", "raw"] = "cosine"
    """Cosine with the prototype, or how much the colour moves when the RGB layer is perturbed along it (paper)."""
    exact: bool = False
    """For `raw` in 2D: re-render the colour under the perturbation instead of taking its first order."""
    step: float = 0.1
    """Size t of the perturbation W + t·G for `raw` (paper: 0.1)."""
    decision: Literal["nearest", "paper"] = "nearest"
    """From responses to labels: the largest, or the paper's clipping, blur and absence rule on whole images."""
    neighbours: int = 40
    """Prototypes that vote for a pixel's label, where labels have that many (a mask); with fewer, as many as a label
    has on average: one click per label is plain nearest prototype."""
    refine: int = 0
    """Rounds in which prototypes move to the mean of the scene's pixels that are nearest to them (J-NeRF+); 0: none.
    A mask's own pixels stay; they vote together with the refined mean of its label. Where the scene's segments are
    known (teacher `surfaces`), prototypes of clicks move to the mean of theirs instead, at once."""
    smooth: float = 0.0
    """Share (0..1) of a pixel's response to take from the nearest surface points of all training views, each weighing
    by how much it resembles the pixel: a clean-up in 3D (J-NeRF+); 0: none. Where the scene's segments are known, each
    point says what its segments do. For cosines."""
    threshold: float | Literal["own"] = "own"
    """Response (0..1) from which on a pixel belongs to a label's selection; `own`: each label's natural one, found in
    the scene (`plateaus.py`)."""
    connected: bool = True
    """A label's selection is what hangs together with its seeds (`connection.py`); False: all that responds, wherever
    it is. Which label a pixel resonates with most does not depend on it."""
    strictness: float = 0.0
    """Moves labels' thresholds, -1..1: 0 is where they are, at -1 all is selected, at 1 only what responds fully."""
    temperature: float = 0.05
    """Of the softmax that gives confidence, in units of response."""
    void_below: float = 0.0
    """Pixels with less confidence (0..1) than this get no label; 0 labels every pixel."""


PAPER_PROPAGATION = PropagationConfig(prototypes="mean", response="raw", exact=True, decision="paper")
"""The released code: mean gradient of a label's clicks, exact perturbation, clipping, blur and absence rule."""
JNERF_PLUS = PropagationConfig(refine=10, smooth=0.8)
"""Ours at its best: prototypes refined by the scene, responses smoothed over its surfaces. Shares of 0.6 to 1 give
about the same."""


CENTRES_SHARE = 0.5
"""What labels' centres have to say where many prototypes vote."""
CENTRES_TEMPERATURE = 0.1
"""Cosines with centres are divided by it to become shares of the labels."""
CENTRES_FIT = 0.65
"""`centres_fit` from which on centres vote. A label of many colours has no centre: with a teacher that knows colours
0.30 and 0.46 were measured, with one that knows classes 0.82 and 0.83."""


class Seeds(NamedTuple):
    """What the user marked, rendered."""

    vectors: Float[Tensor, "seeds dims"]
    labels: Int[Tensor, "seeds"]
    positive: Bool[Tensor, "seeds"]
    """False: the pixel is *not* of the label."""
    weights: Float[Tensor, "seeds"]
    """Pixels that each stands for: of a mask, only some are rendered."""


class Prototypes(NamedTuple):
    """Directions that stand for labels; several of one label may, and negative ones speak against it."""

    vectors: Float[Tensor, "prototypes dims"]
    labels: Int[Tensor, "prototypes"]
    positive: Bool[Tensor, "prototypes"]
    weights: Float[Tensor, "prototypes"]
    """Of its vote where many vote: labels count by the area that was marked, as pixels of the scene do."""


class Decision(NamedTuple):
    """Labels of pixels, and how sure they are."""

    labels: Int[Tensor, "*pixels"]
    """Position + 1, or `VOID`."""
    confidence: Float[Tensor, "*pixels"]
    """Probability of the best label against all others and against no label at all, 0..1."""


def select_prototypes(seeds: Seeds, config: PropagationConfig, seed: int = 0) -> Prototypes:
    """Prototypes of every label that has seeds, by `config.prototypes`; negative seeds stay as they are.

    Deterministic under `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    positive = Seeds(*(part[seeds.positive] for part in seeds))
    if config.prototypes == "adaptive":
        vectors, labels = _adaptive(positive, config, generator)
    elif config.prototypes == "all":
        vectors, labels = positive.vectors, positive.labels
    else:
        count = 1 if config.prototypes == "mean" else config.clusters
        parts = [(k, positive.vectors[positive.labels == k]) for k in positive.labels.unique().tolist()]
        centres = [v.mean(0, keepdim=True) if count == 1 else kmeans(v, count, generator) for _, v in parts]
        vectors = torch.cat(centres) if centres else positive.vectors
        labels = positive.labels.new_tensor(
            [k for (k, _), c in zip(parts, centres, strict=True) for _ in range(len(c))]
        )
    negative = Seeds(*(part[~seeds.positive] for part in seeds))
    weights = positive.weights if config.prototypes == "all" else torch.ones_like(vectors[:, 0])
    return Prototypes(
        torch.cat([vectors, negative.vectors]),
        torch.cat([labels, negative.labels]),
        torch.cat([torch.ones_like(labels, dtype=torch.bool), negative.positive]),
        torch.cat([weights, negative.weights]),
    )


def kmeans(
    vectors: Float[Tensor, "pixels dims"], clusters: int, generator: torch.Generator
) -> Float[Tensor, "prototypes dims"]:
    """Spherical k-means: unit centres whose cosine with their members is largest; at most one centre per vector.

    Starts from vectors that are far apart (k-means++ with 1 − cos as distance), so that small groups get a centre too.
    """
    unit = F.normalize(vectors, dim=-1, eps=NORM_EPS)
    if len(unit) <= clusters:
        return unit
    centres = unit[torch.randint(len(unit), (1,), generator=generator)]
    for _ in range(clusters - 1):
        distance = (1.0 - (unit @ centres.T).max(-1).values).clamp(min=NORM_EPS)
        centres = torch.cat([centres, unit[torch.multinomial(distance.cpu(), 1, generator=generator)]])
    for _ in range(KMEANS_ROUNDS):
        nearest = (unit @ centres.T).argmax(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, unit)
        centres = torch.where(sums.norm(dim=-1, keepdim=True) > 0, F.normalize(sums, dim=-1, eps=NORM_EPS), centres)
    return centres


def _adaptive(
    seeds: Seeds, config: PropagationConfig, generator: torch.Generator
) -> tuple[Float[Tensor, "prototypes dims"], Int[Tensor, "prototypes"]]:
    """Select as the paper does, adaptively: of random subsets the one that segments the seeds themselves best (mIoU).

    The released code compares with a best score that it never updates, and so keeps its last subset; here the best
    stays.
    """
    best: tuple[float, Tensor] | None = None
    present = seeds.labels.unique().tolist()
    for _ in range(config.rounds):
        picks = []
        for k in present:
            members = (seeds.labels == k).nonzero()[:, 0]
            order = torch.randperm(len(members), generator=generator)[: config.clusters]
            picks.append(members[order.to(members.device)])
        chosen = torch.cat(picks) if picks else seeds.labels
        nearest = cosine_response(seeds.vectors, seeds.vectors[chosen]).argmax(-1) if picks else chosen
        score = _mean_iou(seeds.labels[chosen][nearest], seeds.labels, present)
        if best is None or score > best[0]:
            best = (score, chosen)
    assert best is not None, "adaptive selection needs at least one round"
    return seeds.vectors[best[1]], seeds.labels[best[1]]


def _mean_iou(predicted: Int[Tensor, "pixels"], truth: Int[Tensor, "pixels"], present: list[int]) -> float:
    ious = []
    for k in present:
        mine, called = truth == k, predicted == k
        ious.append(float((mine & called).sum() / (mine | called).sum().clamp(min=1)))
    return sum(ious) / max(len(ious), 1)


def label_responses(
    similarity: Float[Tensor, "pixels prototypes"],
    prototypes: Prototypes,
    num_labels: int,
    neighbours: int = 1,
    temperature: float = 0.05,
    leaning: Float[Tensor, "pixels labels"] | None = None,
) -> Float[Tensor, "pixels labels"]:
    """R: each label's best positive prototype, 0 where a negative one of the label is nearer; labels without seeds: 0.

    A hard rule on purpose: a pixel that a "not this" click resembles more than any "this" click is out, at any
    threshold.
    With many prototypes the `neighbours` best of them vote, weighted by e^{similarity / temperature}, and every label's
    response is scaled by its votes over those of the winner: a single stray seed decides nothing. `leaning` is what
    labels' centres say (`centre_shares`), and counts as half of the votes: a label that was marked with few pixels is
    outvoted by its neighbours, and its centre is not.
    """
    found = _best_per_label(similarity, prototypes, num_labels, positive=True)
    count = voters(prototypes, neighbours)
    if count > 1:
        votes = _votes(similarity, prototypes, num_labels, count, temperature)
        if leaning is not None:
            votes = torch.lerp(votes / votes.sum(-1, keepdim=True).clamp(min=NORM_EPS), leaning, CENTRES_SHARE)
        found = found * votes / votes.amax(-1, keepdim=True).clamp(min=NORM_EPS)
    if bool(prototypes.positive.all()):
        return found
    against = _best_per_label(similarity, prototypes, num_labels, positive=False)
    return torch.where(found >= against, found, torch.zeros_like(found))


def nearest_responses(
    similarity: Callable[[slice], Float[Tensor, "pixels chosen"]],
    prototypes: Prototypes,
    num_labels: int,
    block: int,
) -> Float[Tensor, "pixels labels"]:
    """`label_responses` where one prototype decides, from `block` prototypes at a time: bounds memory with many.

    Args:
        similarity: of all pixels to some of the prototypes.
        prototypes: all of them.
        num_labels: how many labels there are.
        block: prototypes that `similarity` is asked for at a time.
    """
    best: list[Tensor] = []
    signs = (True,) if bool(prototypes.positive.all()) else (True, False)
    for start in range(0, max(1, len(prototypes.vectors)), block):
        chosen = slice(start, start + block)
        near, part = similarity(chosen), Prototypes(*(rows[chosen] for rows in prototypes))
        here = [_best_per_label(near, part, num_labels, positive) for positive in signs]
        best = [torch.maximum(*pair) for pair in zip(best, here, strict=True)] if best else here
    return torch.where(best[0] >= best[-1], best[0], torch.zeros_like(best[0]))


def centre_shares(
    similarity: Float[Tensor, "pixels prototypes"], centres: Prototypes, num_labels: int
) -> Float[Tensor, "pixels labels"]:
    """Share of each label by its centre: a softmax over the cosines with positive centres, one a label."""
    chosen = centres.positive
    shares = (similarity[:, chosen] / CENTRES_TEMPERATURE).softmax(-1)
    return similarity.new_zeros(len(similarity), num_labels).index_add(1, centres.labels[chosen], shares)


def centres_fit(centres: Prototypes, seeds: Seeds) -> float:
    """How well centres alone tell the marked pixels apart: mIoU, each pixel taking the label of its nearest centre."""
    nearest = cosine_response(seeds.vectors[seeds.positive], centres.vectors[centres.positive]).argmax(-1)
    truth = seeds.labels[seeds.positive]
    return _mean_iou(centres.labels[centres.positive][nearest], truth, truth.unique().tolist())


def voters(prototypes: Prototypes, neighbours: int) -> int:
    """How many prototypes vote: at most as many as a label has on average."""
    labels = prototypes.labels[prototypes.positive]
    return max(1, min(neighbours, len(labels) // max(1, len(labels.unique()))))


def _votes(
    similarity: Float[Tensor, "pixels prototypes"],
    prototypes: Prototypes,
    num_labels: int,
    count: int,
    temperature: float,
) -> Float[Tensor, "pixels labels"]:
    chosen = prototypes.positive
    best, place = similarity[:, chosen].topk(count, dim=-1)
    weights = ((best - best[:, :1]) / temperature).exp() * prototypes.weights[chosen][place]
    return similarity.new_zeros(len(similarity), num_labels).scatter_add(1, prototypes.labels[chosen][place], weights)


def _best_per_label(
    similarity: Float[Tensor, "pixels prototypes"], prototypes: Prototypes, num_labels: int, positive: bool
) -> Float[Tensor, "pixels labels"]:
    # Others count as 0, the least that a response is. Taken out, the host would wait to know how many are left.
    counted = torch.where(prototypes.positive == positive, similarity, 0.0)
    best = similarity.new_zeros(len(similarity), num_labels)
    return best.scatter_reduce(1, prototypes.labels.expand(len(similarity), -1), counted, "amax").clamp(0.0, 1.0)


def common_threshold(config: PropagationConfig) -> float:
    """Return the threshold of labels of which nothing is known."""
    return COMMON_THRESHOLD if config.threshold == "own" else config.threshold


def decide(
    responses: Float[Tensor, "pixels labels"],
    config: PropagationConfig,
    thresholds: Sequence[float] | None = None,
    alone: bool = False,
    connected: Float[Tensor, "pixels labels"] | None = None,
) -> Decision:
    """Return the label with the largest response, and its confidence; void where that is below `config.void_below`.

    Confidence is a softmax over the labels' responses and one more, the threshold of the largest, which stands for
    "none of them": with a single label it is a sigmoid around the selection's threshold, not always 1.

    Args:
        responses: of pixels to labels.
        config: how labels are decided.
        thresholds: of each label's selection; none: what `config` says of all.
        alone: only one label has seeds, and nobody competes with it: pixels below its threshold are void too.
        connected: what of the responses hangs together with seeds, which is what thresholds are about; none: all.
    """
    if responses.shape[-1] == 0:
        nothing = responses.new_zeros(len(responses))
        return Decision(nothing.long(), nothing)
    best, winner = responses.max(-1)
    if thresholds is None:
        thresholds = [common_threshold(config)] * responses.shape[-1]
    none, place = responses.new_tensor(thresholds)[winner], winner[:, None]
    held = best if connected is None else connected.gather(-1, place)[:, 0]
    claims = torch.cat([responses.scatter(-1, place, held[:, None]), none[:, None]], dim=-1) / config.temperature
    confidence = claims.softmax(-1).gather(-1, place)[:, 0]
    known = (confidence >= config.void_below) & (best > 0)
    if alone:
        known &= held >= none
    return Decision(torch.where(known, winner + 1, VOID), confidence)


def decide_paper(responses: Float[Tensor, "height width labels"]) -> Decision:
    """Return the released code's rule on the raw responses of one view.

    Clipped at 0.8, blurred by a 3×3 Gaussian, divided by the label's largest response in the view, zero where the label
    looks absent (spread below 0.05 and mean below 0.01), softmax, argmax.
    """
    clipped = responses.clamp(max=PAPER_CLIP).permute(2, 0, 1)[:, None]
    kernel = clipped.new_tensor([1.0, 2.0, 1.0]) / 4.0
    padded = F.pad(clipped, (1, 1, 1, 1), mode="replicate")
    blurred = F.conv2d(padded, torch.outer(kernel, kernel)[None, None])[:, 0]
    scaled = blurred / blurred.amax(dim=(1, 2), keepdim=True).clamp(min=NORM_EPS)
    spread, mean = blurred.std(dim=(1, 2)), blurred.mean(dim=(1, 2))
    absent = (spread < PAPER_ABSENT_STD) & (mean < PAPER_ABSENT_MEAN)
    confidence, labels = torch.where(absent[:, None, None], 0.0, scaled).softmax(0).max(0)
    return Decision(labels + 1, confidence)


def decide_view(
    responses: Float[Tensor, "height width labels"],
    config: PropagationConfig,
    thresholds: Sequence[float] | None = None,
    alone: bool = False,
    connected: Float[Tensor, "height width labels"] | None = None,
) -> Decision:
    """Labels of a whole view, by whichever rule `config.decision` names; the rest as for `decide`."""
    if config.decision == "paper":
        return decide_paper(responses)
    flat = decide(
        responses.flatten(0, 1), config, thresholds, alone, None if connected is None else connected.flatten(0, 1)
    )
    return Decision(*(part.view(responses.shape[:2]) for part in flat))
