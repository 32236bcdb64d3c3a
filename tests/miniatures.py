"""Exact miniatures of other people's layouts, made from the demo room by its ray tracer.

Rays are made from intrinsics and OpenCV poses by the layouts' own public descriptions (whole numbers at pixel centres),
never by the code under test. The files' world is the room turned and moved, so that a parser that forgot a transform
could not pass.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from jacobinerf_ns.demo.ray_tracer import trace_rays
from jacobinerf_ns.demo.room import CLASSES, camera_path, furnished_room

VIEWS = 12
STRIDE = 96
"""Views of a full loop: neighbours then overlap as those of a video do."""

RAW_IDS = tuple(7 * number + 3 for number in range(1, len(CLASSES) + 1))
"""Replica's class ids have gaps: these stand for the demo's 1, 2, 3, ..."""

SCANNET_CLASSES = {
    1: (1, 1, "wall"),
    2: (3, 2, "floor"),
    3: (41, 22, "ceiling"),
    4: (8, 8, "door"),
    5: (1163, 20, "floor mat"),
    6: (4, 7, "table"),
    7: (2, 5, "chair"),
    8: (6, 6, "sofa"),
    9: (39, 18, "pillow"),
    10: (7, 3, "cabinet"),
    11: (28, 35, "lamp"),
    12: (1164, 23, "books"),
}
"""Raw ScanNet id, NYU40 id and NYU40 name of each of the demo's classes; two ids need 16 bits."""

OFFICE_CHAIR = 15
"""A second raw id that is an NYU40 chair."""


@dataclass(frozen=True)
class Miniature:
    """A written data set, and the truth about its frames."""

    folder: Path
    poses: np.ndarray
    """[views 4 4] camera-to-world, OpenCV axes, in the files' world."""
    intrinsics: np.ndarray
    """[3 3] of the photographs, with whole numbers at pixel centres."""
    points: np.ndarray
    """[views height width 3] surface points under the pixels of the depth maps, metres, in the files' world."""
    classes: np.ndarray
    """[views height width] the demo's class ids."""


def write_replica(folder: Path, views: int = VIEWS, width: int = 64, height: int = 48) -> Miniature:
    """`room_0/Sequence_1` and its `info_semantic.json` in `folder`."""
    room, sequence = folder / "room_0", folder / "room_0" / "Sequence_1"
    intrinsics = np.array([[width / 2, 0, (width - 1) / 2], [0, width / 2, (height - 1) / 2], [0, 0, 1]])
    miniature = _trace(room, intrinsics, views, width, height)
    raw = np.array((0, *RAW_IDS))
    for index, view in enumerate(miniature.frames):
        _save(sequence / "rgb" / f"rgb_{index}.png", view.colour)
        _save(sequence / "depth" / f"depth_{index}.png", view.depth)
        _save(sequence / "semantic_class" / f"semantic_class_{index}.png", raw[view.classes].astype(np.uint8))
        _save(sequence / "semantic_instance" / f"semantic_instance_{index}.png", view.instances)
    np.savetxt(sequence / "traj_w_c.txt", miniature.poses.reshape(views, 16))
    objects = [{"id": i, "class_id": raw_id, "class_name": CLASSES[i]} for i, raw_id in enumerate(RAW_IDS)]
    classes = [{"id": entry["class_id"], "name": entry["class_name"]} for entry in objects]
    classes.append({"id": 5, "name": "never seen"})
    _write(room / "info_semantic.json", json.dumps({"classes": classes, "objects": objects}))
    return miniature.truth()


def write_scannet(folder: Path, views: int = VIEWS, width: int = 64, height: int = 48) -> Miniature:
    """`scans/scene0000_00` in `folder`, and ScanNet's table of classes beside `scans`; depth is half the size.

    The focal lengths differ and the principal point is off the middle, as with a real camera.
    """
    scene = folder / "scans" / "scene0000_00"
    intrinsics = np.array([[0.55 * width, 0, 0.47 * width], [0, 0.57 * width, 0.52 * height], [0, 0, 1]])
    half = intrinsics.copy()
    half[:2, :2] /= 2
    half[:2, 2] = (intrinsics[:2, 2] + 0.5) / 2 - 0.5
    miniature = _trace(scene, intrinsics, views, width, height)
    depths = _trace(scene, half, views, width // 2, height // 2)
    raw = np.array([0, *(ids[0] for ids in SCANNET_CLASSES.values())])
    for index, (view, at_half) in enumerate(zip(miniature.frames, depths.frames, strict=True)):
        classes = raw[view.classes]
        if index % 2:
            classes[classes == SCANNET_CLASSES[7][0]] = OFFICE_CHAIR
        _save(scene / "color" / f"{index}.jpg", view.colour)
        _save(scene / "depth" / f"{index}.png", at_half.depth)
        _save(scene / "label-filt" / f"{index}.png", classes.astype(np.uint16))
        _save(scene / "instance-filt" / f"{index}.png", view.instances)
        _write(scene / "pose" / f"{index}.txt", _rows(miniature.poses[index]))
    for name, camera in (("color", intrinsics), ("depth", half)):
        square = np.eye(4)
        square[:3, :3] = camera
        _write(scene / "intrinsic" / f"intrinsic_{name}.txt", _rows(square))
    lines = ["id\traw_category\tcategory\tcount\tnyu40id\teigen13id\tnyuClass\tnyu40class\teigen13class"]
    lines += [f"{a}\t{name}\t{name}\t9\t{b}\t1\t{name}\t{name}\tObjects" for a, b, name in SCANNET_CLASSES.values()]
    lines += [f"{OFFICE_CHAIR}\toffice chair\tchair\t9\t5\t4\tchair\tchair\tChair"]
    _write(folder / "scannetv2-labels.combined.tsv", "\n".join(lines) + "\n")
    return replace(miniature.truth(), points=depths.truth().points)


@dataclass(frozen=True)
class _View:
    colour: np.ndarray
    depth: np.ndarray
    classes: np.ndarray
    instances: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class _Traced:
    folder: Path
    poses: np.ndarray
    intrinsics: np.ndarray
    frames: list[_View]

    def truth(self) -> Miniature:
        points, classes = (np.stack([getattr(view, key) for view in self.frames]) for key in ("points", "classes"))
        return Miniature(self.folder, self.poses, self.intrinsics, points, classes)


def _trace(folder: Path, intrinsics: np.ndarray, views: int, width: int, height: int) -> _Traced:
    scene = furnished_room()
    room = camera_path(STRIDE)[:views] @ np.diag([1.0, -1.0, -1.0, 1.0])
    moved = _world_of_the_files()
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1).reshape(-1, 3)
    camera = pixels @ np.linalg.inv(intrinsics).T
    frames = []
    for pose in room:
        trace = trace_rays(scene, np.broadcast_to(pose[:3, 3], camera.shape), camera @ pose[:3, :3].T, light_point=4)
        depth = trace.distance / np.linalg.norm(camera, axis=1)
        points = (camera * depth[:, None]) @ (moved @ pose)[:3, :3].T + (moved @ pose)[:3, 3]
        frames.append(
            _View(
                np.round(trace.colour * 255).astype(np.uint8).reshape(height, width, 3),
                np.round(depth * 1000).astype(np.uint16).reshape(height, width),
                trace.semantic.reshape(height, width),
                trace.instance.astype(np.uint8).reshape(height, width),
                points.reshape(height, width, 3),
            )
        )
    return _Traced(folder, moved @ room, intrinsics, frames)


def _world_of_the_files() -> np.ndarray:
    """A turn about all three axes and a move, far enough that leaving either out misses by more than a pixel."""
    a, b = np.radians(25), np.radians(70)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = about_z @ about_x, (3.0, -2.0, 1.5)
    return world


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)  # PNG has no quality.


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _rows(matrix: np.ndarray) -> str:
    return "\n".join(" ".join(f"{value:.9f}" for value in row) for row in matrix) + "\n"
