"""Colour and texture descriptors at several scales: a teacher that needs no download.

It knows surfaces, not things: two chairs of different colours are strangers to it. Where weights are to be had, `dino`
is the better teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import FeatureGrid, Frame, covering_grid, fingerprint_of, load_rgb, pool_cells

_VERSION = 1  # Part of the fingerprint: raise it whenever the descriptor changes, or caches go stale.
_FREQUENCIES = 64
# A step of 1 in the scaled descriptor is meant to be "another surface": cosines fall to 0.6 there, and to 0.1 at 2.
_LIGHTNESS_SCALE, _CHROMA_SCALE = 40.0, 10.0  # CIELAB units; lightness counts less, since shading changes it.
_TEXTURE_SIGMAS = (0.5, 1.0, 2.0)  # Pixels.
_TEXTURE_FLOOR = 1.0  # CIELAB units of contrast below which texture is noise of the camera.
_ORIENTATION_WEIGHT = 0.5
_LARGEST_CELL = 256  # Blurring takes time in proportion to it, and no patch of a teacher is larger.


@dataclass
class HandcraftedConfig:
    """Colour and texture at several scales (no download)."""

    cell: int = 4
    """Side of the cells of the grid, pixels of the training image. Colour is blurred over half a cell, texture over
    one. 1..256."""

    def setup(self, device: torch.device | str = "cpu") -> "HandcraftedExtractor":
        """Return the extractor; it works on the CPU whatever the device."""
        return HandcraftedExtractor(self)


class HandcraftedExtractor:
    """Describes colour, texture energy and its direction, and maps them such that cosines act as a Gaussian kernel."""

    def __init__(self, config: HandcraftedConfig) -> None:
        if not 1 <= config.cell <= _LARGEST_CELL:
            raise UserError(f"handcrafted: cell of {config.cell} pixels given, expected 1..{_LARGEST_CELL}")
        self.config = config

    def fingerprint(self) -> str:
        """Return the hash of the settings and of the version of the descriptor."""
        return fingerprint_of(f"handcrafted-{_VERSION}", self.config)

    def check(self, frames: Sequence[Frame]) -> None:
        """Do nothing: every image will do."""

    def sources(self, frame: Frame) -> Sequence[Path | str]:
        """Return the image, and the size at which it is looked at."""
        return [frame.path, f"{frame.size}"]

    def extract(self, frame: Frame) -> FeatureGrid:
        """Return unit vectors whose cosine is about exp(-d²/2) at distance d of the descriptors.

        Plain descriptors would not do: cosines see only their direction, so that all bright colours were alike and all
        greys undecided. Random Fourier features (Rahimi and Recht 2007) turn distance into angle.
        """
        rgb = np.asarray(load_rgb(frame.path, frame.size), dtype=np.float32) / 255
        channels = torch.from_numpy(_describe(rgb, self.config.cell))
        cells = pool_cells(channels, self.config.cell)
        directions = np.random.default_rng(0).normal(size=(cells.shape[-1], _FREQUENCIES))
        angles = cells @ torch.from_numpy(directions).float()
        return covering_grid(torch.cat([angles.cos(), angles.sin()], dim=-1) / _FREQUENCIES**0.5)


def _describe(rgb: np.ndarray, cell: int) -> np.ndarray:
    """Return float32 [height, width, channels] of RGB 0..1: blurred CIELAB, contrast per octave, edges."""
    from skimage.color import rgb2lab
    from skimage.filters import gaussian

    lab = rgb2lab(rgb).astype(np.float32)
    light = lab[..., 0]
    colour = gaussian(lab, cell / 2, channel_axis=-1) / np.array([_LIGHTNESS_SCALE, _CHROMA_SCALE, _CHROMA_SCALE])
    bands = [gaussian(light, sigma) - gaussian(light, 2 * sigma) for sigma in _TEXTURE_SIGMAS]
    texture = [np.log(np.sqrt(gaussian(band**2, cell)) + _TEXTURE_FLOOR) for band in bands]
    down, right = np.gradient(gaussian(light, 1.0))
    yy, xx, xy = (gaussian(product, cell) for product in (down**2, right**2, down * right))
    energy = yy + xx + _TEXTURE_FLOOR**2
    edges = [_ORIENTATION_WEIGHT * (xx - yy) / energy, _ORIENTATION_WEIGHT * 2 * xy / energy]
    return np.dstack([colour, *texture, *edges]).astype(np.float32)
