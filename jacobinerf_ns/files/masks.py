"""Ground truth of a single object: black-and-white pictures, of the object (masks) and of strokes on it (scribbles)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.grids import is_scaled, pixels_under, resample
from jacobinerf_ns.files.index_maps import INDEX_MODES
from jacobinerf_ns.files.names import files_below
from jacobinerf_ns.files.outside import open_picture

_NEITHER = (0.1, 0.9)
"""Shares of a mask's largest value between which a pixel is neither black nor white."""
_SOFT = 0.1
"""Share of such pixels up to which a picture still is a mask: smoothed or lossily saved borders."""


def read_mask(path: Path) -> Bool[np.ndarray, "height width"]:
    """Return the white pixels of a mask in any format: of more than half of its largest value (1, 255, a colour).

    Raises:
        UserError: the file is missing, damaged or has too many values to be a mask, as a photograph has.
    """
    with open_picture(path, f"mask {path}", "put an undamaged file there") as image:
        whole = image.mode in INDEX_MODES and image.mode not in ("L", "P")
        pixels = np.array(image if whole else image.convert("RGB").convert("L"), dtype=np.int64)
    largest = pixels.max()
    low, high = (share * largest for share in _NEITHER)
    soft = float(((pixels > low) & (pixels < high)).mean())
    if soft > _SOFT:
        raise UserError(
            f"{path} is no mask: {soft:.0%} of its pixels are neither black nor white: expected two values, "
            "the object white"
        )
    return 2 * pixels > largest


def mask_at(path: Path, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """Return a mask at the size (height, width) of its image: the value under each pixel's centre.

    Raises:
        UserError: as of `read_mask`, or the mask has another aspect ratio.
    """
    mask = read_mask(path)
    _check_aspect(path, mask, size)
    return torch.from_numpy(resample(mask, size))


def scribbles_at(paths: Sequence[Path], size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """Return the pixels of an image of `size` (height, width) that strokes touch: thin ones on a larger copy survive.

    Raises:
        UserError: as of `mask_at`.
    """
    covered = np.zeros(size, dtype=bool)
    for path in paths:
        strokes = read_mask(path)
        _check_aspect(path, strokes, size)
        rows, columns = pixels_under(np.argwhere(strokes), (strokes.shape[0], strokes.shape[1]), size).T
        covered[rows, columns] = True
    return torch.from_numpy(covered)


def find_scribbles(places: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the pictures of positive and of negative strokes, told apart by `pos` or `neg` in their names.

    Args:
        places: pictures, or folders of them; in a folder, pictures named otherwise are passed over.

    Raises:
        UserError: a place is missing, a picture's name says neither or both, or there are no positive strokes.
    """
    found: dict[str, list[Path]] = {"pos": [], "neg": []}
    for place in places:
        if not place.exists():
            raise UserError(f"no such file or folder: {place}: give --scribbles pictures of strokes, or their folder")
        for path in files_below(place) if place.is_dir() else [place]:
            signs = [sign for sign in found if sign in path.stem.lower()]
            if len(signs) == 1:
                found[signs[0]].append(path)
            elif signs or not place.is_dir():
                raise UserError(
                    f"scribbles {path}: expected 'pos' or 'neg' in the name, to say which strokes these are"
                )
    if not found["pos"]:
        listed = ", ".join(map(str, places))
        raise UserError(f"no positive scribbles in {listed}: expected a picture with 'pos' in its name")
    return found["pos"], found["neg"]


def _check_aspect(path: Path, mask: Bool[np.ndarray, "height width"], size: tuple[int, int]) -> None:
    if not is_scaled((mask.shape[0], mask.shape[1]), size):
        raise UserError(
            f"mask {path} is {mask.shape[1]}x{mask.shape[0]} pixels (width x height), its image {size[1]}x{size[0]}: "
            "expected the same aspect ratio"
        )
