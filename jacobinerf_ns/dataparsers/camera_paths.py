"""Camera paths of `ns-render`: JSON files that the viewer writes, and that people change by hand.

Poses are camera-to-world [4 4], row-major, OpenGL axes, in the scene's frame; fields of view are vertical, in degrees.
"""

import math
from itertools import chain
from pathlib import Path
from typing import Any

from jacobinerf_ns.dataparsers.transforms_file import MAX_DISTANCE, MAX_FRAMES
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.outside import check_pixels, read_json, shortened

_WITHOUT_FOV = ("equirectangular", "omnidirectional", "vr180")
_MAX_SECONDS = 1e6
_ADVICE = "save it anew in the viewer's Render tab"


def read_camera_path(path: Path) -> dict[str, Any]:
    """Return the content of a camera path, with every number that nerfstudio computes with a float.

    Of whole numbers it makes tensors of another kind, and fails.

    Raises:
        UserError: the file is missing or damaged, or an entry is not what it has to be.
    """
    content = read_json(path, "a camera path of the viewer's Render tab")
    cameras = content.get("camera_path") if isinstance(content, dict) else None
    if not isinstance(cameras, list) or not 0 < len(cameras) <= MAX_FRAMES:
        raise UserError(f"{path} has no camera_path: expected a list of 1..{MAX_FRAMES} cameras: {_ADVICE}")
    kind = content.get("camera_type", "perspective")
    if not isinstance(kind, str):
        raise UserError(f"{path}: camera_type is {shortened(kind)}, expected a word such as perspective: {_ADVICE}")
    height, width = content.get("render_height"), content.get("render_width")
    if not isinstance(height, int) or not isinstance(width, int):
        found = f"{shortened(height)} and {shortened(width)}"
        raise UserError(f"{path}: render_height and render_width are {found}, expected whole numbers: {_ADVICE}")
    check_pixels((height, width), f"{path}: the picture to be rendered")
    seconds = _number(content.get("seconds"), f"{path}: seconds", 1e-6, _MAX_SECONDS)
    with_fov = kind.lower() not in _WITHOUT_FOV
    made = [_camera(camera, f"{path}: camera {place}", with_fov) for place, camera in enumerate(cameras)]
    crop = None if content.get("crop") is None else _crop(content["crop"], f"{path}: crop")
    return {**content, "seconds": seconds, "camera_path": made, "crop": crop}


def _camera(camera: Any, where: str, with_fov: bool) -> dict[str, Any]:
    if not isinstance(camera, dict):
        raise UserError(f"{where} is {shortened(camera)}, expected its camera_to_world and fov: {_ADVICE}")
    pose = camera.get("camera_to_world")
    if isinstance(pose, list) and all(isinstance(row, list) for row in pose):
        pose = list(chain.from_iterable(pose))
    if not isinstance(pose, list) or len(pose) != 16:
        raise UserError(f"{where} has no camera_to_world, expected the 16 numbers of its pose: {_ADVICE}")
    found = {**camera, "camera_to_world": [_number(part, f"{where}: camera_to_world", -MAX_DISTANCE) for part in pose]}
    if with_fov:
        found["fov"] = _number(camera.get("fov"), f"{where}: fov", 1e-3, 179.9)
    if "render_time" in camera:
        found["render_time"] = _number(camera["render_time"], f"{where}: render_time", -MAX_DISTANCE)
    return found


def _crop(crop: Any, where: str) -> dict[str, Any]:
    if not isinstance(crop, dict) or not isinstance(crop.get("crop_bg_color"), dict):
        raise UserError(f"{where} is {shortened(crop)}, expected its crop_bg_color, crop_center and crop_scale")
    colour = crop["crop_bg_color"]
    found = {
        **crop,
        "crop_bg_color": {key: _number(colour.get(key), f"{where}: crop_bg_color", 0, 255) for key in "rgb"},
    }
    for key in ("crop_center", "crop_scale", "crop_rot"):
        given = crop.get(key, [0.0] * 3 if key == "crop_rot" else None)
        if not isinstance(given, list) or len(given) != 3:
            raise UserError(f"{where}: {key} is {shortened(given)}, expected three numbers: {_ADVICE}")
        found[key] = [_number(part, f"{where}: {key}", -MAX_DISTANCE) for part in given]
    return found


def _number(value: Any, where: str, least: float, most: float = MAX_DISTANCE) -> float:
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not real or not least <= value <= most:
        raise UserError(f"{where} is {shortened(value)}, expected a number of {least:g}..{most:g}: {_ADVICE}")
    return float(value)
