"""A look at what a teacher says: photographs beside its features as colours, and its segments where it has any."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.features.base import Frame, load_rgb
from jacobinerf_ns.features.palette import PaletteStore
from jacobinerf_ns.features.store import FeatureLookup, PixelFeatures
from jacobinerf_ns.features.surfaces import Surfaces
from jacobinerf_ns.files.pictures import Tile, write_sheet

ROWS = 6
"""Photographs at most, evenly spread over the capture."""
SIDE = 288
"""Pixels along the longer side of a picture."""
DULL = 0.02
"""Share of the values on either side that are drawn as the darkest and the brightest."""
PARTS_SHOWN = 3
"""Levels of segments that are shown."""


def write_preview(path: Path, frames: Sequence[Frame], store: PixelFeatures, surfaces: Surfaces | None = None) -> None:
    """Write a row per photograph: the photograph, the first three principal components of its features as colours.

    Args:
        path: PNG to write.
        frames: the images of the store.
        store: the features.
        surfaces: segments to be shown at levels from parts to wholes, each in a colour of its own in all pictures.
    """
    chosen = sorted({round(place) for place in np.linspace(0, len(frames) - 1, min(ROWS, len(frames)))})
    features = [_picture(store, frames, image) for image in chosen]
    levels = [] if surfaces is None else _level_colours(surfaces, store.sizes)
    rows = []
    for image, colours in zip(chosen, _three_colours(features), strict=True):
        height, width = colours.shape[:2]
        photo = torch.from_numpy(np.array(load_rgb(frames[image].path, (height, width)))) / 255
        tiles = [Tile(photo, frames[image].path.name), Tile(colours, "features, three components")]
        tiles += [Tile(_picture(level, frames, image), caption) for caption, level in levels]
        rows.append(tiles)
    write_sheet(path, rows)


def _picture(store: FeatureLookup, frames: Sequence[Frame], image: int) -> Float[Tensor, "height width dim"]:
    """Return the features of an image at no more pixels than are shown."""
    step = max(1.0, max(frames[image].size) / SIDE)
    rows, cols = (((torch.arange(int(side / step)) + 0.5) * step).long() for side in frames[image].size)
    pixels = torch.cartesian_prod(torch.tensor([image]), rows, cols)
    return store.sample(pixels).view(len(rows), len(cols), -1)


def _three_colours(pictures: Sequence[Float[Tensor, "height width dim"]]) -> list[Float[Tensor, "height width 3"]]:
    """Return the pictures' principal components as colours, the same ones in all pictures."""
    every = torch.cat([picture.flatten(0, 1) for picture in pictures])
    centred = every - every.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    basis = directions.flip(1)[:, :3]
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    values = centred @ basis
    low, high = (torch.from_numpy(np.quantile(values.numpy(), share, axis=0)) for share in (DULL, 1 - DULL))
    colours = ((values - low) / (high - low).clamp_min(1e-9)).clamp(0, 1).float()
    colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
    parts = colours.split([picture.shape[0] * picture.shape[1] for picture in pictures])
    return [part.view(*picture.shape[:2], 3) for part, picture in zip(parts, pictures, strict=True)]


def _level_colours(surfaces: Surfaces, sizes: Sequence[tuple[int, int]]) -> list[tuple[str, PaletteStore]]:
    levels = surfaces.levels.long()
    shown = sorted({round(place) for place in np.linspace(0, len(levels) - 1, min(PARTS_SHOWN, len(levels)))})
    found = []
    for level in shown:
        count = int(levels[level].max()) + 1
        colours = torch.from_numpy(np.random.default_rng(1).uniform(0.15, 1.0, size=(count, 3))).float()
        caption = f"level {level + 1} of {len(levels)}: {count} segments"
        found.append(
            (caption, PaletteStore([grid[..., None] for grid in surfaces.grids], colours[levels[level]], sizes))
        )
    return found
