"""Which pixels a seed in an image covers."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from skimage.draw import line

from jacobinerf_ns.annotations.schema import Box, Click, InImage, Mask, Scribble, Seed, SpaceBox, SpaceClick, TextSeed
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.grids import is_scaled, pixels_under
from jacobinerf_ns.files.index_maps import read_label_map

_Z_ORDER_BITS = 16
_PIECE = 64
"""Pixels of a stroke drawn at a time: the rectangle around a long slanting one is mostly empty."""


def describe(seed: Seed) -> str:
    """Return a seed in a few words, for messages: `click (12, 40) in 0003.png`."""
    if isinstance(seed, SpaceClick):
        return "click in space"
    if isinstance(seed, SpaceBox):
        return "box in space"
    if isinstance(seed, TextSeed):
        return f"text {seed.words!r}"
    if isinstance(seed, Click):
        words = f"click {seed.pixel}"
    elif isinstance(seed, Box):
        words = f"box {seed.corner} to {seed.opposite}"
    elif isinstance(seed, Mask):
        words = f"value {seed.value} of {seed.file}"
    else:
        words = f"scribble from {seed.points[0]}"
    return f"{words} in {seed.image}"


def rasterise(seed: InImage, folder: Path) -> Bool[np.ndarray, "height width"]:
    """Return the pixels that a seed covers, at the size of the image that its own are counted in.

    Args:
        seed: a click, scribble, box or mask.
        folder: folder of the annotation file, which mask files are relative to.

    Raises:
        UserError: the mask file is missing or damaged, has another size, or has no pixel of the seed's value.
    """
    if isinstance(seed, Mask):
        return _mask_pixels(seed, folder)
    covered = np.zeros((seed.height, seed.width), dtype=bool)
    if isinstance(seed, Click):
        covered[seed.pixel[1], seed.pixel[0]] = True
    elif isinstance(seed, Box):
        (left, right), (top, bottom) = (sorted(pair) for pair in zip(seed.corner, seed.opposite, strict=True))
        covered[top : bottom + 1, left : right + 1] = True
    else:
        assert isinstance(seed, Scribble)
        for start, end in zip(seed.points, seed.points[1:] or seed.points, strict=False):
            _draw_stroke(covered, start, end, seed.radius)
    return covered


def to_camera(
    pixels: Int[np.ndarray, "pixels 2"], size: tuple[int, int], camera_size: tuple[int, int]
) -> Int[np.ndarray, "pixels 2"]:
    """Return (x, y) pixels of an image of `size` as those of a camera of `camera_size` that the centres fall into.

    Sizes are (width, height). A run may train on smaller copies than the image that was annotated, or on larger ones.

    Raises:
        UserError: no whole factor lies between the sizes, and the aspect ratios differ: another image or a crop.
    """
    if not is_scaled(size, camera_size):
        raise UserError(
            f"its pixels are counted in {size[0]}x{size[1]} (width x height), but the image is "
            f"{camera_size[0]}x{camera_size[1]}, another aspect ratio: annotate the image that the run was trained on"
        )
    return pixels_under(pixels, size, camera_size)


def spread(pixels: Int[np.ndarray, "pixels 2"], count: int) -> Int[np.ndarray, "chosen 2"]:
    """Return at most `count` of different (x, y) pixels, spread evenly over the area they cover; always the same ones.

    Even steps along a Z-order curve: steps in row order would leave out whole columns of a region as wide as a step.
    """
    if len(pixels) <= count:
        return pixels
    key = np.zeros(len(pixels), dtype=np.int64)
    for bit in range(_Z_ORDER_BITS):
        key |= ((pixels[:, 0] >> bit) & 1) << (2 * bit) | ((pixels[:, 1] >> bit) & 1) << (2 * bit + 1)
    steps = ((np.arange(count) + 0.5) * len(pixels) / count).astype(np.int64)
    return pixels[np.argsort(key, kind="stable")[steps]]


def _mask_pixels(seed: Mask, folder: Path) -> Bool[np.ndarray, "height width"]:
    path = folder / seed.file
    if not path.is_file():
        raise UserError(f"mask {path} of a seed in {seed.image} is missing: put the file back, or remove the seed")
    values = read_label_map(path, (seed.height, seed.width)).numpy()
    covered = values == seed.value
    if not covered.any():
        present = np.unique(values)
        listed = ", ".join(map(str, present[:8])) + (", ..." if len(present) > 8 else "")
        raise UserError(f"mask {path} has no pixel of value {seed.value}: found {listed}: give one of them")
    return covered


def _draw_stroke(
    covered: Bool[np.ndarray, "height width"], start: tuple[int, int], end: tuple[int, int], radius: int
) -> None:
    """Set the pixels of a line, and those whose centres are at most `radius` pixels from it."""
    rows, columns = line(start[1], start[0], end[1], end[0])
    covered[rows, columns] = True
    if radius:
        pieces = max(abs(end[0] - start[0]), abs(end[1] - start[1])) // _PIECE + 1
        corners = np.linspace(start, end, pieces + 1)
        for first, last in pairwise(corners):
            _draw_near(covered, first, last, radius)


def _draw_near(
    covered: Bool[np.ndarray, "height width"], start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], radius: int
) -> None:
    """Set the pixels whose centres are at most `radius` pixels from the line between two points (x, y)."""
    size = (covered.shape[1], covered.shape[0])
    low = np.clip(np.floor(np.minimum(start, end) - radius), 0, size).astype(int)
    high = np.clip(np.ceil(np.maximum(start, end) + radius) + 1, 0, size).astype(int)
    x, y = np.arange(low[0], high[0])[None, :] - start[0], np.arange(low[1], high[1])[:, None] - start[1]
    along = end - start
    share = np.clip((x * along[0] + y * along[1]) / max(float(along @ along), np.finfo(float).tiny), 0.0, 1.0)
    distance = (x - share * along[0]) ** 2 + (y - share * along[1]) ** 2
    covered[low[1] : high[1], low[0] : high[0]] |= distance <= radius**2
