"""nerfacto with other parts: it finds its field, contraction, LPIPS and losses by name, and takes none of them.

Until nerfstudio lets a model say which classes it is built of.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal
from unittest import mock

from nerfstudio.models import nerfacto
from nerfstudio.models.nerfacto import NerfactoModelConfig

from jacobinerf_ns.compat.contraction import CubeContraction
from jacobinerf_ns.compat.lpips import LazyLpips


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
