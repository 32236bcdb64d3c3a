"""Two photos side by side, with lines between the pixels that correspond."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from jacobinerf_ns.annotations.schema import Colour

HEIGHT = 480
"""Pixels of each photo in the picture."""
GAP = 12
LEGEND_HEIGHT = 26
BACKGROUND, INK = (250, 250, 250), (30, 30, 30)
_DOT, _RING = 3, 8
_FONT_SIZE = 14


class Line(NamedTuple):
    """A correspondence. Places are (x, y) in units of each photo's width and height, 0..1."""

    here: tuple[float, float]
    there: tuple[float, float]
    colour: Colour


class Ring(NamedTuple):
    """A pixel of the left (0) or right (1) photo that stands out."""

    side: int
    place: tuple[float, float]
    colour: Colour


def draw_matches(
    photos: tuple[Image.Image, Image.Image],
    lines: Sequence[Line],
    rings: Sequence[Ring] = (),
    legend: Sequence[tuple[str, Colour]] = (),
) -> Image.Image:
    """Draw the photos at one height, a line and two dots per correspondence, rings, and a row of names below."""
    scaled = [
        photo.convert("RGB").resize((max(1, round(photo.width * HEIGHT / photo.height)), HEIGHT)) for photo in photos
    ]
    widths, left = [photo.width for photo in scaled], (0, scaled[0].width + GAP)
    picture = Image.new("RGB", (sum(widths) + GAP, HEIGHT + LEGEND_HEIGHT), BACKGROUND)
    for photo, start in zip(scaled, left, strict=True):
        picture.paste(photo, (start, 0))
    draw = ImageDraw.Draw(picture)

    def at(side: int, place: tuple[float, float]) -> tuple[float, float]:
        return left[side] + place[0] * widths[side], place[1] * HEIGHT

    for line in lines:
        draw.line([at(0, line.here), at(1, line.there)], fill=line.colour, width=1)
    for line in lines:
        for x, y in (at(0, line.here), at(1, line.there)):
            draw.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), fill=line.colour, outline=INK)
    for ring in rings:
        x, y = at(ring.side, ring.place)
        for radius, colour in ((_RING, INK), (_RING - 2, ring.colour)):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
    _write_legend(draw, legend)
    return picture


def _write_legend(draw: ImageDraw.ImageDraw, legend: Sequence[tuple[str, Colour]]) -> None:
    font, x, y = ImageFont.load_default(size=_FONT_SIZE), float(GAP), HEIGHT + LEGEND_HEIGHT / 2
    for name, colour in legend:
        draw.ellipse((x, y - 5, x + 10, y + 5), fill=colour, outline=INK)
        draw.text((x + 14, y), name, fill=INK, font=font, anchor="lm")
        x += 14 + draw.textlength(name, font=font) + GAP
