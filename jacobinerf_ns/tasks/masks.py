"""Label maps of a capture's photos, rendered one after the other from a run and its annotations."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jacobinerf_ns.annotations.changes import label_named
from jacobinerf_ns.annotations.formats.png import LEGEND_NAME, write_index_png, write_legend
from jacobinerf_ns.annotations.rasterise import to_camera
from jacobinerf_ns.annotations.schema import Annotations, Label, Mask, ViewSettings
from jacobinerf_ns.annotations.settings import adjusted
from jacobinerf_ns.annotations.store import read_annotations
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.files.resumable import claim_folder
from jacobinerf_ns.labelled_views import Labels
from jacobinerf_ns.photos import Photo, Split
from jacobinerf_ns.run import Run, open_run
from jacobinerf_ns.tasks import photo_files
from jacobinerf_ns.tasks.photo_files import COCO_FORMATS, COCO_NAME, MANIFEST_NAME, OutputFormat, PhotoFiles
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig

OVERRIDES = ("refine", "smooth", "space", "void_below")
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


@dataclass(frozen=True)
class PropagateSettings:
    """Which photos are labelled, how, and as which files."""

    split: Split = "all"
    """Photos the run was trained on, those held out, or both."""
    format: OutputFormat = "png"
    """Of the files."""
    labels: tuple[str, ...] = ()
    """Names of the labels that are written; none: all. Others still compete for pixels, and theirs become 0."""
    refine: int | None = None
    """Rounds of refining prototypes on the scene itself; None is the annotation file's."""
    smooth: float | None = None
    """Share (0..1) of a response that comes from the nearest surface points; None is the annotation file's."""
    space: Literal["2d", "3d"] | None = None
    """Where responses are taken; None is the annotation file's."""
    void_below: float | None = None
    """Pixels of less confidence (0..1) get no label; None is the annotation file's."""
    full_resolution: bool = False
    """Render at the photos' original size, instead of resampling the label maps of the training resolution."""
    overlays: bool = False
    """Also write the photos with the labels' colours over them."""
    overwrite: bool = False
    """Make all files anew, in the place of what an earlier run wrote."""


@dataclass
class Propagated:
    """What was written."""

    folder: Path
    labels: tuple[Label, ...]
    """Those of the label maps."""
    unopposed: bool
    """There is only one label, and nothing to keep it from taking every pixel that responds at all."""
    rendered: int = 0
    """Photos that were rendered."""
    there_already: int = 0
    """Photos that an earlier run had finished."""
    pixels: Counter[int] = field(default_factory=Counter)
    """Pixels by label id, over all photos; 0 is void."""
    photos: Counter[int] = field(default_factory=Counter)
    """Photos in which a label id occurs."""

    def share(self, label_id: int) -> float:
        """Share (0..1) of all pixels that have the label."""
        return self.pixels[label_id] / max(sum(self.pixels.values()), 1)


def propagate(
    config_path: Path,
    output_dir: Path,
    settings: PropagateSettings | None = None,
    annotations_file: Path | None = None,
) -> Propagated:
    """Writes a label map for every photo of a split, and `classes.json`, which names the ids.

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
    run, annotations, written = _open(config_path, annotations_file, settings)
    # What is clicked during a command of an hour must not change its later photos: these labels stay as they are.
    labels = run.fit(annotations)
    photos = run.photos(settings.split, settings.full_resolution)
    planned = photo_files.plan_files(photos, folder, settings.format, settings.overlays)
    common = [folder / LEGEND_NAME, *([folder / COCO_NAME] if settings.format in COCO_FORMATS else [])]
    paths = [*common, *(path for files in planned for path in files.paths)]
    photo_files.check_capture_is_safe(folder, paths, photos)
    names = [path.relative_to(folder).as_posix() for path in paths]
    made_of = _made_of(run, annotations, written, photos, settings)
    claim_folder(folder / MANIFEST_NAME, made_of, names, _DIFFERENCES, settings.overwrite)
    unopposed = len(annotations.labels) == 1 and annotations.view.propagation.void_below == 0
    result = Propagated(folder, written, unopposed)
    _write_all(labels, planned, result, settings.format)
    return result


def _open(
    config_path: Path, annotations_file: Path | None, settings: PropagateSettings
) -> tuple[Run, Annotations, tuple[Label, ...]]:
    """The run, the annotations that are propagated, and the labels that are written."""
    chosen: list[tuple[Annotations, tuple[Label, ...]]] = []

    def prepare(config: JacobiNeRFTrainerConfig) -> None:
        # Before the model is built: what is wrong with the annotations should not take a minute to show.
        assert config.pipeline.annotations is not None
        chosen.append(choose_annotations(_read_existing(config.pipeline.annotations), settings))

    run = open_run(config_path, annotations_file, change=prepare)
    return run, *chosen[0]


def choose_annotations(annotations: Annotations, settings: PropagateSettings) -> tuple[Annotations, tuple[Label, ...]]:
    """The annotations that are propagated, and those of their labels that are written.

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
    return Annotations(labels=labels, seeds=seeds, view=view), written


def label_map(labels: Labels, photo: Photo, written: Sequence[Label]) -> Int[np.ndarray, "height width"]:
    """Render a photo's label map, at the photo's original size; labels that are not `written` are 0."""
    ids = labels.render(photo.camera).ids
    return at_size(np.where(np.isin(ids, [label.id for label in written]), ids, VOID_ID), photo.size)


def at_size(ids: Int[np.ndarray, "rows columns"], size: tuple[int, int]) -> Int[np.ndarray, "height width"]:
    """A label map at its photo's original size (height, width): each pixel gets the id that its centre lies in."""
    (height, width), found = size, (ids.shape[1], ids.shape[0])
    steps = np.arange(max(size))
    pixels = np.stack([steps.clip(max=width - 1), steps.clip(max=height - 1)], axis=1)
    columns, rows = to_camera(pixels, (width, height), found).T
    return ids[rows[:height, None], columns[None, :width]]


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
    """All that decides what the files hold. Weights count by content: runs are moved, and trained anew."""
    folder = run.annotations_file.parent
    masks = ((folder / seed.file).read_bytes() for seed in annotations.seeds if isinstance(seed, Mask))
    weights = (tensor.cpu().numpy().tobytes() for tensor in run.pipeline.model.state_dict().values())
    return {
        "annotations": _digest([annotations.model_dump_json().encode(), *masks]),
        "labels": [label.name for label in written],
        "checkpoint": {"step": run.step, "weights": _digest(weights)},
        "photos": _digest(part for photo in photos for part in _numbers(photo)),
        "split": settings.split,
        "format": settings.format,
        "resolution": "full" if settings.full_resolution else "training",
    }


def _numbers(photo: Photo) -> Iterator[bytes]:
    yield repr((photo.name, photo.size)).encode()
    camera = photo.camera
    for tensor in (camera.camera_to_worlds, camera.fx, camera.fy, camera.cx, camera.cy, camera.distortion_params):
        yield b"" if tensor is None else tensor.cpu().numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def _write_all(fitted: Labels, planned: Sequence[PhotoFiles], result: Propagated, format: OutputFormat) -> None:
    labels = result.labels
    result.there_already = sum(files.label_map.exists() for files in planned)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("photos")]
    with (
        _says_what_is_kept(result, len(planned)),
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress,
    ):
        task = progress.add_task("Labelling", total=len(planned), completed=result.there_already)
        if not (result.folder / LEGEND_NAME).exists():
            write_legend(result.folder, labels)
        for files in planned:
            if files.label_map.exists():
                ids = photo_files.read_finished(files, labels)
            else:
                ids = label_map(fitted, files.photo, labels)
                write_index_png(files.label_map, ids, labels)
                result.rendered += 1
                progress.advance(task)
            photo_files.write_companions(files, ids, labels)
            values, counts = np.unique(ids, return_counts=True)
            result.pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            result.photos.update(values.tolist())
        if format in COCO_FORMATS:
            photo_files.compile_coco(result.folder / COCO_NAME, planned, labels, polygons=format == "coco-polygons")


@contextmanager
def _says_what_is_kept(result: Propagated, total: int) -> Iterator[None]:
    """A disk that fills up costs nothing but the photo that was being written."""
    try:
        yield
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        done = result.there_already + result.rendered
        raise UserError(
            f"{error}; {done} of {total} photos are done and kept: the same command goes on from there"
        ) from error.__cause__
