"""Ground-truth label maps of a capture: index PNGs of classes and instances, and the names of the classes.

Only the oracle teacher and the evaluation read them; shaping and clicks need none.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from jacobinerf_ns.errors import UserError, visible
from jacobinerf_ns.files.grids import resample
from jacobinerf_ns.files.outside import open_picture, read_json, shortened

VOID_ID = 0
"""Index of pixels without ground truth, in semantic and in instance maps."""

MAX_CLASS_NAME = 1_000
"""Characters."""
INDEX_MODES = ("L", "P", "I;16", "I;16B", "I;16L", "I")
"""Pillow's modes of images with one whole number per pixel."""


def read_label_map(
    path: Path, size: tuple[int, int], original_size: tuple[int, int] | None = None
) -> Int[Tensor, "height width"]:
    """Read an index PNG (8 or 16 bits, grey or palette) as int64 ids at the size of the training image.

    Args:
        path: the label map; a palette PNG gives its palette indices.
        size: (height, width) in pixels of the training image.
        original_size: (height, width) of the image before it was downscaled. A map of that size is resampled by taking
            the id under each pixel's centre: ids must not be averaged, and a centre is where the pixel's ray passes.

    Raises:
        UserError: the file is missing or damaged, is no index image, or has neither size.
    """
    ids = _read_indices(path, size, original_size)
    found = (ids.shape[0], ids.shape[1])
    return torch.from_numpy(ids if found == tuple(size) else resample(ids, size))


def read_classes(path: Path) -> dict[int, str]:
    """Read `classes.json`: `{"void_id": 0, "classes": [{"id": 1, "name": "wall"}, ...]}`, further keys are ignored.

    Returns:
        Class names by id, in the file's order; void (0) is not among them.

    Raises:
        UserError: the file is not readable, not of this layout, has an id twice, or counts void as a class.
    """
    layout = '{"void_id": 0, "classes": [{"id": 1, "name": "wall"}, ...]}'
    content = read_json(path, layout)
    entries = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(_is_class(entry) for entry in entries):
        raise UserError(f"{path}: expected {layout}, found something else")
    for entry in entries:
        check_class_name(entry["name"], path)
    if content.get("void_id", VOID_ID) != VOID_ID:
        raise UserError(
            f"{path}: void_id is {shortened(content['void_id'])}, expected {VOID_ID}: renumber the label maps"
        )
    names = {entry["id"]: entry["name"] for entry in entries if entry["id"] != VOID_ID}
    if len(names) != sum(entry["id"] != VOID_ID for entry in entries):
        raise UserError(f"{path}: a class id occurs twice, expected one entry per id")
    return names


def check_class_name(name: str, path: Path) -> str:
    """Return the name of a class, which is printed and asked for.

    Raises:
        UserError: it is too long, or has control characters; `path` is the file that gives it.
    """
    if name != visible(name) or len(name) > MAX_CLASS_NAME:
        raise UserError(
            f"{path}: the class name {shortened(name)} has control characters or more than {MAX_CLASS_NAME} letters: "
            "rename the class"
        )
    return name


def _is_class(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and type(entry.get("id")) is int
        and entry["id"] >= 0
        and isinstance(entry.get("name"), str)
    )


def _read_indices(path: Path, size: tuple[int, int], original_size: tuple[int, int] | None) -> np.ndarray:
    """Return the ids of a label map as an int64 array [height, width] of its own, of one of the two sizes."""
    if not path.exists():
        raise UserError(f"label map {path} is missing: put the file there, or remove its entry from transforms.json")
    with open_picture(path, f"label map {path}", "expected a PNG, write the file again") as image:
        if image.mode not in INDEX_MODES:
            raise UserError(
                f"label map {path} is a {image.mode} image, expected one 8- or 16-bit index per pixel: "
                "save ids as a greyscale or palette PNG, not as colours"
            )
        if (image.height, image.width) not in (tuple(size), original_size and tuple(original_size)):
            wanted = f"{size[1]}x{size[0]}"
            if original_size is not None and tuple(original_size) != tuple(size):
                wanted += f" or {original_size[1]}x{original_size[0]} (not downscaled)"
            raise UserError(
                f"label map {path} is {image.width}x{image.height} pixels (width x height), expected {wanted}: "
                "label maps need the size of their image"
            )
        return np.array(image).astype(np.int64)
