"""A linear probe: what a linear classifier can read off vectors of pixels (the idea of Semantic-SRN).

Letters: v [pixels dims] vectors, k [labels] labels as positions 0..K−1.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from jacobinerf_ns.core.jacobian import NORM_EPS, render
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, TrainedFields
from jacobinerf_ns.labels.traces import Traced

_TOLERANCE, _ITERATIONS = 1e-6, 1000


def fit(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit a classifier to the rendered activations of the labelled pixels."""
    seen = fields.look(exercise.split, exercise.pixels)
    probe = linear_probe(rendered_activations(seen.shaped), exercise.positions, len(exercise.ids))
    return Fitted(lambda seen: probe.logits(rendered_activations(seen.shaped)))


def rendered_activations(traced: Traced) -> Float[Tensor, "rays hidden"]:
    """Return Σ_s w_s a_s, the colour trunk's activations of each pixel."""
    return render(traced.weights, traced.trace.activations.float(), traced.background)


class LinearProbe(NamedTuple):
    """logits = ((v/‖v‖ − mean) / spread) · weightᵀ + bias."""

    weight: Float[Tensor, "labels dims"]
    bias: Float[Tensor, "labels"]
    mean: Float[Tensor, "dims"]
    spread: Float[Tensor, ""]
    """One number for all dimensions: with a few pixels, the spread of a single one is chance."""

    def logits(self, vectors: Float[Tensor, "pixels dims"]) -> Float[Tensor, "pixels labels"]:
        """Return the logits of each pixel."""
        return _standardised(vectors, self.mean, self.spread) @ self.weight.T + self.bias


def linear_probe(
    vectors: Float[Tensor, "pixels dims"], labels: Int[Tensor, "pixels"], num_labels: int, l2: float = 0.03
) -> LinearProbe:
    """Fit multinomial logistic regression to the directions of vectors: mean cross-entropy + l2/2·‖weight‖².

    The lengths are left out, for they are brightness and not kind. Convex, and minimised from zero: no seed. A label
    without pixels is given to none.
    """
    unit = F.normalize(vectors.detach().float(), dim=-1, eps=NORM_EPS)
    mean = unit.mean(dim=0)
    spread = (unit - mean).square().mean().sqrt().clamp(min=NORM_EPS)
    inputs = _standardised(vectors.detach().float(), mean, spread)
    present = labels.unique()
    weight, bias = inputs.new_zeros(num_labels, inputs.shape[1]), inputs.new_full((num_labels,), -torch.inf)
    bias[present] = 0.0
    if len(present) > 1:
        solution = _regression(inputs.cpu().numpy(), labels.cpu().numpy(), l2)
        weight[present], bias[present] = (torch.from_numpy(part).to(weight) for part in solution)
    return LinearProbe(weight, bias, mean, spread)


def _regression(inputs: np.ndarray, labels: np.ndarray, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a row of weights and a bias for each label that occurs."""
    # Of two classes only the difference w of their weights is solved for; ±w/2 have half the ‖·‖² of w together.
    two = len(np.unique(labels)) == 2
    strength = (2.0 if two else 1.0) / (l2 * len(inputs))
    solver = LogisticRegression(C=strength, tol=_TOLERANCE, max_iter=_ITERATIONS).fit(inputs, labels)
    if not two:
        return solver.coef_, solver.intercept_
    halves = np.array([[-0.5], [0.5]])
    return halves * solver.coef_, halves[:, 0] * solver.intercept_


def _standardised(
    vectors: Float[Tensor, "pixels dims"], mean: Float[Tensor, "dims"], spread: Float[Tensor, ""]
) -> Float[Tensor, "pixels dims"]:
    return (F.normalize(vectors.float(), dim=-1, eps=NORM_EPS) - mean) / spread
