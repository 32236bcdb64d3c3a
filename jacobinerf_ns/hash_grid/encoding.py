"""nerfstudio's hash encoding on our kernels: the same parameters, the same numbers, a fraction of the time."""

from collections.abc import Iterable
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from jacobinerf_ns.hash_grid import grid as hash_grid


class JitHashEncoding(HashEncoding):
    """nerfstudio's torch `HashEncoding` with another forward.

    Construction is nerfstudio's own, so parameters, initialisation and random draws are the same, and checkpoints of
    either load into the other. See `use_jit` for models that are built already.
    """

    position_gradients: bool = True
    """Whether positions get a gradient. nerfacto asks for one in every step, and reads it only for normals and for the
    camera optimiser; where neither is on, False saves more than half of the encoding's backward."""

    _placed: Tensor | None = None
    """`scalings` where the positions are. nerfstudio keeps them on the CPU, and one level's as integers."""

    def __init__(
        self,
        num_levels: int = 16,
        min_res: int = 16,
        max_res: int = 1024,
        log2_hashmap_size: int = 19,
        features_per_level: int = 2,
        hash_init_scale: float = 0.001,
        interpolation: Literal["Linear"] | None = None,
    ) -> None:
        super().__init__(
            num_levels=num_levels,
            min_res=min_res,
            max_res=max_res,
            log2_hashmap_size=log2_hashmap_size,
            features_per_level=features_per_level,
            hash_init_scale=hash_init_scale,
            implementation="torch",
            interpolation=interpolation,
        )

    def forward(self, in_tensor: Float[Tensor, "*bs input_dim"]) -> Float[Tensor, "*bs output_dim"]:
        _say_once(in_tensor.device.type, self.features_per_level)
        positions = in_tensor if self.position_gradients else in_tensor.detach()
        encoded = hash_grid.encode(positions.reshape(-1, 3), self.hash_table, self._scalings_at(in_tensor.device))
        return encoded.view(*in_tensor.shape[:-1], self.get_out_dim())

    def _scalings_at(self, device: torch.device) -> Tensor:
        if self._placed is None or self._placed.device != device:
            self._placed = self.scalings.to(device, torch.float32)
        return self._placed


def use_jit(module: nn.Module) -> int:
    """Give every torch `HashEncoding` inside a module our forward; say how many it found.

    The objects change their class and stay themselves: parameters, optimisers, hooks and whoever holds a reference to
    them notice nothing. Encodings on tiny-cuda-nn, and subclasses that somebody else wrote, are left alone.
    """
    found = [part for part in module.modules() if type(part) is HashEncoding and part.tcnn_encoding is None]
    for encoding in found:
        encoding.__class__ = JitHashEncoding
    return len(found)


def encodings_of(module: nn.Module) -> Iterable[JitHashEncoding]:
    """All of a module's encodings that run on our kernels."""
    return (part for part in module.modules() if isinstance(part, JitHashEncoding))


def prepare(module: nn.Module, device: torch.device | str) -> None:
    """Compiles what a module's encodings will need on a device, before the first step, and says so if it had to.

    Call it where the device is known: models are built on the CPU and moved. On a GPU this finds out whether Triton
    works; its kernels are compiled for sizes of tables, in the first step, about a second each, once per machine.
    """
    for encoding in encodings_of(module):
        _say_once(torch.device(device).type, encoding.features_per_level)


@cache
def _say_once(device_type: str, features: int) -> None:
    message = hash_grid.readiness(device_type, features).message
    if message is not None:
        CONSOLE.print(message, soft_wrap=True, markup=False)
