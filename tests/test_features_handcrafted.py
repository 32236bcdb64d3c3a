"""Colour and texture without a download."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.handcrafted import HandcraftedConfig


def features(pixels: np.ndarray, folder: Path, size: tuple[int, int] | None = None, cell: int = 4) -> torch.Tensor:
    """Values of the grid of an image given as uint8 [height, width, 3]."""
    Image.fromarray(pixels).save(folder / "image.png")
    frame = Frame(0, folder / "image.png", size or pixels.shape[:2])
    return HandcraftedConfig(cell=cell).setup().extract(frame).values


def test_features_are_unit_vectors_on_a_grid_of_cells(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    values = features(pixels, tmp_path)
    assert values.shape[:2] == (8, 12)
    torch.testing.assert_close(values.norm(dim=-1), torch.ones(8, 12))
    assert features(pixels, tmp_path, size=(16, 24)).shape[:2] == (4, 6)
    assert features(pixels, tmp_path, cell=8).shape[:2] == (4, 6)


def test_same_surface_is_alike_and_another_colour_is_not(tmp_path: Path):
    pixels = np.zeros((32, 96, 3), dtype=np.uint8)
    pixels[:, :32], pixels[:, 32:64], pixels[:, 64:] = (180, 60, 50), (60, 110, 180), (180, 60, 50)
    values = features(pixels, tmp_path)
    red, blue, again = values[4, 4], values[4, 12], values[4, 20]
    assert red @ again > 0.95
    assert red @ blue < 0.3


def test_texture_tells_surfaces_of_one_colour_apart(tmp_path: Path):
    pixels = np.full((32, 160, 3), 128, dtype=np.uint8)
    stripes = np.where(np.arange(96) % 4 < 2, 78, 178).astype(np.uint8)
    pixels[:, 64:] = stripes[None, :, None]
    values = features(pixels, tmp_path)
    assert values[4, 5] @ values[4, 28] < 0.5
    assert values[4, 25] @ values[4, 30] > 0.9


def test_a_cell_needs_a_pixel():
    with pytest.raises(UserError, match="cell of 0 pixels given"):
        HandcraftedConfig(cell=0).setup()
