"""Teacher of chosen quality, made from the data's own label maps: stands in where no weights are to be had."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import FeatureGrid, Frame, covering_grid, fingerprint_of, load_rgb, pool_cells
from jacobinerf_ns.features.words import checked
from jacobinerf_ns.files.digests import digest, digest_of_text
from jacobinerf_ns.files.index_maps import VOID_ID, read_classes, read_label_map

DIMENSIONS = 64
_CLASS, _INSTANCE, _NOISE = range(3)  # Keeps the random streams of one seed apart.
_NAMES_WITHIN = 3  # Folders above a label map that may hold its class names.


@dataclass
class OracleConfig:
    """Noisy ground truth from label maps (results that used it must say so)."""

    noise: float = 1.0
    """Gaussian noise per patch, relative: at 1 the noise vector is as long as the mean feature (std of each component =
    noise x mean length / 8)."""
    patch_size: int = 8
    """Side of the squares over which the labels are averaged, pixels of the training image."""
    per_instance: bool = False
    """Also tell instances of one class apart (adds one random vector per instance)."""
    seed: int = 0
    """Seed of the class vectors and of the noise."""
    by_name: bool = False
    """Make class vectors of the classes' names, which the nearest `classes.json` above a label map gives, instead of
    their ids: captures with other ids then share a feature space, as they do with a real teacher."""

    @property
    def knows_words(self) -> bool:
        """Whether it can be asked in words."""
        return self.by_name

    def setup(self, device: torch.device | str = "cpu") -> "OracleExtractor":
        """Return the extractor; it works on the CPU whatever the device."""
        return OracleExtractor(self)


class OracleExtractor:
    """Averages a fixed random unit vector per class over patches, and adds noise."""

    def __init__(self, config: OracleConfig) -> None:
        if config.patch_size < 1 or config.noise < 0:
            raise UserError(
                f"oracle: patch size {config.patch_size} and noise {config.noise:g} given, "
                "expected a size of at least 1 pixel and a noise of at least 0"
            )
        if config.by_name and config.per_instance:
            raise UserError("oracle: per instance and by name given, but instances have no names to share: choose one")
        self.config = config

    def fingerprint(self) -> str:
        """Return the hash of the settings; that of class vectors by id does not know that there are others."""
        return fingerprint_of("oracle-2", self.config, ignore=() if self.config.by_name else ("by_name",))

    def check(self, frames: Sequence[Frame]) -> None:
        """Check that all frames have the label maps that are needed.

        Raises:
            UserError: some have none.
        """
        for kind in ("semantics", "instances") if self.config.per_instance else ("semantics",):
            bare = [frame for frame in frames if getattr(frame, kind) is None]
            if bare:
                raise UserError(
                    f"the oracle teacher needs label maps, and {len(bare)} of {len(frames)} images have no {kind} map "
                    f"(first: {bare[0].path.name}): give {kind}_path per frame in transforms.json or "
                    "a folder by --pipeline.datamanager.label-dir, or choose another teacher (dino, handcrafted, "
                    "precomputed)"
                )

    def sources(self, frame: Frame) -> Sequence[Path | str]:
        """Return the label maps, the size they are read at, the names, and the image, whose pixels seed the noise."""
        names = [json.dumps(self._names(frame))] if self.config.by_name else []
        return [frame.path, *self._label_paths(frame), f"{frame.size} of {frame.original_size}", *names]

    def extract(self, frame: Frame) -> FeatureGrid:
        """Return a grid of `patch_size` cells, made to tile the image evenly where its size is not a multiple.

        The noise is seeded by the pixels of the image, so it differs between images and is the same wherever and
        however they are written: the bytes of a copy that training made smaller tell when it was made.
        """
        maps = [read_label_map(p, frame.size, frame.original_size) for p in self._label_paths(frame)]
        pixels = self._vectors(_CLASS, maps[0], self._names(frame) if self.config.by_name else None)
        if len(maps) > 1:
            pixels = pixels + self._vectors(_INSTANCE, maps[1])
        clean = pool_cells(pixels, self.config.patch_size)
        return covering_grid(clean + self._noise(clean, _digest_of_pixels(frame.path)))

    def text_model(self) -> str:
        """Return what the vectors of names are."""
        return "oracle by name"

    def known_words(self) -> None:
        """Return None: each name has a vector, whether a label map uses it or not."""

    def encode(self, words: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Return the vectors of class names, as a perfect text model would that knows nothing of likeness of meaning.

        Raises:
            UserError: classes have no names, or a text is none.
        """
        if not self.config.by_name:
            raise UserError("the oracle teacher knows words only by name: give oracle --by-name")
        numbers = torch.arange(1, len(words) + 1)[None]
        return self._vectors(_CLASS, numbers, {i + 1: checked(text) for i, text in enumerate(words)})[0]

    def _label_paths(self, frame: Frame) -> list[Path]:
        paths = [frame.semantics, frame.instances] if self.config.per_instance else [frame.semantics]
        return [path for path in paths if path is not None]

    def _names(self, frame: Frame) -> dict[int, str]:
        """Return the class names by id.

        Raises:
            UserError: no folder above the label map has them.
        """
        assert frame.semantics is not None
        for folder in list(frame.semantics.absolute().parents)[:_NAMES_WITHIN]:
            if (folder / "classes.json").is_file():
                return read_classes(folder / "classes.json")
        raise UserError(
            f"the oracle teacher by name finds no classes.json in the {_NAMES_WITHIN} folders above {frame.semantics}: "
            "put one there, or leave --by-name out"
        )

    def _vectors(
        self, stream: int, labels: Int[Tensor, "height width"], names: dict[int, str] | None = None
    ) -> Float[Tensor, "height width dim"]:
        """Return the unit vector of each label, or of its name; void, which says nothing, has the zero vector."""
        ids, place = labels.unique(return_inverse=True)
        known = names or {}
        words = [_number_of(known[label]) if label in known else label for label in ids.tolist()]
        streams = [np.random.default_rng([self.config.seed, stream, word]) for word in words]
        table = np.stack([rng.normal(size=DIMENSIONS) for rng in streams])
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        table[ids.numpy() == VOID_ID] = 0
        return torch.from_numpy(table).float()[place]

    def _noise(self, clean: Float[Tensor, "rows cols dim"], image: str) -> Float[Tensor, "rows cols dim"]:
        rng = np.random.default_rng([self.config.seed, _NOISE, int(image[:16], 16)])
        std = self.config.noise * clean.norm(dim=-1).mean() / DIMENSIONS**0.5
        return torch.from_numpy(rng.standard_normal(tuple(clean.shape), dtype=np.float32)) * std


def _digest_of_pixels(path: Path) -> str:
    image = load_rgb(path)
    return digest([str(image.size).encode(), image.tobytes()])


def _number_of(name: str) -> int:
    """Return a seed made of a class name; names are compared as people do, without case and outer blanks."""
    return int(digest_of_text(name.strip().lower())[:16], 16)
