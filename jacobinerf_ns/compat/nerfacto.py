"""nerfacto with other parts: it finds its field, contraction, LPIPS and losses by name, and takes none of them.

Until nerfstudio lets a model say which classes it is built of.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
from jaxtyping import Float
from nerfstudio.fields.base_field import Field
from nerfstudio.models import nerfacto
from nerfstudio.models.nerfacto import NerfactoModelConfig
from torch import Tensor, nn

from jacobinerf_ns.compat.contraction import CubeContraction
from jacobinerf_ns.compat.lpips import LazyLpips
from jacobinerf_ns.core.products import linear


@contextmanager
def built_of(field: Callable[..., Any]) -> Iterator[None]:
    """Let nerfacto build another field, our contraction, and an LPIPS that waits for its weights."""
    with (
        mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", LazyLpips),
        mock.patch("nerfstudio.models.nerfacto.SceneContraction", CubeContraction),
        mock.patch("nerfstudio.models.nerfacto.NerfactoField", field),
    ):
        yield


@contextmanager
def implementation_named(config: NerfactoModelConfig, name: Literal["tcnn", "torch"]) -> Iterator[None]:
    """Let nerfacto's constructors, which know `tcnn` and `torch` alone, read one of these from a config."""
    before = config.implementation
    config.implementation = name
    try:
        yield
    finally:
        config.implementation = before


def proposal_loss_left_out() -> AbstractContextManager[Any]:
    """Let nerfacto's losses have 0 as that of the proposal networks, without calculating it."""
    return mock.patch.object(nerfacto, "interlevel_loss", lambda weights, _: weights[-1].new_zeros(()))


@dataclass(frozen=True)
class Places:
    """Points, where a field that knows nothing else of rays expects samples of them."""

    points: Float[Tensor, "*bs 3"]
    """Where."""

    @property
    def frustums(self) -> "Places":
        """Themselves."""
        return self

    @property
    def shape(self) -> torch.Size:
        """How many."""
        return self.points.shape[:-1]

    def get_positions(self) -> Float[Tensor, "*bs 3"]:
        """Where."""
        return self.points


def density_at(network: Field, points: Float[Tensor, "*bs 3"]) -> Float[Tensor, "*bs 1"]:
    """Density that a proposal network finds at points; nerfstudio's `density_fn` first makes rays of no length."""
    return network.get_density(Places(points))[0]  # pyright: ignore[reportArgumentType]


class Linear(nn.Linear):
    """A linear layer that `core.products` calculates."""

    def forward(self, input: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """x Wᵀ + b."""
        return linear(input, self.weight, self.bias)


def use_products(module: nn.Module) -> None:
    """Let linear layers change their class and stay themselves: parameters, checkpoints, whoever holds them."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear


def write_over_inputs(module: nn.Module) -> None:
    """Let the ReLUs of nerfacto's networks write over what a linear layer, which does not need it, has just made."""
    for part in module.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = True
