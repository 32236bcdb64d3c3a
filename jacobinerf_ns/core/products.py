"""Products of matrices on a CPU, by the faster of the two libraries that torch brings along.

Letters: x [rows inputs] rows, W [outputs inputs] weights, b [outputs] biases, y [rows outputs], g gradient by y.

    y = x Wᵀ + b,    dL/dx = g W,    dL/dW = gᵀ x,    dL/db = Σ_rows g

torch hands them to MKL, which takes the widest registers on Intel's own CPUs alone, and keeps oneDNN, which takes them
on any, for convolutions and compiled graphs. On one core of an AMD EPYC of 2024, inside a training step, 12,288 rows of
64 by 64 weights: 1.26 ms by MKL, .59 ms by oneDNN. oneDNN needs a tenth of a millisecond to begin, and adds up few long
columns no faster, so small products and dL/dW stay with MKL. Both sum in float32: results differ in rounding alone.
"""

from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WORTH_IT = 1 << 23
"""Multiplications from which on oneDNN's start is worth it."""


def linear(
    x: Float[Tensor, "*rows inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*rows outputs"]:
    """x Wᵀ + b, what `nn.functional.linear` gives and is asked wherever oneDNN has nothing to offer.

    Differentiable once where oneDNN does it. Not a view of anything: what follows may write over it.
    """
    if x.ndim != 2 or not _by_onednn(x, weight):
        return nn.functional.linear(x, weight, bias)
    return cast(Tensor, _Linear.apply(x.contiguous(), weight, bias))


def product(x: Float[Tensor, "rows inputs"], weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "rows outputs"]:
    """x Wᵀ, without a gradient."""
    return _onednn(x, weight, None) if _by_onednn(x, weight) else x @ weight.T


class _Linear(torch.autograd.Function):
    """The module's equations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), gradient = ctx.saved_tensors, gradients[0].contiguous()
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _onednn(gradient, weight.T, None) if of_x else None,
            # This way round MKL needs up to half the time where there are fewer inputs than outputs.
            (x.T @ gradient).T if of_weight else None,
            gradient.sum(dim=0) if of_bias else None,
        )


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is there and worth it."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= WORTH_IT
        and not torch.is_autocast_enabled("cpu")
        and _onednn_is_here()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _onednn_is_here() -> bool:
    """Whether torch has oneDNN under the name that its own compiler calls it by; that name promises nothing."""
    try:
        one = torch.ones(1, 1)
        return bool(_onednn(one, one, one[0]) == 2.0)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
