"""Features of a self-supervised vision transformer (DINO, DINOv2, DINOv3, or any plain ViT) from Hugging Face."""

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import FeatureGrid, Frame, fingerprint_of
from jacobinerf_ns.features.frozen import (
    ReadImage,
    batch_size_of,
    cast_parameters,
    normalised,
    precision_of,
    read_resized,
    run_ahead,
)
from jacobinerf_ns.features.hub import load_backbone
from jacobinerf_ns.features.streaming import HostCopy, to_device

GPU_BATCH = 8
"""Images at a time on a GPU: what one image of 10,000 patches leaves idle; a dozen MB each."""
MAX_LOAD_SIZE = 4096
"""Pixels of the shorter side: attention between a million patches fits into no memory."""
_KEY_NAMES = ("k_proj", "key", "keys", "to_k")
_FUSED_NAMES = ("qkv", "in_proj", "query_key_value")


@dataclass
class DinoConfig:
    """Features of a pretrained vision transformer from Hugging Face (fetched at first use)."""

    model: str = "facebook/dino-vits8"
    """Model id on the hub, or a folder with config.json and model.safetensors. Any ViT, DINO, DINOv2 or DINOv3."""
    facet: Literal["key", "token"] = "key"
    """Keys of the attention of a layer (all heads), or its output tokens."""
    layer: int = -1
    """Layer, counted from 0; -1 is the last (11 of dino-vits8, the paper's)."""
    load_size: int = 360
    """Shorter side to which images are resized for the model, pixels; sides are rounded to whole patches."""
    stride: int | None = None
    """Step between patches, pixels of the resized image. None: half a patch (4 for dino-vits8); 0: a whole patch, which
    is about ten times faster, with features half as dense."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers that the model calculates in; `auto`: bfloat16 on a GPU, float32 on a CPU. The cache keeps both apart."""
    batch_size: int | None = None
    """Images of one size that run through the model together. None: 8 on a GPU, 1 on a CPU."""

    def __post_init__(self) -> None:
        """Make an existing folder absolute, for configs are read from other working directories later."""
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            self.model = str(folder.absolute())

    def setup(self, device: torch.device | str = "cpu") -> "DinoExtractor":
        """Return the extractor with its model on `device`.

        Raises:
            UserError: the model cannot be had or used.
        """
        return DinoExtractor(self, device)


class _Running(NamedTuple):
    """Images of one size that were given to the model."""

    places: list[int]
    tokens: HostCopy
    size: tuple[int, int]
    """(height, width) in pixels."""


class DinoExtractor:
    """Runs a frozen transformer over images, with overlapping patches if asked for."""

    def __init__(self, config: DinoConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self.backbone = load_backbone(config.model)
        self.model, self.dtype = self.backbone.model.to(self.device), precision_of(config.precision, self.device)
        cast_parameters(self.model, self.dtype)
        self._mean = torch.tensor(self.backbone.mean, device=self.device)
        self._std = torch.tensor(self.backbone.std, device=self.device)
        self.projection = _patch_projection(self.model, config.model)
        self.patch = int(self.projection.kernel_size[0])
        self.stride = _stride(config.stride, self.patch)
        if config.load_size < self.patch:
            raise UserError(
                f"load size {config.load_size} given, and {config.model} has patches of {self.patch} pixels"
            )
        if config.load_size > MAX_LOAD_SIZE:
            raise UserError(f"load size {config.load_size} given, expected at most {MAX_LOAD_SIZE} pixels")
        self.batch_size = batch_size_of(config.batch_size, self.device, GPU_BATCH)
        self._captured: dict[str, Tensor] = {}
        self.layer = self._hook_layer()
        if self.stride != self.patch:
            self._overlap_patches()

    def fingerprint(self) -> str:
        """Return the hash of weights and settings. The model's name is left out: equal weights give equal features."""
        resolved = (self.backbone.digest, self.layer, self.stride, self.backbone.mean, self.backbone.std)
        if self.dtype != torch.float32:
            resolved += (str(self.dtype),)
        ignored = ["model", "layer", "stride", "precision", "batch_size"]
        return fingerprint_of("dino", self.config, str(resolved), ignore=ignored)

    def check(self, frames: Sequence[Frame]) -> None:
        """Do nothing: every image will do."""

    def sources(self, frame: Frame) -> Sequence[Path | str]:
        """Return the image alone: it is resized from the file, whatever the resolution of training."""
        return [frame.path]

    def extract(self, frame: Frame) -> FeatureGrid:
        """Return the facet of the chosen layer per patch; class and register tokens, which come first, are left out."""
        (_, grid), *_ = self._finished(self._started([self._read(0, frame)]))
        return grid

    def extract_many(self, frames: Sequence[Frame]) -> Iterator[tuple[int, FeatureGrid]]:
        """Yield places and features of frames as they are ready, those of one size together.

        While a GPU is at work, the next images are read, and what it has made before is copied back and yielded.
        """

        def read(place: int) -> ReadImage:
            return self._read(place, frames[place])

        return run_ahead(frames, self.batch_size, self.device, read, self._started, self._finished)

    def _read(self, place: int, frame: Frame) -> ReadImage:
        return read_resized(place, frame, self.config.load_size, self.patch)

    @torch.no_grad()
    def _started(self, images: list[ReadImage]) -> _Running:
        """Run the model on images of one size."""
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
        shown = normalised(to_device(pixels, self.device), self._mean, self._std).to(self.dtype)
        height, width = pixels.shape[1:3]
        return _Running([image.place for image in images], HostCopy(self._run(shown)), (height, width))

    def _finished(self, running: _Running) -> Iterator[tuple[int, FeatureGrid]]:
        """Yield the grids of images that were given to the model, once it is done with them."""
        rows, cols = ((side - self.patch) // self.stride + 1 for side in running.size)
        (height, width), centre = running.size, self.patch / 2
        origin, step = (centre / height, centre / width), (self.stride / height, self.stride / width)
        for place, own in zip(running.places, running.tokens.wait().float(), strict=True):
            yield place, FeatureGrid(own[-rows * cols :].view(rows, cols, -1), origin, step)

    def _run(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images tokens dim"]:
        takes_flag = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self.model(pixels, **({"interpolate_pos_encoding": True} if takes_flag else {}))
        return self._captured.pop("tokens")

    def _hook_layer(self) -> int:
        """Catch the facet as the chosen layer computes it, and return the layer's number, counted from 0."""
        layers = _layers(self.model, self.config.model)
        if not -len(layers) <= self.config.layer < len(layers):
            raise UserError(
                f"layer {self.config.layer} given, and {self.config.model} has {len(layers)}: "
                f"give 0 to {len(layers) - 1}, or -1 for the last"
            )
        layer = layers[self.config.layer]
        module, take = (layer, _first) if self.config.facet == "token" else _key_projection(layer, self.config.model)
        captured = (
            self._captured
        )  # The hook must not hold `self`: the model is to be freed as soon as its user is done.

        def capture(_module: nn.Module, _inputs: Any, output: Any) -> None:
            captured["tokens"] = take(output)

        module.register_forward_hook(capture)
        return self.config.layer % len(layers)

    def _overlap_patches(self) -> None:
        """Move the patch embedding by `stride`, and tell the position embedding of the resulting, finer grid.

        The model finds out its grid by dividing the image's size by the patch's. It is told the size of an image that
        has as many patches side by side, so that its own (bicubic, or rotary) interpolation covers the finer grid.
        """
        patch, stride = self.patch, self.stride
        self.projection.stride = (stride, stride)

        def as_if(side: int) -> int:
            return ((side - patch) // stride + 1) * patch

        embeddings: Any = getattr(self.model, "embeddings", None)
        rotary = next((module for name, module in self.model.named_children() if name.startswith("rope")), None)
        if hasattr(embeddings, "interpolate_pos_encoding"):
            interpolate, owner = type(embeddings).interpolate_pos_encoding, weakref.ref(embeddings)

            def finer(tokens: Tensor, height: int, width: int) -> Tensor:
                return interpolate(owner(), tokens, as_if(height), as_if(width))

            embeddings.interpolate_pos_encoding = finer
        elif rotary is not None:

            def pretend(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
                return (inputs[0].new_empty(()).expand(1, 1, *(as_if(side) for side in inputs[0].shape[-2:])),)

            rotary.register_forward_pre_hook(pretend)
        else:
            raise UserError(
                f"overlapping patches (stride {stride}) are not possible with {self.config.model}, whose position "
                f"embedding cannot be interpolated: give --stride {patch}"
            )


def _stride(given: int | None, patch: int) -> int:
    if given is not None and not 0 <= given <= patch:
        raise UserError(f"stride {given} given, and the model's patches have {patch} pixels: give 1 to {patch}, or 0")
    return max(1, patch // 2) if given is None else given or patch


def _patch_projection(model: nn.Module, name: str) -> nn.Conv2d:
    """Return the convolution that turns patches into tokens: the first one, with a stride of its own size."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride or first.kernel_size[0] != first.kernel_size[-1]:
        raise UserError(f"model {name} does not cut images into square patches: give a plain vision transformer")
    return first


def _layers(model: nn.Module, name: str) -> nn.ModuleList:
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    found = next(lists, None)
    if found is None:
        raise UserError(f"model {name} has no list of transformer layers: give a plain vision transformer")
    return found


def _key_projection(layer: nn.Module, model: str) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """Return the linear map that makes the keys, and what of its output they are: names differ between releases."""
    linear = {name.split(".")[-1]: m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
    for name in _KEY_NAMES:
        if name in linear:
            return linear[name], _first
    for name in _FUSED_NAMES:
        if name in linear:
            return linear[name], lambda output: output.chunk(3, dim=-1)[1]
    raise UserError(f"no key projection was found in the attention of {model}: give --facet token")


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
