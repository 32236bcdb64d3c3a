"""Features of one's own (CLIP, LSeg, SAM, ...), read from a folder of arrays."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.errors import UserError, reason
from jacobinerf_ns.features.base import FeatureGrid, Frame, covering_grid, fingerprint_of
from jacobinerf_ns.features.text_table import look_up, read_texts
from jacobinerf_ns.files.outside import MAX_ARRAY_VALUES, check_regular, read_array

SUFFIXES = (".npy", ".safetensors")


@dataclass
class PrecomputedConfig:
    """Features of your own: one array per image, of any resolution and dimension."""

    folder: Path = Path("features")
    """Folder with one .npy or .safetensors file per image, named like the image (0001.png: 0001.npy)."""
    layout: Literal["rows-cols-dim", "dim-rows-cols"] = "rows-cols-dim"
    """Order of the axes of the arrays. Their cells are taken to tile the whole image evenly."""
    texts: Path | None = None
    """Text embeddings that go with the features (LSeg): a .npy of one row per name, with the names in a .txt beside it,
    one a line, or in a .json list. None: nothing can be asked for in words."""

    @property
    def knows_words(self) -> bool:
        """Whether it can be asked in words."""
        return self.texts is not None

    def setup(self, device: torch.device | str = "cpu") -> "PrecomputedExtractor":
        """Return the extractor; it works on the CPU whatever the device."""
        return PrecomputedExtractor(self)


class PrecomputedExtractor:
    """Reads arrays that somebody else has made."""

    def __init__(self, config: PrecomputedConfig) -> None:
        self.config = config
        self.folder = config.folder.expanduser().absolute()

    def fingerprint(self) -> str:
        """Return the hash of the layout. The arrays' bytes are part of each frame's key, so the folder may be moved."""
        return fingerprint_of("precomputed", self.config, ignore=["folder", "texts"])

    def check(self, frames: Sequence[Frame]) -> None:
        """Check that every image has a file of its own in the folder.

        Raises:
            UserError: the folder or files in it are missing, or one file would serve several images.
        """
        if not self.folder.is_dir():
            raise UserError(f"feature folder {self.folder} does not exist: give the folder with one array per image")
        missing = [frame for frame in frames if self._find(frame) is None]
        if missing:
            raise UserError(
                f"{self.folder} lacks features for {len(missing)} of {len(frames)} images (first: "
                f"{missing[0].path.stem}.npy or .safetensors): add the files, or choose another teacher"
            )
        stem, count = Counter(frame.path.stem for frame in frames).most_common(1)[0]
        if count > 1:
            raise UserError(
                f"{count} images are named {stem}, and {self.folder} can hold features for one of that name: "
                "give the images different names"
            )

    def sources(self, frame: Frame) -> Sequence[Path | str]:
        """Return the array's file."""
        return [self._path(frame)]

    def extract(self, frame: Frame) -> FeatureGrid:
        """Return the array as it is, its cells taken to tile the image.

        Raises:
            UserError: the file cannot be used.
        """
        path = self._path(frame)
        values = _load(path)
        if values.ndim != 3 or 0 in values.shape:
            raise UserError(f"{path} holds an array of shape {tuple(values.shape)}, expected {self.config.layout}")
        if self.config.layout == "dim-rows-cols":
            values = values.permute(1, 2, 0)
        return covering_grid(values)

    def text_model(self) -> str:
        """Return the file of the text embeddings."""
        return str(self.config.texts)

    def known_words(self) -> tuple[str, ...]:
        """Return the names that there are embeddings of."""
        return tuple(self._texts)

    def encode(self, words: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Return the unit vectors of names; case and outer blanks do not count.

        Raises:
            UserError: there are no text embeddings, or a name has none.
        """
        return look_up(self._texts, words)

    @cached_property
    def _texts(self) -> dict[str, Tensor]:
        if self.config.texts is None:
            raise UserError(
                "the precomputed features come without text embeddings: give precomputed --texts FILE.npy, whose names "
                "lie beside it in FILE.txt"
            )
        return read_texts(self.config.texts.expanduser().absolute())

    def _find(self, frame: Frame) -> Path | None:
        candidates = [self.folder / f"{frame.path.stem}{suffix}" for suffix in SUFFIXES]
        return next((path for path in candidates if path.is_file()), None)

    def _path(self, frame: Frame) -> Path:
        path = self._find(frame)
        assert path is not None, "check() comes first"
        return path


def _load(path: Path) -> Float[Tensor, "..."]:
    from safetensors.torch import load_file

    if path.suffix == ".npy":
        return torch.from_numpy(read_array(path).astype(np.float32))
    check_regular(path, "a safetensors file", 8 * MAX_ARRAY_VALUES)
    try:
        tensors = load_file(path)
    except Exception as error:  # Of damaged headers its reader raises what Python raises on the way.
        raise UserError(f"{path} is damaged ({reason(error)}): write it again") from error
    if "features" not in tensors and len(tensors) != 1:
        raise UserError(f"{path} holds {len(tensors)} tensors ({', '.join(sorted(tensors))[:60]}): name one features")
    values = tensors["features"] if "features" in tensors else next(iter(tensors.values()))
    if values.is_complex() or values.dtype == torch.bool or values.numel() > MAX_ARRAY_VALUES:
        raise UserError(
            f"{path} holds {values.numel()} values of {values.dtype}, expected at most {MAX_ARRAY_VALUES} real numbers"
        )
    return values.float()
