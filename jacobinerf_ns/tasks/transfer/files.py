"""What a transfer writes: annotations of the other run, and a picture of correspondences."""

import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from jacobinerf_ns.annotations.changes import merge
from jacobinerf_ns.annotations.schema import Colour
from jacobinerf_ns.annotations.store import AnnotationStore, write_annotations
from jacobinerf_ns.core.matching import UNLABELLED, spread_out
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.outside import open_picture
from jacobinerf_ns.run.opened import annotations_path
from jacobinerf_ns.run.photos import Photo, check_capture_is_safe
from jacobinerf_ns.tasks.transfer.pictures import Line, Ring, draw_matches
from jacobinerf_ns.tasks.transfer.side import Side
from jacobinerf_ns.tasks.transfer.transfer import Correspondence, Transferred

MAX_LINES = 80
"""Correspondences in the picture: the clearest, and of those some that lie far apart."""
_CLEAREST = 4
GREY: Colour = (150, 150, 150)
"""Of pixels that have no label at home, or one that was left out."""


@dataclass(frozen=True)
class TransferFiles:
    """Where a transfer goes."""

    annotations: Path
    picture: Path
    merge: bool
    """Add to the annotations that are there."""


def plan_transfer(source: Side, target: Side, folder: Path | None, merge: bool) -> TransferFiles:
    """Return the files of a transfer, by default beside the other run's config.yml; asked before any work is done.

    Raises:
        UserError: one is there already, or the folder is a capture.
    """
    name = re.sub(r"[^\w.-]+", "_", source.name)
    place = target.run.folder if folder is None else folder.absolute()
    own = annotations_path(target.run.config.pipeline, target.run.folder / "config.yml")
    files = TransferFiles(
        own if merge else place / f"annotations_from_{name}.json", place / f"correspondence_from_{name}.png", merge
    )
    check_capture_is_safe(place, [files.picture], target.photos)
    for path in () if merge else (files.annotations, files.picture):
        if path.exists():
            raise UserError(
                f"{path} is there already: move it away, choose another --output-dir, or --merge into the run's own "
                "annotations"
            )
    return files


def write_transfer(files: TransferFiles, source: Side, target: Side, transferred: Transferred) -> None:
    """Write the picture, and the annotations unless no label was found; merging keeps all that is there.

    Raises:
        UserError: photos cannot be read, the folder cannot be written to, or annotations are damaged.
    """
    picture = match_picture(source, target, transferred)
    if transferred.annotations.labels and files.merge:
        AnnotationStore(files.annotations).change(lambda present: merge(present, transferred.annotations))
    elif transferred.annotations.labels:
        write_annotations(files.annotations, transferred.annotations)
    with writing(files.picture, overwrite=files.merge) as temporary:
        picture.save(temporary)


def match_picture(source: Side, target: Side, transferred: Transferred) -> Image.Image:
    """Draw a photo of each capture, lines between pixels that are each other's nearest, rings at the new clicks."""
    matched = transferred.correspondence
    photos = [side.photos[image] for side, image in zip((source, target), matched.images, strict=True)]
    colours = {k: part.label.colour for k, part in enumerate(transferred.found) if len(part.pixels)}
    rings = [
        Ring(1, _place(target, image, row, col), part.label.colour)
        for part in transferred.found
        for image, row, col in part.pixels.tolist()
        if image == matched.images[1]
    ]
    legend = [(f"{part.label.name} {part.confidence:.2f}", part.label.colour) for part in transferred.found]
    legend = [entry for entry, part in zip(legend, transferred.found, strict=True) if len(part.pixels)]
    return draw_matches((_open(photos[0]), _open(photos[1])), _lines(source, target, matched, colours), rings, legend)


def _lines(source: Side, target: Side, matched: Correspondence, colours: dict[int, Colour]) -> list[Line]:
    clearest = matched.cosines.topk(min(_CLEAREST * MAX_LINES, len(matched.cosines))).indices
    if not len(clearest):
        return []
    chosen = clearest[spread_out(matched.pairs[clearest, 0].float(), MAX_LINES)]
    chosen = chosen[(matched.labels[chosen] != UNLABELLED).long().argsort(stable=True)]  # Labels above grey.
    lines = []
    for pair, label in zip(matched.pairs[chosen].tolist(), matched.labels[chosen].tolist(), strict=True):
        here, there = (
            _place(side, image, *pixel)
            for side, image, pixel in zip((source, target), matched.images, pair, strict=True)
        )
        lines.append(Line(here, there, colours.get(label, GREY)))
    return lines


def _place(side: Side, image: int, row: int, col: int) -> tuple[float, float]:
    height, width = side.sizes[image]
    return (col + 0.5) / width, (row + 0.5) / height


def _open(photo: Photo) -> Image.Image:
    path = photo.trained if photo.trained.is_file() else photo.path
    with open_picture(path, f"image {path}", "put it back") as image:
        return image.convert("RGB")
