"""Dataparser `replica-data`: the renders of Replica that came with Semantic-NeRF.

`room_0/Sequence_1/` holds `rgb/rgb_N.png`, `depth/depth_N.png` (16 bits, millimetres along the optical axis),
`semantic_class/semantic_class_N.png`, `semantic_instance/semantic_instance_N.png` and `traj_w_c.txt`, a line of 16
numbers per frame: the row-major camera-to-world matrix, OpenCV axes. The horizontal field of view is 90 degrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from jacobinerf_ns.dataparsers.image_checks import read_header
from jacobinerf_ns.dataparsers.label_copies import ids_present, remapped_copies, unknown_id
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
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.index_maps import check_class_name
from jacobinerf_ns.files.outside import check_name, read_json

POSES_NAME = "traj_w_c.txt"
LEGEND_NAME = "info_semantic.json"
_IMAGES = (".png", ".jpg", ".jpeg")
_MAPS = (".png",)


@dataclass
class ReplicaDataParserConfig(PosedFramesConfig):
    """Semantic-NeRF's renders of Replica."""

    _target: type = field(default_factory=lambda: ReplicaDataParser)
    """Class to build."""
    sequence: str = "Sequence_1"
    """Sequence that is read when the data folder is a room; not used when it is a sequence."""
    train_every: int = 5
    """Every n-th frame is trained on (paper: 5)."""
    test_offset: int = 2
    """The frame so many after each training frame is held out (paper: 2)."""
    info_semantic: Path | None = None
    """JSON with the names of the classes. If not set, info_semantic.json is looked for in the sequence, in the room and
    its habitat folder, and in semantic_info/ROOM beside the room; without one, classes are called "class N"."""


@dataclass
class ReplicaDataParser(PosedFramesParser):
    """Reads one sequence of one room.

    Class ids are renumbered 1, 2, ... in the order of those that occur in the whole sequence, by copies of the class
    maps in the cache; where they are numbered so already, the maps themselves are used.
    """

    config: ReplicaDataParserConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def _read_recording(self) -> Recording:
        folder = _sequence_folder(self.config.data, self.config.sequence)
        images = numbered_files(folder / "rgb", "rgb_", _IMAGES)
        poses = _read_poses(folder / POSES_NAME, images, folder / "rgb")
        height, width = read_header(images[0]).size
        return Recording(
            folder=folder,
            poses_source=folder / POSES_NAME,
            images=list(images.values()),
            poses=poses,
            size=(height, width),
            intrinsics=(width / 2, width / 2, width / 2, height / 2),
            depths=companions(folder / "depth", "depth_", _MAPS, images),
            instances=companions(folder / "semantic_instance", "semantic_instance_", _MAPS, images),
        )

    def _choose(self, recording: Recording, split: str) -> list[int]:
        every, offset = self.config.train_every, self.config.test_offset
        if not 0 < offset < every:
            raise UserError(
                f"test offset {offset} with every {every}th frame trained on: expected an offset of at least 1 and "
                "below that, so that no frame is in both splits"
            )
        chosen = list(range(0 if split == "train" else offset, len(recording.images), every))
        if not chosen:
            raise UserError(
                f"no frame in split '{split}' of {recording.folder}: it has {len(recording.images)} frames, the first "
                f"held-out one is number {offset}"
            )
        return chosen

    def _semantic_labels(self, recording: Recording, chosen: Sequence[int]) -> SemanticLabels:
        images = dict(enumerate(recording.images))
        maps = companions(recording.folder / "semantic_class", "semantic_class_", _MAPS, images)
        if maps is None:
            return SemanticLabels(None, None, None)
        legend = _find_legend(recording.folder, self.config.info_semantic)
        present = ids_present(maps, recording.size)
        names = {number: f"class {number}" for number in present} if legend is None else read_class_names(legend)
        for number, path in present.items():
            if number not in names:
                assert legend is not None
                raise unknown_id(path, number, legend)
        mapping = {number: place for place, number in enumerate(present, start=1)}
        used = [maps[i] for i in chosen]
        if any(old != new for old, new in mapping.items()):
            used = remapped_copies(used, recording.size, mapping, legend or recording.folder)
        return SemanticLabels(used, {new: names[old] for old, new in mapping.items()}, mapping)


def read_class_names(path: Path) -> dict[int, str]:
    """Return the class names by id of an `info_semantic.json`.

    Its classes are `{"id", "name"}` entries under `classes`, or objects with `class_id` and `class_name`, under
    `objects` or in a list that is the whole file. Negative ids and 0 mean "nothing" and are left out.

    Raises:
        UserError: the file cannot be read, or names no class.
    """
    layout = f'{path}: expected {{"classes": [{{"id": 1, "name": "wall"}}, ...]}}, or objects with class_id, class_name'
    content = read_json(path, "the names of Replica's classes")
    lists = [content.get("objects"), content.get("classes")] if isinstance(content, dict) else [content]
    names: dict[int, str] = {}
    for entry in (entry for entries in lists if isinstance(entries, list) for entry in entries):
        number, name = _named(entry)
        if type(number) is int and isinstance(name, str) and number > 0:
            names[number] = check_class_name(name, path)
    if not names:
        raise UserError(f"{layout}, found no class")
    return names


def _named(entry: Any) -> tuple[Any, Any]:
    if not isinstance(entry, dict):
        return None, None
    keys = ("class_id", "class_name") if "class_id" in entry else ("id", "name")
    return entry.get(keys[0]), entry.get(keys[1])


def _sequence_folder(data: Path, sequence: str) -> Path:
    """Return the absolute folder of a sequence; `data` is the sequence, or a room that has it."""
    if not data.is_dir():
        raise UserError(f"no such data folder: {data}: give --data a room of Replica, or one of its sequences")
    if (data / POSES_NAME).exists() or (data / "rgb").is_dir():
        return data.absolute()
    check_name(sequence, "--sequence")
    if not (data / sequence).is_dir():
        found = sorted(path.parent.name for path in data.glob("*/rgb"))
        raise UserError(
            f"no {sequence} in {data}, which has {', '.join(found) or 'no sequence'}: give --data a room of Replica, "
            "and --sequence one that it has"
        )
    return (data / sequence).absolute()


def _read_poses(path: Path, images: dict[int, Path], folder: Path) -> Float[np.ndarray, "frames 4 4"]:
    """Return a pose per image, from a line per image."""
    table = read_matrix(path, "16 numbers per line, the camera-to-world matrix of a frame")
    if table.shape[1] != 16:
        raise UserError(f"{path} has {table.shape[1]} numbers per line: expected 16, a 4x4 camera-to-world matrix")
    missing = next((n for n in range(max(len(table), len(images))) if n not in images), None)
    if len(table) != len(images) or missing is not None:
        which = f" (rgb_{missing}.png is missing)" if missing is not None else ""
        raise UserError(
            f"{path} has {len(table)} poses and {folder} {len(images)} images{which}: expected one per image"
        )
    poses = table.reshape(-1, 4, 4)
    for number, pose in enumerate(poses):
        where = f"{path}: the pose of rgb_{number}.png (line {number + 1})"
        if not np.isfinite(pose).all():
            raise UserError(f"{where} has a NaN or infinite entry: correct it, or take the frame away")
        check_rigid(pose, where)
    return poses


def _find_legend(sequence: Path, given: Path | None) -> Path | None:
    if given is not None:
        return given
    room = sequence.parent
    folders = (sequence, room, room / "habitat", room.parent / "semantic_info" / room.name)
    return next((folder / LEGEND_NAME for folder in folders if (folder / LEGEND_NAME).is_file()), None)


replica_data = DataParserSpecification(
    config=ReplicaDataParserConfig(),
    description="Semantic-NeRF's renders of Replica, with class and instance maps",
)
