"""The files that a photo's label map is written as.

A label map is an array [height width] of label ids at the photo's original size, 0 where there is no label. Its index
PNG marks the photo as finished; LabelMe and COCO files and overlays are made from it, where they are not there yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int
from PIL import Image

from jacobinerf_ns.annotations.formats.base import label_file_names
from jacobinerf_ns.annotations.formats.coco import write_coco
from jacobinerf_ns.annotations.formats.labelme import write_labelme
from jacobinerf_ns.annotations.formats.png import LEGEND_NAME
from jacobinerf_ns.annotations.schema import Label
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.index_maps import VOID_ID, read_label_map
from jacobinerf_ns.photos import Photo

MANIFEST_NAME = "propagation.json"
COCO_NAME = "annotations.coco.json"
COCO_FORMATS = ("coco", "coco-polygons")
OutputFormat = Literal["png", "coco", "coco-polygons", "labelme"]
MAPS_FOLDER = "label_maps"
"""Where the index PNGs lie when another format is what was asked for."""
OVERLAYS_FOLDER = "overlays"
OVERLAY_OPACITY = 0.5
JPEG_QUALITY = 90


@dataclass(frozen=True)
class PhotoFiles:
    """A photo and its files."""

    photo: Photo
    label_map: Path
    labelme: Path | None
    overlay: Path | None

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [path for path in (self.label_map, self.labelme, self.overlay) if path is not None]


def plan_files(photos: Sequence[Photo], folder: Path, format: OutputFormat, overlays: bool) -> list[PhotoFiles]:
    """The files of every photo in an output folder, named as the photos are.

    Raises:
        UserError: two photos cannot be told apart, or a name is taken by what else lies in the folder.
    """
    names = [photo.name for photo in photos]
    maps = folder if format == "png" else folder / MAPS_FOLDER
    pngs, jpegs = label_file_names(names, ".png"), label_file_names(names, ".jpg")
    jsons = label_file_names(names, ".json") if format == "labelme" else [None] * len(names)
    for photo, name in zip(photos, jsons, strict=True):
        if name is not None and name.casefold() in (LEGEND_NAME, MANIFEST_NAME):
            raise UserError(f"the LabelMe file of photo {photo.name} would be {name}, which is taken: use --format png")
    return [
        PhotoFiles(
            photo,
            label_map=maps / png,
            labelme=folder / json if json is not None else None,
            overlay=folder / OVERLAYS_FOLDER / jpeg if overlays else None,
        )
        for photo, png, json, jpeg in zip(photos, pngs, jsons, jpegs, strict=True)
    ]


def check_capture_is_safe(folder: Path, paths: Sequence[Path], photos: Sequence[Photo]) -> None:
    """Keeps files of a capture from being overwritten, even on request.

    Raises:
        UserError: the output folder is a capture, or a file of it is a photo or ground truth of the run's capture.
    """
    if (folder / "transforms.json").exists():
        raise UserError(f"{folder} is a capture, with its own images and labels: choose another --output-dir")
    own = {path.resolve() for photo in photos for path in (photo.path, photo.trained, *photo.truth)}
    for path in paths:
        if path.resolve() in own:
            raise UserError(f"{path} is a file of the capture: choose another --output-dir")


def read_finished(files: PhotoFiles, labels: Sequence[Label]) -> Int[np.ndarray, "height width"]:
    """A label map that an earlier run wrote. Errors: `UserError`, it is damaged or has become something else."""
    ids = read_label_map(files.label_map, files.photo.size).numpy()
    strange = set(np.unique(ids).tolist()) - {VOID_ID, *(label.id for label in labels)}
    if strange:
        raise UserError(
            f"{files.label_map} has the id {min(strange)}, which no label has: remove the file to render it again"
        )
    return ids


def write_companions(files: PhotoFiles, ids: Int[np.ndarray, "height width"], labels: Sequence[Label]) -> None:
    """Writes a photo's LabelMe file and overlay where they are planned and not there. Errors: `UserError`."""
    if files.labelme is not None and not files.labelme.exists():
        write_labelme(files.labelme, str(files.photo.path), ids, labels)
    if files.overlay is not None and not files.overlay.exists():
        picture = draw_overlay(files.photo, ids, labels)
        with writing(files.overlay) as temporary:
            picture.save(temporary, format="JPEG", quality=JPEG_QUALITY)


def compile_coco(path: Path, planned: Sequence[PhotoFiles], labels: Sequence[Label], polygons: bool) -> None:
    """Writes the COCO file of finished photos, read one by one; an existing one stays as it is. Errors: `UserError`."""
    if not path.exists():
        write_coco(
            path, ((files.photo.name, read_finished(files, labels)) for files in planned), labels, polygons=polygons
        )


def draw_overlay(photo: Photo, ids: Int[np.ndarray, "height width"], labels: Sequence[Label]) -> Image.Image:
    """The photo at its original size with the labels' colours over it. Errors: `UserError`, it cannot be read."""
    path = photo.path if photo.path.is_file() else photo.trained
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB").resize(photo.size[::-1])
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"image {path} cannot be read ({error}): put it back, or leave --overlays out") from None
    pixels = np.asarray(picture, dtype=np.float32)
    table = np.zeros((max([0, *(label.id for label in labels)]) + 1, 3), dtype=np.float32)
    for label in labels:
        table[label.id] = label.colour
    opacity = np.where(ids == VOID_ID, 0.0, OVERLAY_OPACITY).astype(np.float32)[..., None]
    return Image.fromarray(np.rint(pixels + opacity * (table[ids] - pixels)).astype(np.uint8))
