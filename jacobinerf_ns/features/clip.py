"""Dense features of image-text models (CLIP, SigLIP) from Hugging Face, which words can be compared with.

Such a model makes one vector of a whole image: the last attention layer of its image part gathers the patches. The
training-free way to a vector per patch is to let each patch be gathered alone (MaskCLIP, Zhou et al., ECCV 2022):

* CLIP gathers at its class token, in its last layer. With attention all on one patch, what is left of that layer is its
  value path, normalisation, value and output projection; the final normalisation and the projection to words follow.
* SigLIP gathers in a head of its own behind its last layer, which is run on each patch alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import FeatureGrid, Frame, covering_grid, fingerprint_of
from jacobinerf_ns.features.frozen import (
    ReadImage,
    batch_size_of,
    cast_parameters,
    normalised,
    precision_of,
    read_resized,
    run_ahead,
)
from jacobinerf_ns.features.hub import TEXT_FILES, load_backbone, load_tokenizer
from jacobinerf_ns.features.streaming import HostCopy, to_device
from jacobinerf_ns.features.words import checked

GPU_BATCH = 8
"""Images at a time on a GPU."""
_WINDOWS = 16
"""Windows that run through the model together: bounds its memory, whatever the size of the images."""


@dataclass
class ClipConfig:
    """Features of a pretrained image-text model (CLIP, SigLIP) from Hugging Face, to be asked for in words."""

    model: str = "openai/clip-vit-base-patch16"
    """Model id on the hub, or a folder with its files. Any CLIP or SigLIP whose image part is a vision transformer."""
    attention: Literal["none", "query"] = "none"
    """What patches of the last layer see: `none`, only themselves (MaskCLIP); `query`, patches with queries like their
    own (ClearCLIP, Lan et al., ECCV 2024), which is smoother; CLIP only."""
    load_size: int = 448
    """Shorter side to which images are resized for the model, pixels; sides are rounded to whole patches."""
    window: int | None = None
    """Side of the square windows that slide over the resized image by half their size, pixels; features are averaged
    where they overlap. None: the size that the model was trained on; 0: the whole image at once."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers that the model calculates in; `auto`: bfloat16 on a GPU, float32 on a CPU. The cache keeps both apart."""
    batch_size: int | None = None
    """Images of one size that are prepared together. None: 8 on a GPU, 1 on a CPU."""

    def __post_init__(self) -> None:
        """Make an existing folder absolute, for configs are read from other working directories later."""
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            self.model = str(folder.absolute())

    @property
    def knows_words(self) -> bool:
        """Whether it can be asked in words."""
        return True

    def setup(self, device: torch.device | str = "cpu") -> "ClipExtractor":
        """Return the extractor with its model on `device`.

        Raises:
            UserError: the model cannot be had or used.
        """
        return ClipExtractor(self, device)


class _Running(NamedTuple):
    """Images of one size that were given to the model."""

    places: list[int]
    features: HostCopy


class ClipExtractor:
    """Runs a frozen image-text model over windows of images, and over words."""

    def __init__(self, config: ClipConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self.backbone = load_backbone(config.model, TEXT_FILES)
        self.dtype = precision_of(config.precision, self.device)
        model: Any = self.backbone.model
        _check_model(model, config)
        self.model, self.vision = model.to(self.device), model.vision_model
        cast_parameters(self.model, self.dtype)
        self._mean = torch.tensor(self.backbone.mean, device=self.device)
        self._std = torch.tensor(self.backbone.std, device=self.device)
        self.patch = int(self.vision.embeddings.patch_embedding.kernel_size[0])
        self.window = _window(config, self.patch, int(self.vision.config.image_size))
        self.batch_size = batch_size_of(config.batch_size, self.device, GPU_BATCH)
        self._tokenizer: Any = None

    def fingerprint(self) -> str:
        """Return the hash of weights and settings. The model's name is left out: equal weights give equal features."""
        resolved = (self.backbone.digest, self.window, self.backbone.mean, self.backbone.std, str(self.dtype))
        return fingerprint_of("clip", self.config, str(resolved), ignore=["model", "window", "precision", "batch_size"])

    def check(self, frames: Sequence[Frame]) -> None:
        """Do nothing: every image will do."""

    def sources(self, frame: Frame) -> Sequence[Path | str]:
        """Return the image alone: it is resized from the file, whatever the resolution of training."""
        return [frame.path]

    def extract(self, frame: Frame) -> FeatureGrid:
        """Return the features of each patch, in the space of the model's words; their length is the model's own."""
        (_, grid), *_ = self._finished(self._started([self._read(0, frame)]))
        return grid

    def extract_many(self, frames: Sequence[Frame]) -> Iterator[tuple[int, FeatureGrid]]:
        """Yield places and features of frames as they are ready, those of one size together."""

        def read(place: int) -> ReadImage:
            return self._read(place, frames[place])

        return run_ahead(frames, self.batch_size, self.device, read, self._started, self._finished)

    def text_model(self) -> str:
        """Return the model's id or folder."""
        return self.config.model

    def known_words(self) -> None:
        """Return None: any words can be asked for."""

    @torch.no_grad()
    def encode(self, words: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Return the unit vector of each text, float32 on the CPU.

        Case is not told apart: most of these models were trained on small letters.

        Raises:
            UserError: a text is empty or too long, or the tokenizer is not there.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.config.model)
        texts = [checked(text).lower() for text in words]
        pieces = self._tokenizer(texts)["input_ids"]
        longest = int(self.model.config.text_config.max_position_embeddings)
        for text, piece in zip(texts, pieces, strict=True):
            if len(piece) > longest:
                raise UserError(f"{text[:20]}... has {len(piece)} pieces of words, {self.config.model} reads {longest}")
        ids = self._tokenizer(texts, padding="max_length", max_length=longest, return_tensors="pt")["input_ids"]
        found = self.model.get_text_features(input_ids=ids.to(self.device))
        found = getattr(found, "pooler_output", found)  # transformers 5 wraps what 4 returned plainly
        return nn.functional.normalize(found.float(), dim=-1).cpu()

    def _read(self, place: int, frame: Frame) -> ReadImage:
        return read_resized(place, frame, self.config.load_size, self.patch)

    @torch.no_grad()
    def _started(self, images: list[ReadImage]) -> _Running:
        """Run the model on all windows of images of one size."""
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
        shown = normalised(to_device(pixels, self.device), self._mean, self._std).to(self.dtype)
        return _Running([image.place for image in images], HostCopy(self._slide(shown)))

    def _finished(self, running: _Running) -> Iterator[tuple[int, FeatureGrid]]:
        """Yield the grids of images that were given to the model, once it is done with them."""
        for place, own in zip(running.places, running.features.wait(), strict=True):
            yield place, covering_grid(own)

    def _slide(self, images: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images rows cols dim"]:
        """Return the mean over all windows that hold a patch, float32."""
        patch, (rows, cols) = self.patch, (side // self.patch for side in images.shape[-2:])
        high, wide = (min(self.window or side, side) for side in (rows, cols))
        corners = torch.cartesian_prod(window_starts(rows, high), window_starts(cols, wide)).tolist()
        count = images.new_zeros(rows, cols, 1, dtype=torch.float32)
        total = None
        each = max(1, _WINDOWS // len(images))
        for start in range(0, len(corners), each):
            group = corners[start : start + each]
            cut = [images[..., y * patch : (y + high) * patch, x * patch : (x + wide) * patch] for y, x in group]
            found = self._dense(torch.cat(cut)).float().view(len(group), len(images), high, wide, -1)
            if total is None:
                total = found.new_zeros(len(images), rows, cols, found.shape[-1])
            for (y, x), own in zip(group, found, strict=True):
                total[:, y : y + high, x : x + wide] += own
                count[y : y + high, x : x + wide] += 1
        assert total is not None, "every image has a window"
        return total / count

    def _dense(self, windows: Float[Tensor, "windows 3 height width"]) -> Float[Tensor, "windows patches dim"]:
        """Return the features of each patch of each window."""
        if hasattr(self.model, "visual_projection"):
            return self._dense_clip(windows)
        tokens = self.vision(windows, interpolate_pos_encoding=True).last_hidden_state
        return self.vision.head(tokens.flatten(0, 1)[:, None]).view(*tokens.shape[:2], -1)

    def _dense_clip(self, windows: Float[Tensor, "windows 3 height width"]) -> Float[Tensor, "windows patches dim"]:
        layer = self.vision.encoder.layers[-1]
        captured: list[Tensor] = []
        hook = layer.layer_norm1.register_forward_hook(lambda _module, _inputs, output: captured.append(output))
        try:
            self.vision(windows, interpolate_pos_encoding=True)
        finally:
            hook.remove()
        attention, tokens = layer.self_attn, captured[0]
        values = attention.v_proj(tokens)
        if self.config.attention == "query":
            values = attend_alike(attention.q_proj(tokens), values, attention.num_heads)
        gathered = self.vision.post_layernorm(attention.out_proj(values[:, 1:]))  # without the class token
        return self.model.visual_projection(gathered)


def attend_alike(
    queries: Float[Tensor, "windows tokens dim"], values: Float[Tensor, "windows tokens dim"], heads: int
) -> Float[Tensor, "windows tokens dim"]:
    """Return, per head, means of values over tokens, weighted by how alike their queries are (ClearCLIP).

    The weights are softmax(q qᵀ / sqrt(dim / heads)): attention with queries in place of keys.
    """

    def split(of: Tensor) -> Tensor:
        return of.unflatten(-1, (heads, -1)).transpose(1, 2)

    mixed = nn.functional.scaled_dot_product_attention(split(queries), split(queries), split(values))
    return mixed.transpose(1, 2).flatten(2)


def window_starts(side: int, window: int) -> Int[Tensor, " windows"]:
    """Return where windows of `window` patches begin along a side of `side` patches: by half a window, to the end."""
    step = max(1, window // 2)
    return torch.tensor([*range(0, side - window, step), side - window])


def _window(config: ClipConfig, patch: int, trained: int) -> int:
    """Return the side of windows in patches; 0: as large as the image."""
    if config.load_size < patch:
        raise UserError(f"load size {config.load_size} given, and {config.model} has patches of {patch} pixels")
    side = trained if config.window is None else config.window
    if side != 0 and side < patch:
        raise UserError(f"window {side} given, and {config.model} has patches of {patch} pixels: give {trained}, or 0")
    return side // patch


def _check_model(model: Any, config: ClipConfig) -> None:
    """Raise UserError: no text part, or an image part that is gathered in another way."""
    vision = getattr(model, "vision_model", None)
    gathers = hasattr(model, "visual_projection") or callable(getattr(vision, "head", None))
    cuts = isinstance(getattr(getattr(vision, "embeddings", None), "patch_embedding", None), nn.Conv2d)
    if not (gathers and cuts and hasattr(model, "get_text_features")):
        raise UserError(
            f"model {config.model} ({model.config.model_type}) is no CLIP or SigLIP of fixed resolution: give one "
            "with an image and a text part, or make its features yourself and use the precomputed teacher"
        )
    if config.attention != "none" and not hasattr(model, "visual_projection"):
        raise UserError(
            f"attention {config.attention} given, and {config.model} gathers patches in a head of its own: "
            "leave --attention out"
        )
