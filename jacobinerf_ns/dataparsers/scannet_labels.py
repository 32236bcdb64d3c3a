"""Dataparser `scannet-labels`: a ScanNet scene as its SensReader exports it, with label maps in NYU40 classes.

`color/N.jpg`, `depth/N.png` (16 bits, millimetres), `pose/N.txt` (4x4 camera-to-world, OpenCV axes),
`intrinsic/intrinsic_color.txt` and `intrinsic_depth.txt` (4x4), and from the archives beside the recording
`label-filt/N.png` (raw ScanNet ids, 16 bits) and `instance-filt/N.png`, both at the size of the photographs.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from jacobinerf_ns.dataparsers.image_checks import read_header
from jacobinerf_ns.dataparsers.label_copies import MAX_ID, remapped_copies
from jacobinerf_ns.dataparsers.posed_frames import (
    PosedFramesConfig,
    PosedFramesParser,
    Recording,
    SemanticLabels,
    check_rigid,
    companions,
    numbered_files,
    read_matrix,
)
from jacobinerf_ns.errors import UserError, reason, visible
from jacobinerf_ns.files.index_maps import VOID_ID, check_class_name
from jacobinerf_ns.files.outside import read_text

TSV_NAME = "scannetv2-labels.combined.tsv"
_IMAGES = (".jpg", ".jpeg", ".png")
_MAPS = (".png",)
_COLUMNS = ("id", "nyu40id", "nyu40class")
MAX_TABLE_BYTES = 10 << 20
"""Of the table of classes; ScanNet's has 90 KB."""
_DEPTH_TOLERANCE = 3.0
"""Pixels of the depth map by which its camera may differ from the photographs' (ScanNet's own: about 1)."""

_reported: set[str] = set()


@dataclass
class ScanNetLabelsParserConfig(PosedFramesConfig):
    """A ScanNet scene with label maps."""

    _target: type = field(default_factory=lambda: ScanNetLabelsParser)
    """Class to build."""
    frame_step: int = 1
    """Every n-th frame of the recording is used."""
    test_every: int = 8
    """Of the frames that are used and have a pose, every n-th is held out, from the first on."""
    labels_tsv: Path | None = None
    """ScanNet's table of classes. If not set, scannetv2-labels.combined.tsv is looked for in the scene's folder and in
    the two above it."""
    pixel_centre: float = 0.5
    """Pixels added to the principal points of the files: ScanNet counts the centre of the upper left pixel as (0, 0),
    nerfstudio as (0.5, 0.5). 0 for files that follow nerfstudio."""


@dataclass
class ScanNetLabelsParser(PosedFramesParser):
    """Reads one scene. Raw class ids become NYU40 ids, by copies of the class maps in the cache."""

    config: ScanNetLabelsParserConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def _read_recording(self) -> Recording:
        folder = self.config.data.absolute()
        if not folder.is_dir():
            raise UserError(f"no such data folder: {folder}: give --data a scene that ScanNet's SensReader exported")
        images, poses = _posed_images(folder, self.config.frame_step)
        first = next(iter(images.values()))
        size = read_header(first).size
        camera = _read_intrinsics(folder / "intrinsic" / "intrinsic_color.txt", first, size, self.config.pixel_centre)
        depths = companions(folder / "depth", "", _MAPS, images)
        if depths is not None and not _depth_fits(folder, camera, size, depths[0], self.config.pixel_centre):
            depths = None
        return Recording(
            folder=folder,
            poses_source=folder / "pose",
            images=list(images.values()),
            poses=poses,
            size=size,
            intrinsics=camera,
            depths=depths,
            instances=companions(folder / "instance-filt", "", _MAPS, images),
        )

    def _choose(self, recording: Recording, split: str) -> list[int]:
        every = self.config.test_every
        if every < 2:
            raise UserError(f"test every {every}: expected at least 2, so that frames are left to train on")
        held_out = range(0, len(recording.images), every)
        chosen = [i for i in range(len(recording.images)) if (i in held_out) == (split != "train")]
        if not chosen:
            raise UserError(
                f"no frame in split '{split}' of {recording.folder}: {len(recording.images)} frames are used, and "
                f"every {every}th is held out: choose a smaller --frame-step"
            )
        return chosen

    def _semantic_labels(self, recording: Recording, chosen: Sequence[int]) -> SemanticLabels:
        images = {int(recording.images[i].stem): recording.images[i] for i in chosen}
        maps = companions(recording.folder / "label-filt", "", _MAPS, images)
        if maps is None:
            return SemanticLabels(None, None, None)
        legend = _find_tsv(recording.folder, self.config.labels_tsv)
        table = read_nyu40(legend)
        copies = remapped_copies(maps, recording.size, table.mapping, legend)
        return SemanticLabels(copies, table.classes, table.mapping)


class Nyu40(NamedTuple):
    """NYU40 id by raw ScanNet id (0 where a raw class has none), and the NYU40 names by id."""

    mapping: dict[int, int]
    classes: dict[int, str]


def read_nyu40(path: Path) -> Nyu40:
    """Read ScanNet's tab-separated table of classes; its columns `id`, `nyu40id` and `nyu40class` are used.

    Raises:
        UserError: the file cannot be read, lacks a column, or has a row that is not understood.
    """
    text = read_text(path, f"ScanNet's {TSV_NAME}: give it as --labels-tsv", MAX_TABLE_BYTES)
    try:
        reader = csv.DictReader(StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [(reader.line_num, row) for row in reader]
    except (ValueError, csv.Error) as error:
        said = reason(error)
        raise UserError(f"{path} is no tab-separated text ({said}): give --labels-tsv ScanNet's {TSV_NAME}") from error
    missing = [name for name in _COLUMNS if not rows or name not in rows[0][1]]
    if missing:
        raise UserError(
            f"{path} has no column '{missing[0]}': expected tab-separated columns "
            f"{', '.join(_COLUMNS)}, as in {TSV_NAME}"
        )
    mapping, classes = {}, {}
    for line, row in rows:
        try:
            raw, nyu = int(row["id"]), VOID_ID if row["nyu40id"] == "" else int(row["nyu40id"])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path}: line {line} has no whole numbers under id and nyu40id ({reason(error)})"
            ) from error
        if not (0 <= raw <= MAX_ID and 0 <= nyu <= MAX_ID):
            raise UserError(f"{path}: line {line} has an id that label maps cannot have: expected 0..{MAX_ID}")
        mapping[raw] = nyu
        if nyu != VOID_ID:
            classes.setdefault(nyu, check_class_name(row["nyu40class"] or f"class {nyu}", path))
    return Nyu40(mapping, dict(sorted(classes.items())))


def _posed_images(folder: Path, step: int) -> tuple[dict[int, Path], Float[np.ndarray, "frames 4 4"]]:
    """Return every `step`-th image that has a pose, by its number, and the poses."""
    if step < 1:
        raise UserError(f"frame step {step}: expected at least 1")
    images = numbered_files(folder / "color", "", _IMAGES)
    files = numbered_files(folder / "pose", "", (".txt",))
    if images.keys() != files.keys():
        odd = min(images.keys() ^ files.keys())
        other = f"{images[odd]} has no pose" if odd in images else f"{files[odd]} has no image"
        raise UserError(
            f"{folder / 'pose'} has {len(files)} poses and {folder / 'color'} {len(images)} images ({other}): "
            "expected one per image"
        )
    numbers = list(images)[::step]
    poses = {number: _read_square(files[number]) for number in numbers}
    kept = [number for number in numbers if np.isfinite(poses[number]).all()]
    _report_dropped(folder, [files[number] for number in numbers if number not in set(kept)], len(numbers))
    for number in kept:
        check_rigid(poses[number], str(files[number]))
    return {number: images[number] for number in kept}, np.stack([poses[number] for number in kept])


def _report_dropped(folder: Path, dropped: list[Path], count: int) -> None:
    """Say once per process how many frames have no valid pose; an error when none has one."""
    if not dropped:
        return
    line = f"{len(dropped)} of {count} frames of {folder}: invalid pose (first: pose/{dropped[0].name})"
    if len(dropped) == count:
        raise UserError(f"{line}: expected finite 4x4 camera-to-world matrices")
    if line not in _reported:
        _reported.add(line)
        print(f"dropped {visible(line)}", flush=True)


def _read_square(path: Path) -> Float[np.ndarray, "4 4"]:
    matrix = read_matrix(path, "a 4x4 matrix")
    if matrix.shape != (4, 4):
        raise UserError(f"{path} has {matrix.shape[0]} lines of {matrix.shape[1]} numbers: expected a 4x4 matrix")
    return matrix


def _read_intrinsics(
    path: Path, image: Path, size: tuple[int, int], centre: float
) -> tuple[float, float, float, float]:
    """Return fx, fy, cx, cy in pixels of images of `size`, in nerfstudio's convention."""
    matrix = _read_square(path)
    fx, fy, cx, cy = (float(matrix[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if not (np.isfinite(matrix).all() and fx > 0 and fy > 0):
        raise UserError(f"{path} has no positive finite focal lengths: expected a 4x4 matrix of intrinsics in pixels")
    cx, cy = cx + centre, cy + centre
    height, width = size
    if abs(cx / width - 0.5) > 0.25 or abs(cy / height - 0.5) > 0.25:
        raise UserError(
            f"{path} has the principal point ({cx:g}, {cy:g}), far off the middle of {image} ({width}x{height} "
            "pixels): expected intrinsics for images of this size"
        )
    return fx, fy, cx, cy


def _depth_fits(
    folder: Path, camera: tuple[float, float, float, float], size: tuple[int, int], depth: Path, centre: float
) -> bool:
    """Return whether depth maps, stretched to the photographs' size, lie under them, as nerfstudio assumes."""
    path = folder / "intrinsic" / "intrinsic_depth.txt"
    height, width = read_header(depth).size
    own = _read_intrinsics(path, depth, (height, width), centre)
    off = 0.0
    for axis, (here, there) in enumerate(((width, size[1]), (height, size[0]))):
        for edge in (0.0, float(here)):
            ray = (edge * there / here - camera[2 + axis]) / camera[axis]
            off = max(off, abs(own[axis] * ray + own[2 + axis] - edge))
    if off > _DEPTH_TOLERANCE:
        line = f"depth of {folder} is left out: by {path} it is {off:.3g} pixels off the photographs"
        if line not in _reported:
            _reported.add(line)
            print(visible(line), flush=True)
    return off <= _DEPTH_TOLERANCE


def _find_tsv(scene: Path, given: Path | None) -> Path:
    if given is not None:
        return given
    folders = (scene, *list(scene.parents)[:2])
    found = next((folder / TSV_NAME for folder in folders if (folder / TSV_NAME).is_file()), None)
    if found is None:
        raise UserError(
            f"no {TSV_NAME} in {scene} or the two folders above it, and label-filt needs it: put it there, or give "
            "--labels-tsv"
        )
    return found


scannet_labels = DataParserSpecification(
    config=ScanNetLabelsParserConfig(),
    description="ScanNet scenes from SensReader, with label maps in NYU40 classes",
)
