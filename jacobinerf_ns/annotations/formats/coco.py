"""COCO: one JSON file for all images, regions as run lengths or polygons."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco_mask

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
    read_json,
)
from jacobinerf_ns.annotations.formats.outlines import outlines
from jacobinerf_ns.annotations.formats.png import parse_colour
from jacobinerf_ns.annotations.formats.run_lengths import mask_of_runs
from jacobinerf_ns.annotations.schema import Label
from jacobinerf_ns.errors import UserError, reason
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.outside import check_name, check_pixels, shortened

Entry = dict[str, Any]

_MAX_OUTLINE = 1_000_000
"""Pixels along the outline of a region, which filling it takes time and memory for."""


def write_coco(
    path: Path,
    images: Iterable[tuple[str, Int[np.ndarray, "height width"]]],
    labels: Sequence[Label],
    instances: bool = False,
    polygons: bool = False,
    overwrite: bool = False,
) -> None:
    """Write label maps as one COCO file, one region per label and image; category ids are the labels' ids.

    Only run lengths are kept while the images go by. The path is tried before the first image is asked for: a
    rendering of an hour should not fail at its end for a file that is in the way.

    Args:
        path: the JSON file.
        images: name and label map of each image.
        labels: the legend.
        instances: says that each label is a single object.
        polygons: outlines instead of run lengths, for tools that read no masks (Label Studio's converter).
        overwrite: replace the file if it is there.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    categories = [
        {"id": label.id, "name": label.name, "supercategory": "", "color": list(label.colour)} for label in labels
    ]
    with writing(path, overwrite) as temporary:
        entries: list[Entry] = []
        annotations: list[Entry] = []
        for number, (name, ids) in enumerate(images, start=1):
            check_label_map(ids, labels)
            entries.append({"id": number, "file_name": name, "width": ids.shape[1], "height": ids.shape[0]})
            for label in np.unique(ids[ids != 0]).tolist():
                region = _region(ids == label, instances, polygons)
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, **region})
        content = {
            "info": {"description": "label maps by jacobinerf-ns", "version": "1.0"},
            "licenses": [],
            "images": entries,
            "categories": categories,
            "annotations": annotations,
        }
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def read_coco(path: Path) -> LabelSource:
    """Read a COCO file: run lengths (lists or strings) and polygons become masks, a mere `bbox` a box.

    The masks are decoded image by image, while they are iterated.

    Raises:
        UserError: the file is damaged, names an unknown category or image, or a mask has another size than its image;
            what is wrong with a mask shows while iterating.
    """
    content = read_json(path)
    images = {entry["id"]: entry for entry in _entries(path, content, "images", ("id", "width", "height"), "file_name")}
    labels = {
        entry["id"]: FileLabel(entry["name"], entry["id"], parse_colour(entry.get("color")))
        for entry in _entries(path, content, "categories", ("id",), "name")
    }
    regions: dict[int, list[Entry]] = {}
    for entry in _entries(path, content, "annotations", ("image_id", "category_id")):
        if entry["image_id"] not in images:
            raise UserError(f"{path}: {_called(entry)} is of image {entry['image_id']}, which is not in 'images'")
        if entry["category_id"] not in labels:
            raise UserError(
                f"{path}: {_called(entry)} has category {entry['category_id']}, expected one of {list(labels)[:12]}"
            )
        regions.setdefault(entry["image_id"], []).append(entry)
    return LabelSource(tuple(labels.values()), _decoded(path, images, labels, regions))


def _region(mask: Bool[np.ndarray, "height width"], instances: bool, polygons: bool) -> Entry:
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    region = {"area": int(coco_mask.area(runs)), "bbox": coco_mask.toBbox(runs).tolist()}
    if polygons:
        return {"segmentation": [ring.flatten().tolist() for ring in outlines(mask)], **region, "iscrowd": 0}
    runs_as_text = {"size": list(mask.shape), "counts": cast(bytes, runs["counts"]).decode("ascii")}
    # COCO: iscrowd 0 is one object, drawn as polygons; 1 is any number of objects, as run lengths. A label's region
    # may show several objects, hence 1. Readers of the format go by it: CVAT insists on the key and keeps it as an
    # attribute, while trainers of detectors leave crowds out, hence `instances`.
    return {"segmentation": runs_as_text, **region, "iscrowd": 0 if instances else 1}


def _entries(path: Path, content: Entry, key: str, numbers: tuple[str, ...], text: str | None = None) -> list[Entry]:
    """Return the list under `key`, each entry known to have its whole numbers and its text."""
    entries = content.get(key)
    wanted = f"expected a list '{key}' of COCO entries with {', '.join((*numbers, *([text] if text else [])))}"
    if not isinstance(entries, list):
        raise UserError(f"{path}: {wanted}, found {type(entries).__name__}")
    for index, entry in enumerate(entries):
        sound = isinstance(entry, dict) and all(type(entry.get(number)) is int for number in numbers)
        if not sound or (text is not None and not isinstance(entry.get(text), str)):
            raise UserError(f"{path}: {wanted}, entry {index} is {shortened(entry, 80)}")
        if "width" in numbers:
            check_name(entry["file_name"], f"{path}: file_name of image {index}")
            check_pixels((entry["height"], entry["width"]), f"{path}: image {entry['file_name']}")
    ids = [entry["id"] for entry in entries if "id" in numbers]
    if len(set(ids)) != len(ids):
        raise UserError(f"{path}: two entries of '{key}' have the same id, expected each once")
    return entries


def _decoded(
    path: Path, images: dict[int, Entry], labels: dict[int, FileLabel], regions: dict[int, list[Entry]]
) -> Iterator[LabelledImage]:
    for number, entries in regions.items():
        image = images[number]
        size = (image["height"], image["width"])

        def decode(_: int, entry: Entry, size: Size = size) -> list[Region]:
            return [_decode(path, entry, size, labels[entry["category_id"]])]

        yield LabelledImage(image["file_name"], size, Decoded(entries, decode))


def _decode(path: Path, entry: Entry, size: tuple[int, int], label: FileLabel) -> Region:
    segmentation = entry.get("segmentation")
    try:
        if isinstance(segmentation, dict):
            if segmentation.get("size") != list(size):
                raise ValueError(
                    f"its size is {shortened(segmentation.get('size'))}, its image's {list(size)} (height, width)"
                )
            return Region(label, "mask", mask_of_runs(segmentation.get("counts"), *size))
        if isinstance(segmentation, list) and segmentation:
            return Region(label, "mask", fill_polygons(segmentation, size))
        left, top, width, height = (float(number) for number in entry.get("bbox") or ())
        return Region(label, "box", points=inner_box([(left, top), (left + width, top + height)], size))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{path}: {_called(entry)} cannot be read ({reason(error)}): expected run lengths or polygons, or a bbox, "
            "inside of its image"
        ) from error


def fill_polygons(polygons: Sequence[Any], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Return the pixels whose centres lie inside of any of the polygons, each `[x1, y1, x2, y2, ...]`.

    Raises:
        ValueError: a polygon has fewer than three points, or is far outside (filling it would take for ever).
    """
    height, width = size
    sound, outline = [], 0.0
    for polygon in polygons:
        corners = np.asarray(polygon, dtype=np.float64)
        if corners.ndim != 1 or corners.size < 6 or corners.size % 2:
            raise ValueError("a polygon is no list of at least three pairs x, y")
        if not (np.abs(corners) <= 2 * max(size)).all():
            raise ValueError(f"a polygon reaches far out of the image of {width}x{height} pixels")
        sound.append(corners.tolist())
        ring = corners.reshape(-1, 2)
        outline += float(np.abs(ring - np.roll(ring, 1, axis=0)).max(axis=1).sum())
        if outline > _MAX_OUTLINE:
            raise ValueError(f"its outline is longer than {_MAX_OUTLINE} pixels")
    runs = coco_mask.frPyObjects(sound, height, width)
    while len(runs) > 1:
        # In pairs: merging thousands one by one goes through the whole union every time.
        runs = [coco_mask.merge(runs[index : index + 2]) for index in range(0, len(runs), 2)]
    return coco_mask.decode(runs[0]).astype(bool)


def _called(entry: Entry) -> str:
    return f"annotation {shortened(entry['id']) if 'id' in entry else 'without id'}"


def _write_polygons(
    path: Path,
    images: Iterable[tuple[str, Int[np.ndarray, "height width"]]],
    labels: Sequence[Label],
    overwrite: bool = False,
) -> None:
    write_coco(path, images, labels, polygons=True, overwrite=overwrite)


def _open(files: Sequence[Path], folder: Path, known: Mapping[str, Size], labels: Sequence[Label]) -> LabelSource:
    (path,) = files
    return read_coco(path)


COCO = LabelFormat(
    "COCO",
    ".json",
    write_set=write_coco,
    set_name="annotations.coco.json",
    reader=LabelReader(_open, one="a COCO JSON file", holds=lambda content: {"annotations", "images"} <= set(content)),
)
COCO_POLYGONS = replace(COCO, write_set=_write_polygons, reader=None)
