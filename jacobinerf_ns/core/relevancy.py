"""Where in a scene a text fits, whether it fits anywhere at all, and which places shall stand for it.

Letters:
    q  [places]         cosine of a place's feature to the text
    n  [places others]  cosines to other words
    J  [places d]       Jacobians of the places, x [places 3] their points in the scene

Cosines of texts and patches have no scale of their own: one model's best fit is 0.3, another's 0.12. So a text is
always measured against other words at the same place.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.core.jacobian import NORM_EPS

TEMPERATURE = 10.0
"""LERF's: what differences of cosines are multiplied by."""
_CHUNK = 1024
"""Rows of a cosine matrix held at a time."""
_LEAST_SPREAD = 1e-4
"""Deviation (a cosine) that other words are taken to have at least: half precision has no finer."""


def relevancy(
    query: Float[Tensor, "*places"], others: Float[Tensor, "*places others"], temperature: float = TEMPERATURE
) -> Float[Tensor, "*places"]:
    """Return how much likelier the text is than the likeliest of the others, 0..1 (LERF, Kerr et al., ICCV 2023).

    min over n of exp(τ q) / (exp(τ q) + exp(τ n)): 0.5 where the text is as good as the best of the others.
    """
    return torch.sigmoid(temperature * (query - others.amax(-1)))


def stands_out(query: Float[Tensor, "places"], others: Float[Tensor, "places others"]) -> Float[Tensor, "places"]:
    """Return by how many deviations of the others a text fits a place better than they do on average.

    Where nothing is meant by a text it is one word among others, and of those 0.1 % exceed 3.
    """
    spread = others.std(-1, correction=0).clamp_min(_LEAST_SPREAD)
    return (query - others.mean(-1)) / spread


def smoothed(
    values: Float[Tensor, "places texts"], jacobians: Float[Tensor, "places d"], neighbours: int
) -> Float[Tensor, "places texts"]:
    """Return means over the places whose Jacobians are nearest, each place itself included.

    A patch sees badly, alone and beside an outline; the places that resonate with it are of one entity.
    """
    directions = F.normalize(jacobians, dim=-1, eps=NORM_EPS)
    count = min(neighbours, len(values))
    parts = [
        values[(chunk @ directions.T).topk(count, dim=-1).indices].mean(dim=1) for chunk in directions.split(_CHUNK)
    ]
    return torch.cat(parts)


def spread_places(
    points: Float[Tensor, "places 3"], scores: Float[Tensor, "places"], count: int
) -> Int[Tensor, "chosen"]:
    """Return at most `count` places: the best, then always the one farthest from those that were chosen."""
    chosen = [int(scores.argmax())]
    distance = (points - points[chosen[0]]).norm(dim=-1)
    while len(chosen) < min(count, len(points)) and bool(distance.max() > 0):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=-1))
    return torch.tensor(chosen)
