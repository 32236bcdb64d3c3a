"""Label maps of a capture's photos, rendered one after the other from a run and its annotations.

A label map is an array [height width] of label ids at the photo's original size, 0 where there is no label. Its index
PNG marks the photo as finished; files of other formats and overlays are made from it, where they are not there yet.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from jacobinerf_ns.annotations.changes import grow_all, label_named
from jacobinerf_ns.annotations.formats.base import LabelFormat, label_file_names
from jacobinerf_ns.annotations.formats.png import LEGEND_NAME, write_index_png, write_legend
from jacobinerf_ns.annotations.formats.registry import FormatName, load_format
from jacobinerf_ns.annotations.schema import Annotations, Label, Mask, ViewSettings
from jacobinerf_ns.annotations.settings import adjusted
from jacobinerf_ns.annotations.store import read_annotations
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.digests import digest_of_each, tensor_bytes
from jacobinerf_ns.files.grids import resample
from jacobinerf_ns.files.index_maps import VOID_ID, read_label_map
from jacobinerf_ns.files.resumable import claim_folder
from jacobinerf_ns.progress import progress_bar
from jacobinerf_ns.run.labelled_views import Labels
from jacobinerf_ns.run.opened import Run, annotations_of, open_run
from jacobinerf_ns.run.photos import Photo, check_capture_is_safe
from jacobinerf_ns.tasks.settings import PropagateSettings

MANIFEST_NAME = "propagation.json"
MAPS_FORMAT = "png"
"""The format of the label maps themselves: whatever else is asked for is made from them."""
MAPS_FOLDER = "label_maps"
"""Where the index PNGs lie when another format is what was asked for."""
OVERLAYS_FOLDER = "overlays"
OVERLAY_OPACITY = 0.5
JPEG_QUALITY = 90

OVERRIDES = ("refine", "smooth", "space", "void_below", "threshold")
"""Settings of propagation that hold for one run of the command, without a change of the annotation file."""

_DIFFERENCES = {
    "annotations": "other annotations or settings",
    "labels": "another choice of labels",
    "checkpoint": "another checkpoint",
    "photos": "other photos or cameras",
    "split": "another split",
    "format": "another format",
    "resolution": "another resolution",
}


@dataclass
class Propagated:
    """What was written."""

    folder: Path
    labels: tuple[Label, ...]
    """Those of the label maps."""
    rendered: int = 0
    """Photos that were rendered."""
    there_already: int = 0
    """Photos that an earlier run had finished."""
    pixels: Counter[int] = field(default_factory=Counter)
    """Pixels by label id, over all photos; 0 is void."""
    photos: Counter[int] = field(default_factory=Counter)
    """Photos in which a label id occurs."""

    def share(self, label_id: int) -> float:
        """Return the share (0..1) of all pixels that have the label."""
        return self.pixels[label_id] / max(sum(self.pixels.values()), 1)


def propagate(
    config_path: Path,
    output_dir: Path,
    settings: PropagateSettings | None = None,
    annotations_file: Path | None = None,
) -> Propagated:
    """Write a label map for every photo of a split, and `classes.json`, which names the ids.

    Called again with the same input it goes on where it was interrupted. What makes the result (annotations, weights,
    photos, settings) is noted in `propagation.json`; a folder of another result is refused.

    Args:
        config_path: the run's config.yml.
        output_dir: folder of the files.
        settings: which photos are labelled, how, and as which files.
        annotations_file: instead of the run's own.

    Raises:
        UserError: there is nothing to propagate, the folder holds something else, or it cannot be written.
    """
    settings, folder = settings or PropagateSettings(), output_dir.absolute()
    # Before the model is built: what is wrong with the annotations should not take a minute to show.
    annotations, written = choose_annotations(_read_existing(annotations_file or annotations_of(config_path)), settings)
    run = open_run(config_path, annotations_file)
    # What is clicked during a command of an hour must not change its later photos: these labels stay as they are.
    labels = run.fit(annotations)
    photos = run.photos(settings.split, settings.full_resolution)
    planned = plan_files(photos, folder, settings.format, settings.overlays)
    form = load_format(settings.format)
    common = [folder / LEGEND_NAME, *([folder / form.set_name] if form.set_name is not None else [])]
    paths = [*common, *(path for files in planned for path in files.paths)]
    check_capture_is_safe(folder, paths, photos)
    names = [path.relative_to(folder).as_posix() for path in paths]
    made_of = _made_of(run, annotations, written, photos, settings)
    claim_folder(folder / MANIFEST_NAME, made_of, names, _DIFFERENCES, settings.overwrite)
    result = Propagated(folder, written)
    _write_all(labels, planned, result, form)
    return result


def choose_annotations(annotations: Annotations, settings: PropagateSettings) -> tuple[Annotations, tuple[Label, ...]]:
    """Return the annotations that are propagated, and those of their labels that are written.

    Labels that are not asked for still compete for pixels where they have seeds: a chair that is asked for alone does
    not become the whole room.

    Raises:
        UserError: an unknown name, a label to be written without a positive seed, or a setting out of range.
    """
    named = {label_named(annotations, name).id for name in settings.labels}
    written = tuple(label for label in annotations.labels if not named or label.id in named)
    seeded = {seed.label for seed in annotations.seeds if not seed.negative}
    bare = [label.name for label in written if label.id not in seeded]
    if bare:
        raise UserError(
            f"label {bare[0]!r} has no positive seed: click it (jacobinerf annotate), or name the others with --labels"
        )
    given = {name: getattr(settings, name) for name in OVERRIDES}
    view = ViewSettings(propagation=adjusted(annotations.view.propagation, given))
    labels = tuple(label for label in annotations.labels if label.id in seeded)
    seeds = tuple(seed for seed in annotations.seeds if seed.label in seeded)
    return grow_all(Annotations(labels=labels, seeds=seeds, view=view), settings.grow), written


def label_map(labels: Labels, photo: Photo, written: Sequence[Label]) -> Int[np.ndarray, "height width"]:
    """Render a photo's label map, at the photo's original size; labels that are not `written` are 0."""
    ids = labels.render(photo.camera).ids
    return resample(np.where(np.isin(ids, [label.id for label in written]), ids, VOID_ID), photo.size)


@dataclass(frozen=True)
class PhotoFiles:
    """A photo and its files."""

    photo: Photo
    label_map: Path
    """Index PNG; it marks the photo as finished."""
    companion: Path | None
    """File of the format that was asked for, where that has one for each photo."""
    overlay: Path | None

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [path for path in (self.label_map, self.companion, self.overlay) if path is not None]


def plan_files(photos: Sequence[Photo], folder: Path, format: FormatName, overlays: bool) -> list[PhotoFiles]:
    """Return the files of every photo in an output folder, named as the photos are.

    Raises:
        UserError: two photos cannot be told apart, or a name is taken by what else lies in the folder.
    """
    names = [photo.name for photo in photos]
    maps = folder if format == MAPS_FORMAT else folder / MAPS_FOLDER
    form = load_format(format)
    own = format != MAPS_FORMAT and form.write_image is not None
    pngs, jpegs = label_file_names(names, ".png"), label_file_names(names, ".jpg")
    companions = label_file_names(names, form.suffix) if own else [None] * len(names)
    for photo, name in zip(photos, companions, strict=True):
        if name is not None and name.casefold() in (LEGEND_NAME, MANIFEST_NAME):
            raise UserError(
                f"the {form.title} file of photo {photo.name} would be {name}, which is taken: "
                f"use --format {MAPS_FORMAT}"
            )
    return [
        PhotoFiles(
            photo,
            label_map=maps / png,
            companion=folder / companion if companion is not None else None,
            overlay=folder / OVERLAYS_FOLDER / jpeg if overlays else None,
        )
        for photo, png, companion, jpeg in zip(photos, pngs, companions, jpegs, strict=True)
    ]


def _read_existing(path: Path) -> Annotations:
    hint = "click first (jacobinerf annotate, or the viewer)"
    if not path.is_file():
        raise UserError(f"no annotation file {path}: {hint}")
    annotations = read_annotations(path)
    if not annotations.labels:
        raise UserError(f"{path} has no label: {hint}")
    return annotations


def _made_of(
    run: Run, annotations: Annotations, written: Sequence[Label], photos: Sequence[Photo], settings: PropagateSettings
) -> dict[str, Any]:
    """Return all that decides what the files hold. Weights count by content: runs are moved, and trained anew."""
    folder = run.annotations_file.parent
    masks = ((folder / seed.file).read_bytes() for seed in annotations.seeds if isinstance(seed, Mask))
    weights = map(tensor_bytes, run.pipeline.model.state_dict().values())
    return {
        "annotations": digest_of_each([annotations.model_dump_json().encode(), *masks]),
        "labels": [label.name for label in written],
        "checkpoint": {"step": run.step, "weights": digest_of_each(weights)},
        "photos": digest_of_each(part for photo in photos for part in _numbers(photo)),
        "split": settings.split,
        "format": settings.format,
        "resolution": "full" if settings.full_resolution else "training",
    }


def _numbers(photo: Photo) -> Iterator[bytes]:
    yield repr((photo.name, photo.size)).encode()
    camera = photo.camera
    for tensor in (camera.camera_to_worlds, camera.fx, camera.fy, camera.cx, camera.cy, camera.distortion_params):
        yield b"" if tensor is None else tensor_bytes(tensor)


def _write_all(fitted: Labels, planned: Sequence[PhotoFiles], result: Propagated, form: LabelFormat) -> None:
    labels = result.labels
    result.there_already = sum(files.label_map.exists() for files in planned)
    with _says_what_is_kept(result, len(planned)), progress_bar("photos") as progress:
        task = progress.add_task("Labelling", total=len(planned), completed=result.there_already)
        if not (result.folder / LEGEND_NAME).exists():
            write_legend(result.folder, labels)
        for files in planned:
            if files.label_map.exists():
                ids = _read_finished(files, labels)
            else:
                ids = label_map(fitted, files.photo, labels)
                write_index_png(files.label_map, ids, labels)
                result.rendered += 1
                progress.advance(task)
            _write_companions(files, ids, labels, form)
            values, counts = np.unique(ids, return_counts=True)
            result.pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            result.photos.update(values.tolist())
        if form.write_set is not None and form.set_name is not None and not (result.folder / form.set_name).exists():
            maps = ((files.photo.name, _read_finished(files, labels)) for files in planned)
            form.write_set(result.folder / form.set_name, maps, labels)


@contextmanager
def _says_what_is_kept(result: Propagated, total: int) -> Iterator[None]:
    """Say what is kept: a disk that fills up costs nothing but the photo that was being written."""
    try:
        yield
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        done = result.there_already + result.rendered
        raise UserError(
            f"{error}; {done} of {total} photos are done and kept: the same command goes on from there"
        ) from error.__cause__


def _read_finished(files: PhotoFiles, labels: Sequence[Label]) -> Int[np.ndarray, "height width"]:
    """Return a label map that an earlier run wrote.

    Raises:
        UserError: it is damaged or has become something else.
    """
    ids = read_label_map(files.label_map, files.photo.size).numpy()
    strange = set(np.unique(ids).tolist()) - {VOID_ID, *(label.id for label in labels)}
    if strange:
        raise UserError(
            f"{files.label_map} has the id {min(strange)}, which no label has: remove the file to render it again"
        )
    return ids


def _write_companions(
    files: PhotoFiles, ids: Int[np.ndarray, "height width"], labels: Sequence[Label], form: LabelFormat
) -> None:
    """Write a photo's file of the format that was asked for, and its overlay, where they are planned and not there."""
    if files.companion is not None and not files.companion.exists():
        assert form.write_image is not None
        form.write_image(files.companion, str(files.photo.path), ids, labels)
    if files.overlay is not None and not files.overlay.exists():
        picture = draw_overlay(files.photo, ids, labels)
        with writing(files.overlay) as temporary:
            picture.save(temporary, format="JPEG", quality=JPEG_QUALITY)


def draw_overlay(photo: Photo, ids: Int[np.ndarray, "height width"], labels: Sequence[Label]) -> Image.Image:
    """Return the photo at its original size with the labels' colours over it.

    Raises:
        UserError: it cannot be read.
    """
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
