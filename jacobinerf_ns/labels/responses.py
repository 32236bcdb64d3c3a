"""Responses of rays to labels, from one field query.

Letters of `core/jacobian.py` and `core/propagation.py`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.core import jacobian
from jacobinerf_ns.core.propagation import PropagationConfig, centre_shares, label_responses
from jacobinerf_ns.labels.snapshot import Answers, Connection, LabelSnapshot, Relevancy
from jacobinerf_ns.labels.traces import Piece, Traced

RESONANT = 4
"""Training pixels whose relevancy a ray takes the mean of."""
_ROWS = 4096
"""Rays that are compared with training pixels at a time."""
_BLOCK = 64
"""Prototypes that per-sample responses are taken for at a time: bounds memory with many seeds."""


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
    near, shares = piece.neighbours(pool.tree, pool.vectors)
    nearby = (pool.responses[near] * shares[..., None]).sum(1)
    return torch.lerp(found, nearby.to(found), config.smooth)


def answers(piece: Piece, snapshot: LabelSnapshot) -> Answers:
    """Return the responses of each ray, and what of them hangs together with the labels' seeds."""
    found = responses(piece, snapshot)
    if snapshot.connection is None:
        return Answers(found, found)
    return Answers(found, connected(found, piece.nearest(snapshot.connection.tree), snapshot.connection))


def connected(
    found: Float[Tensor, "*places labels"], near: Int[Tensor, "*places neighbours"], connection: Connection
) -> Float[Tensor, "*places labels"]:
    """Return responses as far as those of the surface around carry them; `near` are points of the connection's tree."""
    around = connection.carried.to(found)[near.to(found.device)]
    return torch.minimum(found, around.amax(-2))


def relevancies(piece: Piece, known: Relevancy | None) -> Float[Tensor, "rays 1"]:
    """Return the relevancy of words to rays, 0..1: the mean of the pixels that a ray resonates with most; 0 of none.

    LERF renders a field of features for it. Here what resonates is taken together, as it is where words are looked for,
    and neither such a field nor a teacher is needed.
    """
    if known is None:
        return piece.jacobians.new_zeros(len(piece.jacobians), 1)
    count = min(RESONANT, len(known.values))
    parts = [
        known.values[(chunk @ known.vectors.T).topk(count, dim=-1).indices].mean(-1, keepdim=True)
        for chunk in piece.jacobians.split(_ROWS)
    ]
    return torch.cat(parts)


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
    """Return the part of prototypes that is of the RGB layer, as directions G of its weights."""
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
