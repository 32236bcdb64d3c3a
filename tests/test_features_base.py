"""Grids and what is read off between their patch centres."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import (
    FeatureGrid,
    covering_grid,
    load_rgb,
    pixel_positions,
    pool_cells,
    sample,
)
from jacobinerf_ns.files.digests import digest_of_file


def slow_sample(grid: FeatureGrid, y: float, x: float) -> torch.Tensor:
    """One position, by the textbook."""
    rows, cols = grid.values.shape[:2]
    v = min(max((y - grid.origin[0]) / grid.step[0], 0), rows - 1)
    u = min(max((x - grid.origin[1]) / grid.step[1], 0), cols - 1)
    r, c = int(v), int(u)
    total = torch.zeros(grid.values.shape[2])
    for i, wi in ((r, 1 - (v - r)), (r + 1, v - r)):
        for j, wj in ((c, 1 - (u - c)), (c + 1, u - c)):
            if wi * wj > 0:
                total += wi * wj * grid.values[i, j].float()
    return total


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 4, 2), (3, 1, 2), (1, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sample_is_bilinear(shape, dtype):
    torch.manual_seed(0)
    grid = FeatureGrid(torch.randn(shape).to(dtype), origin=(0.13, 0.09), step=(0.17, 0.12))
    yx = torch.rand(200, 2)
    expected = torch.stack([slow_sample(grid, *map(float, position)) for position in yx])
    found = sample(grid, yx)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_sample_gives_patch_values_at_their_centres_and_clamps_beyond():
    grid = FeatureGrid(torch.arange(6.0).view(2, 3, 1), origin=(0.25, 0.2), step=(0.5, 0.3))
    assert sample(grid, torch.tensor([[0.75, 0.5]])).item() == pytest.approx(4)
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(sample(grid, corners)[:, 0], torch.tensor([0.0, 2.0, 3.0, 5.0]))


def test_pixel_positions_are_pixel_centres():
    found = pixel_positions(torch.tensor([[0, 0], [3, 9]]), torch.tensor([[4, 10]]))
    torch.testing.assert_close(found, torch.tensor([[0.125, 0.05], [0.875, 0.95]]))


def test_covering_grid_puts_a_full_resolution_array_on_the_pixels():
    values = torch.randn(4, 6, 2)
    pixels = torch.cartesian_prod(torch.arange(4), torch.arange(6))
    found = sample(covering_grid(values), pixel_positions(pixels, torch.tensor([[4, 6]])))
    torch.testing.assert_close(found, values.flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_pool_cells_averages_squares_and_tiles_odd_sizes():
    pixels = torch.randn(8, 16, 2)
    torch.testing.assert_close(pool_cells(pixels, 8)[0, 1], pixels[:, 8:].mean((0, 1)))
    assert pool_cells(torch.randn(11, 13, 1), 4).shape == (3, 3, 1)
    assert pool_cells(torch.randn(3, 3, 1), 8).shape == (1, 1, 1)


def test_load_rgb_resizes_and_shows_white_through_transparency(tmp_path: Path):
    pixels = np.zeros((6, 4, 4), dtype=np.uint8)
    pixels[:3, :, 3] = 255
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    image = np.asarray(load_rgb(tmp_path / "a.png"))
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[5, 0].tolist() == [255, 255, 255]
    assert load_rgb(tmp_path / "a.png", (3, 2)).size == (2, 3)


def test_load_rgb_names_the_file_that_is_no_image(tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    for name in ("bad.png", "gone.png"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            load_rgb(tmp_path / name)


def test_file_digest_names_a_missing_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.npy cannot be read"):
        digest_of_file(tmp_path / "gone.npy")
