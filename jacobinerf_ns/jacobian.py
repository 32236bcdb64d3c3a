"""Closed-form Jacobians of rendered colour, and what the colours do when the layer is perturbed.

Letters (fixed here, used everywhere; jaxtyping axis names in brackets):
    r  [rays]      pixels, one ray each
    s  [samples]   samples along a ray
    c  [channels]  colour channels, 3
    h  [hidden]    units of the colour trunk that feed the RGB layer
    g  [inputs]    units that feed the last trunk layer
    k  [labels]    perturbation directions
    d  [dims]      c·h, a Jacobian written as one vector
    w [r s] rendering weights, a [r s h] trunk activations, z = W a + b pre-sigmoid colour, W [c h], p = σ(z),
    C_c = Σ_s w_s p_sc + (1 − Σ_s w_s)·background_c rendered colour, G [c h] a direction, t its step.

The RGB layer is linear and the only thing behind it is a sigmoid and a sum, so the Jacobian of a pixel is itself a
volume-rendered feature: no autograd call per ray, no double backward, alive under `no_grad`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Background = Literal["random", "last_sample", "black", "white"]

NORM_EPS = 1e-8
"""Smallest norm that a Jacobian is divided by; a ray that hits nothing has a zero Jacobian and a zero cosine."""


def effective_weights(weights: Float[Tensor, "rays samples"], background: Background) -> Float[Tensor, "rays samples"]:
    """Rendering weights with the background's share folded in.

    `last_sample` paints what is left of a ray's light with the colour of its last sample, which is a function of W like
    every other sample: the residual 1 − Σw joins the last weight. Constant backgrounds do not depend on W and leave the
    weights as they are (`random` is not blended into the rendering at all, only into the loss).
    """
    if background != "last_sample":
        return weights
    residual = 1.0 - weights.sum(dim=-1, keepdim=True)
    return torch.cat([weights[..., :-1], weights[..., -1:] + residual], dim=-1)


def sigmoid_slopes(
    weights: Float[Tensor, "rays samples"],
    colours: Float[Tensor, "rays samples channels"],
    background: Background,
) -> Float[Tensor, "rays samples channels"]:
    """∂(mean_c C_c)/∂z_sc = 1/3 w_s p_sc (1 − p_sc): what a pixel gains when one sample's pre-sigmoid colour moves."""
    slopes = colours * (1.0 - colours) / colours.shape[-1]
    return effective_weights(weights, background)[..., None] * slopes


def jacobian(
    weights: Float[Tensor, "rays samples"],
    colours: Float[Tensor, "rays samples channels"],
    activations: Float[Tensor, "rays samples hidden"],
    background: Background = "last_sample",
) -> Float[Tensor, "rays channels hidden"]:
    """Jacobian of each pixel's mean colour with respect to the RGB layer W, bias excluded.

    J_ch = 1/3 Σ_s w_s p_sc (1 − p_sc) a_sh (paper, section 3: the gradient that pixels are compared by). `colours` are
    the post-sigmoid p in 0..1. Differentiable in all three inputs by ordinary backward.
    """
    slopes = sigmoid_slopes(weights, colours, background)
    return slopes.transpose(-1, -2) @ activations


def trunk_jacobian(
    weights: Float[Tensor, "rays samples"],
    colours: Float[Tensor, "rays samples channels"],
    activations: Float[Tensor, "rays samples hidden"],
    inputs: Float[Tensor, "rays samples inputs"],
    rgb_weight: Float[Tensor, "channels hidden"],
    background: Background = "last_sample",
) -> Float[Tensor, "rays hidden inputs"]:
    """Jacobian of each pixel's mean colour with respect to the last trunk layer V, where a = relu(V·inputs + v).

    The chain rule over one more layer: J_hg = Σ_s (Σ_c 1/3 w_s p_sc (1 − p_sc) W_ch) [a_sh > 0] inputs_sg.
    """
    slopes = sigmoid_slopes(weights, colours, background)
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


def perturbed_colour(
    weights: Float[Tensor, "rays samples"],
    logits: Float[Tensor, "rays samples channels"],
    activations: Float[Tensor, "rays samples hidden"],
    direction: Float[Tensor, "channels hidden"],
    step: float,
    background: Background = "last_sample",
    background_colour: Float[Tensor, "channels"] | None = None,
) -> Float[Tensor, "rays channels"]:
    """Exact rendered colour under W + t·G: σ(z + t·G a), composited from the samples at hand.

    The same picture as re-rendering a network with changed weights, without the network: samples and rendering weights
    do not depend on W. `logits` are the unperturbed z. `white` has its colour built in; `background_colour` (0..1)
    replaces any constant background, as nerfstudio's override does.
    """
    colours = torch.sigmoid(logits + step * (activations @ direction.T))
    rendered = (effective_weights(weights, background)[..., None] * colours).sum(dim=-2)
    if background_colour is None:
        constant = 1.0 if background == "white" else 0.0
        background_colour = rendered.new_full(rendered.shape[-1:], constant)
    if background == "last_sample":
        return rendered
    return rendered + background_colour * (1.0 - weights.sum(dim=-1, keepdim=True))
