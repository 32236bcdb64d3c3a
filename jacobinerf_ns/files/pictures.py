"""Contact sheets: photographs, renderings and heat maps side by side with captions, as one PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.utils.colormaps import apply_float_colormap
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from jacobinerf_ns.files.atomic import writing

MARGIN = 6
CAPTION_HEIGHT = 20
PAPER = (250, 250, 250)
INK = (30, 30, 30)


class Tile(NamedTuple):
    """One picture of a sheet."""

    image: Float[Tensor, "height width 3"]
    """Colours in 0..1."""
    caption: str
    mark: tuple[int, int] | None = None
    """(row, col) of a pixel to ring."""


def heat_map(values: Float[Tensor, "height width"]) -> Float[Tensor, "height width 3"]:
    """Return values in 0..1 (others are clipped) in the Turbo colours: blue 0, green 0.5, red 1."""
    return apply_float_colormap(values.clamp(0.0, 1.0)[..., None].cpu(), "turbo")


def write_sheet(path: Path, rows: Sequence[Sequence[Tile]], tile_width: int = 288) -> None:
    """Write rows of tiles as one PNG; all tiles take the size of the first.

    Raises:
        UserError: the file cannot be written.
    """
    first = rows[0][0].image
    size = (tile_width, round(tile_width * first.shape[0] / first.shape[1]))
    step = (size[0] + MARGIN, size[1] + CAPTION_HEIGHT + MARGIN)
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * step[0] + MARGIN, len(rows) * step[1] + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            corner = (MARGIN + j * step[0], MARGIN + i * step[1])
            draw.text((corner[0] + 2, corner[1] + 2), tile.caption, fill=INK, font=font)
            sheet.paste(_picture(tile, size), (corner[0], corner[1] + CAPTION_HEIGHT))
    with writing(path, overwrite=True) as temporary:
        sheet.save(temporary, format="PNG")


def _picture(tile: Tile, size: tuple[int, int]) -> Image.Image:
    pixels = (tile.image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.LANCZOS)
    if tile.mark is not None:
        scale = size[0] / tile.image.shape[1]
        x, y = (tile.mark[1] + 0.5) * scale, (tile.mark[0] + 0.5) * scale
        draw = ImageDraw.Draw(picture)
        for radius, colour in ((8, "black"), (6, "white")):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
    return picture
