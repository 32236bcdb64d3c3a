"""nerfstudio's `transforms.json`, read with every entry known to be what nerfstudio takes it for.

Frames and units: poses are camera-to-world [4 4], OpenGL axes (x right, y up, z back), in whatever unit the capture
has; focal lengths and principal points are pixels of the images. A pose or a camera that cannot be is an error.
One that is odd but can be is a warning, which training prints once and `jacobinerf check` lists.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.outside import check_name, check_pixels, read_json, shortened

Meta = dict[str, Any]

INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_PATHS = ("mask_path", "depth_file_path", "semantics_path", "instances_path")
_SPLITS = ("train_filenames", "val_filenames", "test_filenames")

MAX_FRAMES = 100_000
MAX_FOCAL = 1e7
"""Pixels."""
MAX_DISTANCE = 1e12
"""Of a camera from the origin, in the capture's unit: squares of larger ones leave single precision."""
_SHEAR = 0.1
"""Largest deviation of R Rᵀ from the identity in a pose, once its scale is taken out; beyond, it is no rotation."""
_ROUNDED = 0.01
"""The same from which on a pose is odd."""
FAR = 20.0
"""Times the median distance of the cameras from their middle, from which on one is an outlier."""


def read_transforms(path: Path) -> Meta:
    """Return the content of a transforms file, with every frame known to have a path, a pose and intrinsics.

    Raises:
        UserError: the file is damaged, or an entry is not what it has to be; the message names it.
    """
    meta = read_json(path, "nerfstudio's transforms.json")
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path} has no frames: expected a list 'frames' with one entry per image")
    if len(frames) > MAX_FRAMES:
        raise UserError(f"{path} has {len(frames)} frames: expected at most {MAX_FRAMES}")
    _check_camera(path, meta, "the capture")
    _check_capture(path, meta)
    for index, frame in enumerate(frames):
        if not isinstance(frame, dict) or "file_path" not in frame:
            raise UserError(f"{path}: frame {index} has no file_path: expected the image's path")
        check_name(frame["file_path"], f"{path}: file_path of frame {index}")
        name = frame["file_path"]
        for key in _PATHS:
            if key in frame:
                check_name(frame[key], f"{path}: {key} of {name}")
        _check_pose(path, frame)
        _check_camera(path, frame, name)
        missing = [key for key in INTRINSICS if key not in meta and key not in frame]
        if missing:
            raise UserError(
                f"{path}: {missing[0]} is given neither for the capture nor for {name}: "
                f"expected {', '.join(INTRINSICS)} in pixels"
            )
    return meta


def warnings_of(meta: Meta) -> list[str]:
    """Return what is odd about the frames of `read_transforms`, each with its name and what to do."""
    frames = meta["frames"]
    names = [frame["file_path"] for frame in frames]
    poses = np.array([frame["transform_matrix"] for frame in frames], dtype=np.float64)
    twice = [name for name, count in Counter(names).items() if count > 1]
    found = [_listed(twice, "listed more than once, and counted as often: remove the copies")]
    groups = Counter(pose.tobytes() for pose in poses)
    same = [name for name, pose in zip(names, poses, strict=True) if groups[pose.tobytes()] > 1 and name not in twice]
    found.append(_listed(same, "at exactly the pose of another frame: was it posed at all?"))
    rotations = poses[:, :3, :3] / np.cbrt(np.linalg.det(poses[:, :3, :3]))[:, None, None]
    odd = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2)) > _ROUNDED
    found.append(_listed(_at(names, odd), "with a pose that is no exact rotation: export it with more digits"))
    found.append(_listed(_at(names, far_cameras(poses[:, :3, 3])), "far from all others: is the pose right?"))
    return [line for line in found if line]


def far_cameras(centres: Float[np.ndarray, "views 3"]) -> np.ndarray:
    """Return which cameras are outliers: further from the median place than `FAR` times the median distance."""
    distances = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    typical = float(np.median(distances))
    return distances > FAR * typical if typical > 0 else np.zeros(len(centres), dtype=bool)


def _at(names: Sequence[str], chosen: np.ndarray) -> list[str]:
    return [name for name, one in zip(names, chosen, strict=True) if one]


def _listed(names: Sequence[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}: {what}"


def _check_pose(path: Path, frame: Meta) -> None:
    name, rows = frame["file_path"], frame.get("transform_matrix")
    if not _is_matrix(rows, (4, 4)):
        raise UserError(f"{path}: {name} has no 4x4 transform_matrix: expected its camera-to-world pose")
    pose = np.array(rows, dtype=np.float64)
    if not np.isfinite(pose).all():
        raise UserError(f"{path}: the pose of {name} has a NaN or infinite entry: correct or remove it")
    if np.abs(pose).max() > MAX_DISTANCE:
        raise UserError(
            f"{path}: the pose of {name} has the entry {pose.flat[np.abs(pose).argmax()]:g}, expected at most "
            f"{MAX_DISTANCE:g}: correct or remove it"
        )
    rotation = pose[:3, :3]
    volume = float(np.linalg.det(rotation))
    scale = np.cbrt(volume)
    if volume <= 0 or scale < 1e-6 or np.abs(rotation @ rotation.T / scale**2 - np.eye(3)).max() > _SHEAR:
        raise UserError(
            f"{path}: the pose of {name} is no rotation and translation (determinant {volume:g}, expected 1): "
            "correct or remove it"
        )


def _check_camera(path: Path, entry: Meta, whose: str) -> None:
    """Check the intrinsics that an entry gives: the capture's, or those of a frame."""
    for key in INTRINSICS:
        if key in entry and not (_is_number(entry[key]) and abs(entry[key]) <= MAX_FOCAL):
            raise UserError(f"{path}: {key} of {whose} is {shortened(entry[key])}: expected a number of pixels")
    for key in ("fl_x", "fl_y", "w", "h"):
        if key in entry and entry[key] <= 0:
            raise UserError(f"{path}: {key} of {whose} is {entry[key]}: expected a positive number of pixels")
    if "w" in entry and "h" in entry:
        check_pixels((int(entry["h"]), int(entry["w"])), f"{path}: the image of {whose}")
    for key in _DISTORTION:
        if key in entry and not (_is_number(entry[key]) and abs(entry[key]) <= MAX_FOCAL):
            raise UserError(f"{path}: {key} of {whose} is {shortened(entry[key])}: expected a finite number")
    listed = entry.get("distortion_params", [0.0] * 6)
    if not (isinstance(listed, list) and len(listed) in (6, 12) and all(map(_is_number, listed))):
        raise UserError(
            f"{path}: distortion_params of {whose} is {shortened(listed)}: expected 6 finite numbers (12 of fisheye624)"
        )


def _check_capture(path: Path, meta: Meta) -> None:
    """Check what is said once for all frames."""
    model = meta.get("camera_model", "OPENCV")
    if not isinstance(model, str) or model not in CAMERA_MODEL_TO_TYPE:
        raise UserError(
            f"{path}: camera_model is {shortened(model)}: expected one of {', '.join(sorted(CAMERA_MODEL_TO_TYPE))}"
        )
    if "applied_transform" in meta:
        given = meta["applied_transform"]
        sound = _is_matrix(given, (3, 4)) and all(map(_is_number, chain.from_iterable(given)))
        if not sound or abs(np.linalg.det(np.array(given, dtype=np.float64)[:, :3])) < 1e-9:
            raise UserError(
                f"{path}: applied_transform is {shortened(given)}: expected 3 rows of 4 finite numbers, a rotation and "
                "a translation"
            )
    scale = meta.get("applied_scale", 1.0)
    if not _is_number(scale) or not 1e-9 <= scale <= 1e9:
        raise UserError(f"{path}: applied_scale is {shortened(scale)}: expected a positive finite number")
    radius = meta.get("fisheye_crop_radius")
    if radius is not None and not (_is_number(radius) and radius > 0):
        raise UserError(f"{path}: fisheye_crop_radius is {shortened(radius)}: expected a positive number of pixels")
    turned = meta.get("orientation_override", "up")
    if turned not in ("pca", "up", "vertical", "none"):
        raise UserError(f"{path}: orientation_override is {shortened(turned)}: expected pca, up, vertical or none")
    for key in _SPLITS:
        if not isinstance(meta.get(key, []), list):
            raise UserError(f"{path}: {key} is {shortened(meta[key])}: expected a list of the images' paths")
        for name in meta.get(key, []):
            check_name(name, f"{path}: an entry of {key}")
    if "ply_file_path" in meta:
        check_name(meta["ply_file_path"], f"{path}: ply_file_path")


def _is_matrix(value: Any, shape: tuple[int, int]) -> bool:
    """Return whether a value is rows of numbers, NaN and infinite ones included."""
    rows, columns = shape
    return (
        isinstance(value, list)
        and len(value) == rows
        and all(isinstance(row, list) and len(row) == columns and all(map(_is_real, row)) for row in value)
    )


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_real(value) and math.isfinite(value)
