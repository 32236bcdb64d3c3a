"""Writes the demo room as a capture in nerfstudio's format: photographs, label maps, depth, poses."""

import json
import os
import tempfile
from collections.abc import Callable
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from jacobinerf_ns.demo.ray_tracer import LIGHT_POINTS, Scene, Trace, trace_rays
from jacobinerf_ns.demo.room import CLASSES, HALF, HEIGHT, camera_path, furnished_room
from jacobinerf_ns.demo.solids import GAMMA
from jacobinerf_ns.errors import UserError

VERSION = 1
"""Raised when the room changes, so that captures of the older room are made again."""

_FOLDERS = {"file_path": "images", "semantics_path": "semantics", "instances_path": "instances"}
_FOLDERS["depth_file_path"] = "depth"
_GRID = 3
_MILLIMETRES = 1000


def write_capture(
    output: Path,
    num_views: int = 48,
    width: int = 96,
    height: int = 72,
    num_test: int = 8,
    report: Callable[[int, int], None] | None = None,
) -> Path:
    """Render the room and write it to `output`; a complete capture of the same settings is left as it is.

    The folder appears when it is complete, never before. The same settings give the same bytes.

    Args:
        output: folder to make.
        num_views: cameras on the closed path; test views are spread evenly between the others.
        width: pixels; the horizontal field of view is 90 degrees.
        height: pixels.
        num_test: how many of the views are kept out of training.
        report: called with (views done, views in all) after each view.

    Returns:
        `output`.

    Raises:
        UserError: the settings make no capture, or `output` cannot be written or holds something else.
    """
    settings = _checked_settings(num_views, width, height, num_test)
    if _is_complete(output, settings):
        return output
    _refuse_foreign(output)
    with _folder_beside(output) as temporary:
        capture = Path(temporary) / "capture"
        _write(capture, settings, report)
        if output.exists():
            os.replace(output, Path(temporary) / "older")
        os.replace(capture, output)
    return output


def pixel_rays(
    pose: Float[np.ndarray, "4 4"], width: int, height: int, offset: tuple[float, float] = (0.5, 0.5)
) -> tuple[Float[np.ndarray, "rays 3"], Float[np.ndarray, "rays 3"]]:
    """Return one ray per pixel, row by row, in the world, for a horizontal field of view of 90 degrees.

    Args:
        pose: camera-to-world, OpenGL axes.
        width: pixels.
        height: pixels.
        offset: where in its pixel (x, y, from the upper left corner) each ray passes; (0.5, 0.5) is the centre.

    Returns:
        Origins, and directions whose length is 1 along the optical axis: distance / length is the z-depth.
    """
    focal = width / 2
    x, y = np.meshgrid(np.arange(width) + offset[0], np.arange(height) + offset[1])
    camera = np.stack([(x - width / 2) / focal, (height / 2 - y) / focal, -np.ones_like(x)], axis=-1).reshape(-1, 3)
    return np.broadcast_to(pose[:3, 3], camera.shape), camera @ pose[:3, :3].T


def trace_view(
    scene: Scene, pose: Float[np.ndarray, "4 4"], width: int, height: int
) -> tuple[Float[np.ndarray, "height width 3"], Trace, Float[np.ndarray, "height width"]]:
    """Return one view: supersampled colour in 0..1, the trace of the pixels' centres, and the z-depth there in metres.

    Colours are means, in linear light, of 3 x 3 rays per pixel, each of which sees another point of the lights. Labels
    and depth belong to the middle ray alone: a label cannot be averaged.
    """
    linear = np.zeros((width * height, 3))
    centre: Trace | None = None
    depth = np.empty(0)
    for sample in range(_GRID * _GRID):
        row, column = divmod(sample, _GRID)
        offset = ((column + 0.5) / _GRID, (row + 0.5) / _GRID)
        origins, directions = pixel_rays(pose, width, height, offset)
        trace = trace_rays(scene, origins, directions, light_point=sample * 2 % LIGHT_POINTS)
        linear += trace.colour**GAMMA / (_GRID * _GRID)
        if row == column == _GRID // 2:
            centre, depth = trace, trace.distance / np.linalg.norm(directions, axis=1)
    assert centre is not None
    return (linear ** (1 / GAMMA)).reshape(height, width, 3), centre, depth.reshape(height, width)


def held_out_views(num_views: int, num_test: int) -> list[int]:
    """Return the numbers of the views kept out of training: in the middle of equal stretches of the path."""
    return [int((index + 0.5) * num_views / num_test) for index in range(num_test)]


def _checked_settings(num_views: int, width: int, height: int, num_test: int) -> dict[str, int]:
    """Return what a capture is made from, as its transforms.json records it."""
    if min(width, height) < 1 or not 0 < num_test < num_views:
        raise UserError(
            f"{num_views} views of {width}x{height} pixels with {num_test} for tests: "
            "expected a size of at least 1x1, and at least one view for tests and one for training"
        )
    return {"version": VERSION, "num_views": num_views, "width": width, "height": height, "num_test": num_test}


def _folder_beside(output: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder on the same disk, so that its content can be renamed to `output`."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent)
    except OSError as error:
        raise UserError(f"cannot write to {output.parent} ({error.strerror}): choose another folder") from error


def _write(capture: Path, settings: dict[str, int], report: Callable[[int, int], None] | None) -> None:
    for folder in _FOLDERS.values():
        (capture / folder).mkdir(parents=True)
    scene, poses = furnished_room(), camera_path(settings["num_views"])
    size = (settings["height"], settings["width"])
    frames = []
    for index, pose in enumerate(poses):
        colour, centre, depth = trace_view(scene, pose, settings["width"], settings["height"])
        maps = {
            "images": np.round(colour * 255).astype(np.uint8),
            "semantics": centre.semantic.reshape(size).astype(np.uint8),
            "instances": centre.instance.reshape(size).astype(np.uint8),
            "depth": np.round(depth * _MILLIMETRES).astype(np.uint16),
        }
        for folder, pixels in maps.items():
            Image.fromarray(pixels).save(capture / folder / f"{index:04d}.png")
        names = {key: f"{folder}/{index:04d}.png" for key, folder in _FOLDERS.items()}
        frames.append({**names, "transform_matrix": pose.tolist()})
        if report is not None:
            report(index + 1, len(poses))
    (capture / "classes.json").write_text(json.dumps(_classes(scene), indent=1), encoding="utf-8")
    (capture / "transforms.json").write_text(json.dumps(_transforms(settings, frames), indent=1), encoding="utf-8")


def _transforms(settings: dict[str, int], frames: list[dict[str, Any]]) -> dict[str, Any]:
    width, height = settings["width"], settings["height"]
    held_out = held_out_views(settings["num_views"], settings["num_test"])
    names = [frame["file_path"] for frame in frames]
    test = [names[index] for index in held_out]
    return {
        "demo": settings,
        "camera_model": "OPENCV",
        **{"fl_x": width / 2, "fl_y": width / 2, "cx": width / 2, "cy": height / 2, "w": width, "h": height},
        **{"k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0},
        "depth_unit_scale_factor": 1 / _MILLIMETRES,
        "scene_box_m": [[-HALF[0], -HALF[1], 0.0], [*HALF, HEIGHT]],
        "frames": frames,
        "train_filenames": [name for name in names if name not in test],
        "val_filenames": test,
        "test_filenames": test,
    }


def _classes(scene: Scene) -> dict[str, Any]:
    """Return names and picture colours of the classes, and the class of every instance."""
    shell = [
        {"id": instance, "class_id": semantic, "name": CLASSES[semantic - 1]}
        for instance, semantic in zip(scene.shell.instances, scene.shell.semantics, strict=True)
    ]
    items = [{"id": item.instance, "class_id": item.semantic, "name": item.name} for item in scene.items]
    classes = [
        # Hues a golden angle apart stay distinct however many there are.
        {"id": number, "name": name, "color": [round(255 * c) for c in hsv_to_rgb(0.618 * number % 1, 0.65, 0.95)]}
        for number, name in enumerate(CLASSES, start=1)
    ]
    return {"void_id": 0, "classes": classes, "instances": shell + items}


def _is_complete(output: Path, settings: dict[str, int]) -> bool:
    meta = _own_meta(output)
    if meta is None or meta["demo"] != settings:
        return False
    names = [frame[key] for frame in meta["frames"] for key in _FOLDERS]
    return all((output / name).is_file() for name in [*names, "classes.json"])


def _own_meta(output: Path) -> dict[str, Any] | None:
    """Return the transforms of a demo capture at `output`, or None where there is something else."""
    try:
        meta = json.loads((output / "transforms.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) and isinstance(meta.get("demo"), dict) else None


def _refuse_foreign(output: Path) -> None:
    """Refuse to replace anything but a capture that this module wrote, with nothing added to it."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    own = {*_FOLDERS.values(), "classes.json", "transforms.json"}
    if not output.is_dir() or _own_meta(output) is None or any(path.name not in own for path in output.iterdir()):
        raise UserError(f"{output} exists and is not a demo capture: choose another folder, nothing was written")
