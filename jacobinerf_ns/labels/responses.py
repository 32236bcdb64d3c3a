"""What a view shows of the labels: responses from one field query, and pictures from responses.

Letters of `jacobian.py` and `propagation.py`. A `LabelSnapshot` is immutable: a frame is rendered from one, whatever a
user clicks meanwhile.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.spatial import KDTree
from torch import Tensor

from jacobinerf_ns.annotations.schema import Edit, Label, Seed
from jacobinerf_ns.core import jacobian
from jacobinerf_ns.core.propagation import Decision, PropagationConfig, Prototypes, centre_shares, label_responses
from jacobinerf_ns.labels.traces import Piece, Traced

PAPER_WHITE = 1.0
GREY = 0.45
"""Brightness that pixels outside of a selection keep in its overlay."""
NEAR_POINTS = 8
"""Surface points that a pixel's response is smoothed over."""
_BLOCK = 64
"""Prototypes that per-sample responses are taken for at a time: bounds memory with many seeds."""


class Mark(NamedTuple):
    """Where a seed is in the scene."""

    seed: Seed
    point: tuple[float, float, float]
    """What it hits, scene units; of a region the hit nearest to their mean."""
    hit: bool
    """Whether it hits a surface."""


class SurfacePool(NamedTuple):
    """Responses at surface points all over the scene: what a pixel's own response is smoothed with."""

    tree: KDTree
    """Of the points, scene units."""
    vectors: Float[Tensor, "pixels dims"]
    """Their Jacobians."""
    responses: Float[Tensor, "pixels labels"]


@dataclass(frozen=True)
class LabelSnapshot:
    """Labels as they are at one moment, for one state of the weights."""

    labels: tuple[Label, ...]
    prototypes: Prototypes
    config: PropagationConfig = field(default_factory=PropagationConfig)
    centres: Prototypes | None = None
    """Refined means of labels that were marked with many pixels, which vote with them; None where there are few."""
    scale: Float[Tensor, "labels"] | None = None
    """For `raw`: the seeds' own mean response per label, which a response is a share of; None where it is not used."""
    pool: SurfacePool | None = None
    selected: int = 0
    """Position of the label shown as `resonance` and `selection`."""
    opacity: float = 0.6
    edits: tuple[Edit, ...] = ()
    marks: tuple[Mark, ...] = ()

    def mask_names(self) -> list[str]:
        """Output name of each label's mask: `mask_` and the name in letters that any file system takes.

        nerfstudio paints every output with "depth" in its name as a depth map; such a label, and a second one of the
        same letters, goes by its id.
        """
        slugs = [re.sub(r"[^a-z0-9]+", "_", label.name.lower()).strip("_") for label in self.labels]
        plain = [bool(slug) and "depth" not in slug and slugs.count(slug) == 1 for slug in slugs]
        kept = [slug if ok else f"id_{label.id}" for slug, ok, label in zip(slugs, plain, self.labels, strict=True)]
        return [f"mask_{name}" for name in kept]


class LabelView(NamedTuple):
    """A view's labels as numbers."""

    responses: Float[Tensor, "height width labels"]
    decision: Decision
    snapshot: LabelSnapshot


def responses(piece: Piece, snapshot: LabelSnapshot) -> Float[Tensor, "rays labels"]:
    """R of each ray to each label, 0..1 (for the paper's decision: its raw responses, in units of colour)."""
    config = snapshot.config
    similarity = prototype_responses(piece, snapshot.prototypes.vectors, config)
    if snapshot.scale is not None:
        scale = snapshot.scale.to(similarity)[snapshot.prototypes.labels]
        similarity = similarity / scale.clamp(min=jacobian.NORM_EPS)
    count = len(snapshot.labels)
    leaning = None
    if snapshot.centres is not None:
        to_centres = prototype_responses(piece, snapshot.centres.vectors, config)
        leaning = centre_shares(to_centres, snapshot.centres, count)
    found = label_responses(similarity, snapshot.prototypes, count, config.neighbours, config.temperature, leaning)
    if snapshot.pool is None:
        return found
    pool = snapshot.pool
    near, shares = piece.neighbours(pool.tree, pool.vectors, min(NEAR_POINTS, len(pool.vectors)))
    nearby = (pool.responses[near] * shares[..., None]).sum(1)
    return torch.lerp(found, nearby.to(found), config.smooth)


def needs_samples(config: PropagationConfig) -> bool:
    """Whether responses of this kind are made of a ray's samples, and not of what is rendered of them."""
    return config.response == "raw" and (config.exact or config.space == "3d")


def prototype_responses(
    piece: Piece, vectors: Float[Tensor, "prototypes dims"], config: PropagationConfig
) -> Float[Tensor, "rays prototypes"]:
    """Response of each ray to each prototype, in the space and of the kind that `config` names.

    Raw and 3D responses are those of the RGB layer; where more layers are shaped, theirs is the first part of a vector.
    """
    if not len(vectors):
        return piece.jacobians.new_zeros(len(piece.jacobians), 0)
    if config.response == "cosine":
        directions = piece.jacobians if config.space == "2d" else piece.means
        own = vectors[:, : directions.shape[1]]
        return directions @ F.normalize(own, dim=-1, eps=jacobian.NORM_EPS).T
    if not needs_samples(config):
        flat = vectors[:, : piece.means.shape[1]]
        return (piece.lengths * jacobian.response(piece.jacobians[:, : flat.shape[1]], flat, config.step)).abs()
    traced = piece.samples
    assert traced is not None, "the samples were dropped"
    parts = [_sample_responses(traced, part, config) for part in rgb_directions(traced, vectors).split(_BLOCK)]
    return torch.cat(parts, dim=-1)


def rgb_directions(
    traced: Traced, vectors: Float[Tensor, "prototypes dims"]
) -> Float[Tensor, "prototypes channels hidden"]:
    """The part of prototypes that is of the RGB layer, as directions G of its weights."""
    channels, hidden = traced.logits.shape[-1], traced.trace.activations.shape[-1]
    return vectors[:, : channels * hidden].reshape(-1, channels, hidden)


def _sample_responses(
    traced: Traced, directions: Float[Tensor, "prototypes channels hidden"], config: PropagationConfig
) -> Float[Tensor, "rays prototypes"]:
    activations = traced.trace.activations.float()
    if config.space == "2d":
        return jacobian.perturbed_response(
            traced.weights, traced.logits, activations, directions, config.step, traced.background
        )
    values = jacobian.sample_response(activations, directions, config.step)
    return jacobian.render(traced.weights, values, traced.background)


def pictures(
    rgb: Float[Tensor, "*pixels 3"],
    found: Float[Tensor, "*pixels labels"],
    decision: Decision,
    snapshot: LabelSnapshot,
) -> dict[str, Tensor]:
    """All label outputs of rays or of a view, in forms that nerfstudio can show: floats in 0..1, colours, booleans."""
    selection = selected(found, decision, snapshot)
    resonance = (
        found[..., snapshot.selected : snapshot.selected + 1] if snapshot.labels else torch.zeros_like(rgb[..., :1])
    )
    palette = torch.tensor([(0, 0, 0), *(label.colour for label in snapshot.labels)], device=rgb.device) / 255.0
    colours = palette[decision.labels]
    known = (decision.labels > 0)[..., None]
    blended = torch.lerp(rgb, colours, snapshot.opacity)
    own = palette[snapshot.selected + 1] if snapshot.labels else palette[0]
    masks = {name: (decision.labels == position + 1)[..., None] for position, name in enumerate(snapshot.mask_names())}
    return {
        "resonance": resonance,
        "selection": selection,
        "selection_overlay": torch.where(selection, torch.lerp(rgb, own.expand_as(rgb), snapshot.opacity), GREY * rgb),
        "rgb_selected": torch.where(selection, rgb, PAPER_WHITE),
        "labels": colours,
        "labels_overlay": torch.where(known, blended, rgb),
        "label_confidence": decision.confidence[..., None],
        **masks,
    }


def selected(
    found: Float[Tensor, "*pixels labels"], decision: Decision, snapshot: LabelSnapshot
) -> Bool[Tensor, "*pixels 1"]:
    """Pixels of the selected label: a response of at least the threshold, and none of another label that is larger.

    The paper's decision knows no threshold.
    """
    if not snapshot.labels:
        return torch.zeros_like(decision.labels, dtype=torch.bool)[..., None]
    mine = found[..., snapshot.selected]
    if snapshot.config.decision == "paper":
        return (decision.labels == snapshot.selected + 1)[..., None]
    best = found.argmax(-1) == snapshot.selected
    return ((mine >= snapshot.config.threshold) & best & (mine > 0))[..., None]


def nothing_to_show(rgb: Float[Tensor, "*pixels 3"]) -> dict[str, Tensor]:
    """The same outputs where no label is there yet: the viewer lists what the first frame has."""
    none = rgb.new_zeros(0)
    empty = LabelSnapshot((), Prototypes(rgb.new_zeros(0, 1), none.long(), none.bool(), none))
    found = rgb.new_zeros(*rgb.shape[:-1], 0)
    nobody = rgb.new_zeros(rgb.shape[:-1])
    return {**pictures(rgb, found, Decision(nobody.long(), nobody), empty), "edited": rgb}
