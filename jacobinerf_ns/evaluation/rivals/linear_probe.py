"""A linear probe: what a linear classifier can read off vectors of pixels (the idea of Semantic-SRN).

Letters: v [pixels dims] vectors, k [labels] labels as positions 0..K−1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.core.jacobian import NORM_EPS, render
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, Scene
from jacobinerf_ns.labels.traces import Traced

_ITERATIONS = 200
_HISTORY = 20


def fit(scene: Scene, exercise: Exercise) -> Fitted:
    """Fit a classifier to the rendered activations of the labelled pixels."""
    sight = scene.look(exercise.split, exercise.pixels)
    probe = linear_probe(rendered_activations(sight.traced), exercise.positions, len(exercise.ids))
    return Fitted(lambda sight: probe.logits(rendered_activations(sight.traced)))


def rendered_activations(traced: Traced) -> Float[Tensor, "rays hidden"]:
    """Σ_s w_s a_s: the colour trunk's activations of each pixel, what a linear probe looks at."""
    return render(traced.weights, traced.trace.activations.float(), traced.background)


class LinearProbe(NamedTuple):
    """logits = ((v/‖v‖ − mean) / spread) · weightᵀ + bias."""

    weight: Float[Tensor, "labels dims"]
    bias: Float[Tensor, "labels"]
    mean: Float[Tensor, "dims"]
    spread: Float[Tensor, ""]
    """One number for all dimensions: with a few pixels, the spread of a single one is chance."""

    def logits(self, vectors: Float[Tensor, "pixels dims"]) -> Float[Tensor, "pixels labels"]:
        """Logits of each pixel."""
        return _standardised(vectors, self.mean, self.spread) @ self.weight.T + self.bias

    def predict(self, vectors: Float[Tensor, "pixels dims"]) -> Int[Tensor, "pixels"]:
        """The most probable label of each pixel."""
        return self.logits(vectors).argmax(dim=-1)


def linear_probe(
    vectors: Float[Tensor, "pixels dims"], labels: Int[Tensor, "pixels"], num_labels: int, l2: float = 0.03
) -> LinearProbe:
    """Multinomial logistic regression on the directions of vectors: mean cross-entropy + l2/2·‖weight‖².

    The lengths are left out, for they are brightness and not kind. Convex, and minimised from zero by L-BFGS: no seed.
    """
    unit = F.normalize(vectors.detach().float(), dim=-1, eps=NORM_EPS)
    mean = unit.mean(dim=0)
    spread = (unit - mean).square().mean().sqrt().clamp(min=NORM_EPS)
    inputs = _standardised(vectors.detach().float(), mean, spread)
    weight = inputs.new_zeros(num_labels, inputs.shape[1]).requires_grad_()
    bias = inputs.new_zeros(num_labels).requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, history_size=_HISTORY, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        solver.zero_grad()
        value = F.cross_entropy(inputs @ weight.T + bias, labels) + 0.5 * l2 * weight.square().sum()
        value.backward()
        return value.item()

    with torch.enable_grad():
        solver.step(loss)
    return LinearProbe(weight.detach(), bias.detach(), mean, spread)


def _standardised(
    vectors: Float[Tensor, "pixels dims"], mean: Float[Tensor, "dims"], spread: Float[Tensor, ""]
) -> Float[Tensor, "pixels dims"]:
    return (F.normalize(vectors.float(), dim=-1, eps=NORM_EPS) - mean) / spread
