"""Nearest prototypes on any vectors of pixels: the votes that ours gets, for rivals that differ in the vectors only."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.core.jacobian import cosine_response
from jacobinerf_ns.core.propagation import PropagationConfig, Prototypes, label_responses
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, LabelScores, ViewPixels

NEIGHBOURS = PropagationConfig().neighbours


def fit_nearest(
    vectors: Float[Tensor, "pixels dims"], exercise: Exercise, look: Callable[[ViewPixels], Float[Tensor, "rays dims"]]
) -> Fitted:
    """Fit prototypes to the vectors of the labelled pixels.

    Args:
        vectors: one for each labelled pixel.
        exercise: whose pixels they are.
        look: vectors of any other pixels.
    """
    known = torch.ones_like(exercise.positions, dtype=torch.bool) if exercise.positive is None else exercise.positive
    where = vectors.device
    prototypes = Prototypes(vectors, exercise.positions.to(where), known.to(where), torch.ones_like(vectors[:, 0]))

    def scores(seen: ViewPixels) -> LabelScores:
        similarity = cosine_response(look(seen), prototypes.vectors)
        return label_responses(similarity, prototypes, len(exercise.ids), NEIGHBOURS)

    return Fitted(scores)
