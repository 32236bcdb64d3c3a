"""Features of a self-supervised vision transformer (DINO, DINOv2, DINOv3, or any plain ViT) from Hugging Face."""

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import FeatureGrid, Frame, fingerprint_of, load_rgb
from jacobinerf_ns.features.hub import load_backbone
from jacobinerf_ns.features.streaming import HostCopy, read_ahead, to_device

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


class _Image(NamedTuple):
    """An image as it was read and resized for the model."""

    place: int
    """Among the frames that were asked for."""
    pixels: UInt8[np.ndarray, "height width 3"]


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
        self.model, self.dtype = self.backbone.model.to(self.device), _precision(config.precision, self.device)
        for parameter in self.model.parameters():  # and no buffer: angles of rotary positions stay float32
            parameter.data = parameter.data.to(self.dtype)
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
        self.batch_size = _batch_size(config.batch_size, self.device)
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
        (_, grid), *_ = self._finished([self._started([self._read(0, frame)])])
        return grid

    def extract_many(self, frames: Sequence[Frame]) -> Iterator[tuple[int, FeatureGrid]]:
        """Yield places and features of frames as they are ready, those of one size together.

        While a GPU is at work, the next images are read, and what it has made before is copied back and yielded.
        """
        before: list[_Running] = []
        try:
            for images in read_ahead(lambda i: self._read(i, frames[i]), _of_one_size(frames, self.batch_size)):
                images.sort(key=lambda image: image.pixels.shape)
                running = [self._started(list(group)) for _, group in groupby(images, lambda i: i.pixels.shape)]
                yield from self._finished(before)
                before = running
                if self.device.type == "cpu":  # where nothing goes on by itself
                    yield from self._finished(before)
                    before = []
        except UserError:
            yield from self._finished(before)
            raise
        yield from self._finished(before)

    def _read(self, place: int, frame: Frame) -> _Image:
        """Read an image, and resize it to whole patches."""
        image = load_rgb(frame.path)
        scale = self.config.load_size / min(image.size)
        width, height = (max(1, round(side * scale / self.patch)) * self.patch for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        return _Image(place, np.array(image))

    @torch.no_grad()
    def _started(self, images: list[_Image]) -> _Running:
        """Run the model on images of one size."""
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
        tokens = self._run(self._normalised(to_device(pixels, self.device)))
        height, width = pixels.shape[1:3]
        return _Running([image.place for image in images], HostCopy(tokens), (height, width))

    def _finished(self, running: Sequence[_Running]) -> Iterator[tuple[int, FeatureGrid]]:
        """Yield the grids of images that were given to the model, once it is done with them."""
        for places, tokens, size in running:
            rows, cols = ((side - self.patch) // self.stride + 1 for side in size)
            (height, width), centre = size, self.patch / 2
            origin, step = (centre / height, centre / width), (self.stride / height, self.stride / width)
            for place, own in zip(places, tokens.wait().float(), strict=True):
                yield place, FeatureGrid(own[-rows * cols :].view(rows, cols, -1), origin, step)

    def _normalised(self, images: UInt8[Tensor, "images height width 3"]) -> Float[Tensor, "images 3 height width"]:
        return ((images.float() / 255 - self._mean) / self._std).permute(0, 3, 1, 2).to(self.dtype)

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


def _precision(given: str, device: torch.device) -> torch.dtype:
    if given == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[given]


def _batch_size(given: int | None, device: torch.device) -> int:
    if given is not None and given < 1:
        raise UserError(f"batch size {given} given, expected 1 image or more: give --batch-size 1")
    return given or (1 if device.type == "cpu" else GPU_BATCH)


def _of_one_size(frames: Sequence[Frame], most: int) -> list[list[int]]:
    """Places of frames, at most so many in a list, and those in a list of one size; files may be larger."""

    def size(i: int) -> tuple[int, int]:
        return frames[i].size

    found = []
    for _, group in groupby(sorted(range(len(frames)), key=size), size):
        places = list(group)
        found += [places[start : start + most] for start in range(0, len(places), most)]
    return found


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
