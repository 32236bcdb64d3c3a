"""LabelMe: one JSON file per image; masks as small PNGs in their bounding box (LabelMe 5.4 and newer)."""

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from jacobinerf_ns.annotations.formats.base import (
    Decoded,
    FileLabel,
    LabelFormat,
    LabelledImage,
    LabelReader,
    LabelSource,
    Region,
    Size,
    check_label_map,
    inner_box,
    inside_pixel,
    read_json,
)
from jacobinerf_ns.annotations.formats.coco import fill_polygons
from jacobinerf_ns.annotations.formats.png import read_legend_of
from jacobinerf_ns.annotations.schema import Label
from jacobinerf_ns.errors import UserError, reason
from jacobinerf_ns.files.atomic import write_json
from jacobinerf_ns.files.outside import check_name, check_pixels, open_picture, shortened

_VERSION = "5.4.0"
"""First LabelMe with masks."""

_POLYGONS = ("polygon", "oriented_rectangle")
_POINTS = ("point", "points")
_LINES = ("line", "linestrip")


def write_labelme(
    path: Path, photo: str, ids: Int[np.ndarray, "height width"], labels: Sequence[Label], overwrite: bool = False
) -> None:
    """Write a label map as a LabelMe file, one mask per label.

    Args:
        path: the JSON file. LabelMe looks for it beside the photo, or in the folder given with --output.
        photo: path of the photo; an absolute one is written relative to the file, which is how LabelMe finds it.
        ids: the label map.
        labels: the legend; LabelMe has names only, `png.write_legend` keeps ids and colours.
        overwrite: replace the file if it is there.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    check_label_map(ids, labels)
    names = {label.id: label.name for label in labels}
    if os.path.isabs(photo):
        photo = Path(os.path.relpath(photo, path.absolute().parent)).as_posix()
    content = {
        "version": _VERSION,
        "flags": {},
        "shapes": [_shape(names[number], ids == number) for number in np.unique(ids[ids != 0]).tolist()],
        "imagePath": photo,
        "imageData": None,
        "imageHeight": ids.shape[0],
        "imageWidth": ids.shape[1],
    }
    write_json(path, content, overwrite)


def read_labelme(path: Path) -> LabelledImage:
    """Read a LabelMe file.

    Masks, polygons and circles become masks (pixels whose centres are inside), rectangles boxes, points clicks, lines
    scribbles. What several shapes of one group belong together to is not kept.

    Raises:
        UserError: the file is damaged, or a shape is of an unknown type or outside of the image.
    """
    image = open_labelme(path)
    return replace(image, regions=tuple(image.regions))


def open_labelme(path: Path) -> LabelledImage:
    """Do the same, and decode the shapes while they are iterated: whose image it is can be looked at before.

    Raises:
        UserError: the file is damaged; what is wrong with a shape shows while iterating.
    """
    content = read_json(path)
    name, shapes = content.get("imagePath"), content.get("shapes")
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if not isinstance(name, str) or not name or not isinstance(shapes, list):
        raise UserError(f"{path}: expected LabelMe's imagePath and shapes, found the keys {list(content)[:12]}")
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise UserError(
            f"{path}: imageHeight {shortened(height)} and imageWidth {shortened(width)}, expected the photo's size in "
            "pixels"
        )
    check_name(name, f"{path}: imagePath")
    check_pixels((height, width), f"{path}: its image")

    def decode(index: int, shape: Any) -> list[Region]:
        try:
            return list(_regions(shape, (height, width)))
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(
                f"{path}: shape {index} cannot be read ({type(error).__name__}: {reason(error)}): expected a LabelMe "
                "shape (mask, polygon, rectangle, circle, point, line, linestrip) inside of its image"
            ) from error

    return LabelledImage(name, (height, width), Decoded(shapes, decode))


def _shape(name: str, mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = (int(edge) for edge in (rows[0], rows[-1], columns[0], columns[-1]))
    file = io.BytesIO()
    Image.fromarray(mask[top : bottom + 1, left : right + 1].astype(np.uint8)).save(file, format="PNG")
    return {
        "label": name,
        "points": [[left, top], [right, bottom]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(file.getvalue()).decode("ascii"),
    }


def _regions(shape: Any, size: tuple[int, int]) -> Iterator[Region]:
    if not isinstance(shape, dict):
        raise TypeError(f"a shape is a {type(shape).__name__}")
    kind = shape.get("shape_type") or "polygon"
    if not isinstance(shape["label"], str):
        raise TypeError(f"label {shortened(shape['label'])} is no text")
    label = FileLabel(shape["label"])
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if kind == "mask":
        yield Region(label, "mask", _mask(shape["mask"], points, size))
    elif kind in _POLYGONS:
        yield Region(label, "mask", fill_polygons([np.ravel(points)], size))
    elif kind == "circle":
        yield Region(label, "mask", _disc(points, size))
    elif kind == "rectangle":
        yield Region(label, "box", points=inner_box(points, size))
    elif kind in _POINTS:
        yield from (Region(label, "click", points=(inside_pixel(point, size),)) for point in points)
    elif kind in _LINES and points:
        yield Region(label, "scribble", points=tuple(inside_pixel(point, size) for point in points))
    else:
        raise ValueError(f"shape_type {str(kind)[:40]} with {len(points)} points")


def _mask(text: str, points: list[tuple[float, float]], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Return a mask from its cut-out; the two points are its first and last pixel."""
    (left, top), (right, bottom) = ((int(x), int(y)) for x, y in points)
    content = io.BytesIO(base64.b64decode(text, validate=True))
    with open_picture(content, "its mask", "expected a PNG", formats=("PNG",)) as picture:
        found, expected = (picture.height, picture.width), (bottom - top + 1, right - left + 1)
        part = np.array(picture).astype(bool) if found == expected else np.zeros(0)
    if part.ndim != 2 and found == expected:
        raise ValueError("a mask has several values per pixel")
    if found != expected or min(left, top) < 0 or right >= size[1] or bottom >= size[0]:
        raise ValueError(
            f"a mask of {found} pixels (height, width) does not fit into columns {left}..{right}, rows {top}..{bottom} "
            f"of an image of {size}"
        )
    mask = np.zeros(size, dtype=bool)
    mask[top : bottom + 1, left : right + 1] = part
    return mask


def _disc(points: list[tuple[float, float]], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Return a circle from its centre and a point on it."""
    (x, y), (edge_x, edge_y) = points
    rows, columns = np.arange(size[0])[:, None] + 0.5, np.arange(size[1])[None, :] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 <= (edge_x - x) ** 2 + (edge_y - y) ** 2


def _open(files: Sequence[Path], folder: Path, known: Mapping[str, Size], labels: Sequence[Label]) -> LabelSource:
    read = (open_labelme(path) for path in files)
    return LabelSource(read_legend_of(folder), (image for image in read if image.regions))


LABELME = LabelFormat(
    "LabelMe",
    ".json",
    write_image=write_labelme,
    reader=LabelReader(
        _open, one="a LabelMe JSON file", many="LabelMe files", holds=lambda content: "shapes" in content
    ),
)
