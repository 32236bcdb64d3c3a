"""Camera paths that `ns-render` is given: those that are broken end in one line, and whole numbers are numbers too."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nerfstudio
import pytest
from nerfstudio.cameras.camera_paths import get_path_from_json

from jacobinerf_ns.compat import camera_paths
from jacobinerf_ns.dataparsers.camera_paths import read_camera_path
from jacobinerf_ns.errors import EXIT_CODE

NAN, INF = float("nan"), float("inf")
POSE = [1, 0, 0, 2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
CAMERA = {"camera_to_world": POSE, "fov": 60, "aspect": 1.33}
CROP = {"crop_bg_color": {"r": 1, "g": 2, "b": 3}, "crop_center": [0, 0, 0], "crop_scale": [1, 1, 1]}
WHOLE: dict[str, Any] = {
    "camera_type": "perspective",
    "render_height": 18,
    "render_width": 24,
    "seconds": 1,
    "crop": {**CROP, "crop_rot": [0, 0, 1]},
    "camera_path": [CAMERA, CAMERA],
}
CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"{key} {value!r:.20}": ({key: value}, "camera_path") for key in ("camera_path",) for value in (None, [], 5, {})
    },
    **{f"camera {value!r:.20}": ({"camera_path": [CAMERA, value]}, "camera 1") for value in (None, 5, [], {}, "a")},
    **{
        f"pose {value!r:.30}": ({"camera_path": [{**CAMERA, "camera_to_world": value}]}, "camera_to_world")
        for value in (None, [], POSE[:15], [*POSE[:15], NAN], [*POSE[:15], "1"], [1e300, *POSE[1:]], [[1, 2], [3, 4]])
    },
    **{
        f"fov {value!r:.20}": ({"camera_path": [{**CAMERA, "fov": value}]}, "fov")
        for value in (None, 0, -5, 180, NAN, "60", [60], True)
    },
    **{f"seconds {value!r:.20}": ({"seconds": value}, "seconds") for value in (None, 0, -1, NAN, INF, "1", 1e300)},
    **{f"height {value!r:.20}": ({"render_height": value}, "") for value in (None, 0, -1, 10**6, 1.5, "18", 10**18)},
    **{f"kind {value!r:.20}": ({"camera_type": value}, "camera_type") for value in (None, 5, ["a"])},
    **{f"crop {value!r:.20}": ({"crop": value}, "crop") for value in (5, [], {}, {"crop_bg_color": 3}, "a")},
    **{
        f"{key} {value!r:.20}": ({"crop": {**CROP, key: value}}, key)
        for key in ("crop_center", "crop_scale", "crop_rot")
        for value in (None, [1, 2], [NAN] * 3, "abc")
    },
    "time": ({"camera_path": [{**CAMERA, "render_time": "now"}]}, "render_time"),
}
STRANGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_text(json.dumps(WHOLE)[:50]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
    "a list": lambda path: path.write_text("[1]"),
    "nested": lambda path: path.write_text("[" * 100_000),
}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Reads a camera path as `ns-render` does."""
    module = ModuleType(camera_paths._COMMAND)
    monkeypatch.setitem(sys.modules, camera_paths._COMMAND, module)
    camera_paths.check_camera_paths(read_camera_path)
    exec(
        "def read(path):\n    with open(path, 'r', encoding='utf-8') as file:\n        return file.read()", vars(module)
    )
    return lambda path: json.loads(vars(module)["read"](path))


def _refused(capsys: pytest.CaptureFixture[str], read: Callable[[], Any], named: str) -> None:
    with pytest.raises(SystemExit) as caught:
        read()
    assert caught.value.code == EXIT_CODE
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert named in said


@pytest.mark.parametrize("case", CHANGED)
def test_entries_that_cannot_be(
    tmp_path: Path, opened: Callable[[Path], Any], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    change, named = CHANGED[case]
    path = tmp_path / "path.json"
    path.write_text(json.dumps({**WHOLE, **change}))
    _refused(capsys, lambda: opened(path), named)


@pytest.mark.parametrize("case", STRANGE)
def test_files_that_are_none(
    tmp_path: Path, opened: Callable[[Path], Any], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    STRANGE[case](tmp_path / "path.json")
    _refused(capsys, lambda: opened(tmp_path / "path.json"), "path.json")


@pytest.mark.parametrize("nested", [False, True])
def test_whole_numbers_are_numbers(tmp_path: Path, opened: Callable[[Path], Any], nested: bool) -> None:
    """nerfstudio makes an integer tensor of a pose without a decimal point, and viser refuses such an angle."""
    pose = [POSE[row : row + 4] for row in range(0, 16, 4)] if nested else POSE
    path = tmp_path / "path.json"
    path.write_text(json.dumps({**WHOLE, "camera_path": [{**CAMERA, "camera_to_world": pose}]}))
    found = opened(path)
    assert all(isinstance(part, float) for part in found["crop"]["crop_rot"])
    cameras = get_path_from_json(found)
    assert cameras.camera_to_worlds.is_floating_point()
    assert cameras.camera_to_worlds[0, 0, 3] == 2


def test_panoramas_need_no_field_of_view(tmp_path: Path, opened: Callable[[Path], Any]) -> None:
    path = tmp_path / "path.json"
    camera = {"camera_to_world": POSE}
    path.write_text(json.dumps({**WHOLE, "camera_type": "equirectangular", "camera_path": [camera]}))
    assert len(get_path_from_json(opened(path))) == 1


def test_ns_render_opens_no_other_text() -> None:
    """What the patch rests on."""
    source = (Path(str(nerfstudio.__file__)).parent / "scripts" / "render.py").read_text()
    assert source.count(" open(") == 2
    assert 'open(output_filename, mode="r+b")' in source
    assert 'open(self.camera_path_filename, "r", encoding="utf-8")' in source
