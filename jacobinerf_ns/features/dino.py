"""Features of a self-supervised vision transformer (DINO, DINOv2, DINOv3, or any plain ViT) from Hugging Face."""

import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import FeatureGrid, Frame, fingerprint_of, load_rgb
from jacobinerf_ns.features.hub import load_backbone

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


class DinoExtractor:
    """Runs a frozen transformer over one image at a time, with overlapping patches if asked for."""

    def __init__(self, config: DinoConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self.backbone = load_backbone(config.model)
        self.model = self.backbone.model.to(self.device)
        self.projection = _patch_projection(self.model, config.model)
        self.patch = int(self.projection.kernel_size[0])
        self.stride = _stride(config.stride, self.patch)
        if config.load_size < self.patch:
            raise UserError(
                f"load size {config.load_size} given, and {config.model} has patches of {self.patch} pixels"
            )
        self._captured: dict[str, Tensor] = {}
        self.layer = self._hook_layer()
        if self.stride != self.patch:
            self._overlap_patches()

    def fingerprint(self) -> str:
        """Return the hash of weights and settings. The model's name is left out: equal weights give equal features."""
        resolved = (self.backbone.digest, self.layer, self.stride, self.backbone.mean, self.backbone.std)
        return fingerprint_of("dino", self.config, str(resolved), ignore=["model", "layer", "stride"])

    def check(self, frames: Sequence[Frame]) -> None:
        """Do nothing: every image will do."""

    def sources(self, frame: Frame) -> Sequence[Path | str]:
        """Return the image alone: it is resized from the file, whatever the resolution of training."""
        return [frame.path]

    @torch.no_grad()
    def extract(self, frame: Frame) -> FeatureGrid:
        """Return the facet of the chosen layer per patch; class and register tokens, which come first, are left out."""
        image = load_rgb(frame.path)
        scale = self.config.load_size / min(image.size)
        height, width = (max(1, round(side * scale / self.patch)) * self.patch for side in (image.height, image.width))
        rows, cols = ((side - self.patch) // self.stride + 1 for side in (height, width))
        tokens = self._run(self._normalised(load_rgb(frame.path, (height, width))))
        values = tokens[-rows * cols :].view(rows, cols, -1).cpu()
        origin = (self.patch / 2 / height, self.patch / 2 / width)
        return FeatureGrid(values, origin, (self.stride / height, self.stride / width))

    def _normalised(self, image: Any) -> Float[Tensor, "1 3 height width"]:
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).to(self.device)
        mean, std = (pixels.new_tensor(values) for values in (self.backbone.mean, self.backbone.std))
        return ((pixels - mean) / std).permute(2, 0, 1)[None]

    def _run(self, pixels: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "tokens dim"]:
        takes_flag = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self.model(pixels, **({"interpolate_pos_encoding": True} if takes_flag else {}))
        return self._captured.pop("tokens")[0].float()

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
