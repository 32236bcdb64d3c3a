"""Closed-form Jacobians of rendered colour, and what the colours do when the layer is perturbed.

Letters (fixed here, used everywhere; jaxtyping axis names in brackets):
    r  [rays]      pixels, one ray each
    s  [samples]   samples along a ray
    c  [channels]  colour channels, 3
    h  [hidden]    units of the colour trunk that feed the RGB layer
    g  [inputs]    units that feed the last trunk layer
    k  [labels]    perturbation directions (one per label, or one per prototype of a label)
    d  [dims]      c·h, a Jacobian written as one vector
    w [r s] rendering weights, a [r s h] trunk activations, z = W a + b pre-sigmoid colour, W [c h], p = σ(z),
    C_c = Σ_s w_s p_sc + (1 − Σ_s w_s)·background_c rendered colour, G [c h] a direction, t its step.

The RGB layer is linear and the only thing behind it is a sigmoid and a sum, so the Jacobian of a pixel is itself a
volume-rendered feature: no autograd call per ray, no double backward, alive under `no_grad`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Background = Literal["random", "last_sample", "black", "white"]

NORM_EPS = 1e-8
"""Smallest norm that a Jacobian is divided by; a ray that hits nothing has a zero Jacobian and a zero cosine."""


def effective_weights(weights: Float[Tensor, "rays samples"], background: Background) -> Float[Tensor, "rays samples"]:
    """Return rendering weights with the background's share folded in.

    `last_sample` paints what is left of a ray's light with the colour of its last sample, which is a function of W like
    every other sample: the residual 1 − Σw joins the last weight. Constant backgrounds do not depend on W and leave the
    weights as they are (`random` is not blended into the rendering at all, only into the loss).
    """
    if background != "last_sample":
        return weights
    residual = 1.0 - weights.sum(dim=-1, keepdim=True)
    return torch.cat([weights[..., :-1], weights[..., -1:] + residual], dim=-1)


def heaviest_samples(weights: Float[Tensor, "rays samples"], count: int) -> Int[Tensor, "rays heaviest"]:
    """Return which `count` samples of each ray weigh most, in no order; all of them where there are fewer.

    A Jacobian is a sum over samples by their weights, and most weigh nothing: near a surface a handful makes the sum.
    """
    return weights.topk(min(count, weights.shape[-1]), dim=-1, sorted=False).indices


def colour_slopes(logits: Float[Tensor, "*samples channels"]) -> Float[Tensor, "*samples channels"]:
    """p (1 − p), as σ(z) σ(−z): of bright samples 1 − p is mostly rounding (in float32 0.9 % at a logit of 12)."""
    return torch.sigmoid(logits) * torch.sigmoid(-logits)


def sigmoid_slopes(
    weights: Float[Tensor, "rays samples"],
    logits: Float[Tensor, "rays samples channels"],
    background: Background,
) -> Float[Tensor, "rays samples channels"]:
    """∂(mean_c C_c)/∂z_sc = 1/3 w_s p_sc (1 − p_sc): what a pixel gains when one sample's pre-sigmoid colour moves."""
    slopes = colour_slopes(logits) / logits.shape[-1]
    return effective_weights(weights, background)[..., None] * slopes


def jacobian(
    weights: Float[Tensor, "rays samples"],
    logits: Float[Tensor, "rays samples channels"],
    activations: Float[Tensor, "rays samples hidden"],
    background: Background = "last_sample",
) -> Float[Tensor, "rays channels hidden"]:
    """Jacobian of each pixel's mean colour with respect to the RGB layer W, bias excluded.

    J_ch = 1/3 Σ_s w_s p_sc (1 − p_sc) a_sh (paper, section 3: the gradient that pixels are compared by).
    Differentiable in all three inputs by ordinary backward.
    """
    slopes = sigmoid_slopes(weights, logits, background)
    return slopes.transpose(-1, -2) @ activations


def trunk_jacobian(
    weights: Float[Tensor, "rays samples"],
    logits: Float[Tensor, "rays samples channels"],
    activations: Float[Tensor, "rays samples hidden"],
    inputs: Float[Tensor, "rays samples inputs"],
    rgb_weight: Float[Tensor, "channels hidden"],
    background: Background = "last_sample",
) -> Float[Tensor, "rays hidden inputs"]:
    """Jacobian of each pixel's mean colour with respect to the last trunk layer V, where a = relu(V·inputs + v).

    The chain rule over one more layer: J_hg = Σ_s (Σ_c 1/3 w_s p_sc (1 − p_sc) W_ch) [a_sh > 0] inputs_sg.
    """
    slopes = sigmoid_slopes(weights, logits, background)
    through = (slopes @ rgb_weight) * (activations > 0)
    return through.transpose(-1, -2) @ inputs


def cosine_response(
    jacobians: Float[Tensor, "rays dims"], directions: Float[Tensor, "labels dims"]
) -> Float[Tensor, "rays labels"]:
    """cos(J_j, G_k): resonance as a similarity, free of brightness and contrast.

    Mutual information under a random perturbation of W is −½ log(1 − cos²) + const (paper, section 3), so ordering by
    cosine is ordering by mutual information.
    """
    return F.normalize(jacobians, dim=-1, eps=NORM_EPS) @ F.normalize(directions, dim=-1, eps=NORM_EPS).T


def response(
    jacobians: Float[Tensor, "rays dims"], directions: Float[Tensor, "labels dims"], step: float
) -> Float[Tensor, "rays labels"]:
    """t⟨J_j, G_k⟩: change of each pixel's mean colour when W moves by t·G, to first order in t."""
    return step * (jacobians @ directions.T)


def perturbed_response(
    weights: Float[Tensor, "rays samples"],
    logits: Float[Tensor, "rays samples channels"],
    activations: Float[Tensor, "rays samples hidden"],
    directions: Float[Tensor, "labels channels hidden"],
    step: float,
    background: Background = "last_sample",
) -> Float[Tensor, "rays labels"]:
    """mean_c |C_c(W + t·G_k) − C_c(W)|: the paper's 2D response, exact, for all directions from one set of samples.

    What lies behind the samples does not depend on W and drops out of the difference. To first order in t, where all
    channels move the same way, it is `response`.
    """
    w = effective_weights(weights, background)[..., None]
    before = torch.sigmoid(logits)
    moved = [
        (w * (torch.sigmoid(logits + step * (activations @ g.T)) - before)).sum(dim=-2).abs().mean(-1)
        for g in directions
    ]
    return torch.stack(moved, dim=-1) if moved else weights.new_zeros(len(weights), 0)


def sample_cosine(
    logits: Float[Tensor, "rays samples channels"],
    activations: Float[Tensor, "rays samples hidden"],
    directions: Float[Tensor, "labels channels hidden"],
) -> Float[Tensor, "rays samples labels"]:
    """cos(j_s, G_k) of the Jacobian j_s = p_s (1 − p_s) ⊗ a_s of each sample's own mean colour: resonance in 3D.

    j_s has rank one, so ⟨j_s, G⟩ = Σ_c p_sc (1 − p_sc) (G a_s)_c and ‖j_s‖ = ‖p_s (1 − p_s)‖·‖a_s‖: the vectors of
    3·hidden numbers per sample are never made.
    """
    slopes = colour_slopes(logits)
    inner = activations.new_zeros(*activations.shape[:-1], len(directions))
    for channel in range(slopes.shape[-1]):  # one at a time, in a third of the memory
        inner += slopes[..., channel, None] * (activations @ directions[:, channel].T)
    norms = (slopes.norm(dim=-1) * activations.norm(dim=-1)).clamp(min=NORM_EPS)
    return inner / (norms[..., None] * directions.flatten(1).norm(dim=-1).clamp(min=NORM_EPS))


def mean_direction(
    weights: Float[Tensor, "rays samples"],
    logits: Float[Tensor, "rays samples channels"],
    activations: Float[Tensor, "rays samples hidden"],
    background: Background = "last_sample",
) -> Float[Tensor, "rays channels hidden"]:
    """Σ_s w_s j_s/‖j_s‖: the rendered unit Jacobians of samples, j_s = p_s (1 − p_s) ⊗ a_s.

    Its product with G/‖G‖ is the rendered `sample_cosine` of G, since both that and rendering are linear in G/‖G‖: all
    directions are answered from one vector per ray.
    """
    slopes = colour_slopes(logits)
    norms = (slopes.norm(dim=-1) * activations.norm(dim=-1)).clamp(min=NORM_EPS)
    shares = effective_weights(weights, background) / norms
    return (shares[..., None] * slopes).transpose(-1, -2) @ activations


def sample_response(
    activations: Float[Tensor, "rays samples hidden"], directions: Float[Tensor, "labels channels hidden"], step: float
) -> Float[Tensor, "rays samples labels"]:
    """|t·mean_c (G_k a_s)_c|: the paper's 3D response, the change of each sample's colour before the sigmoid."""
    return (step * (activations @ directions.mean(dim=1).T)).abs()


def render(
    weights: Float[Tensor, "rays samples"],
    values: Float[Tensor, "rays samples labels"],
    background: Background = "last_sample",
) -> Float[Tensor, "rays labels"]:
    """Σ_s w_s v_sk: any quantity of samples, rendered as colour is; constant backgrounds contribute nothing."""
    return (effective_weights(weights, background)[..., None] * values).sum(dim=-2)
