"""`jacobinerf check`: what a capture holds, and what is odd about it, by the door that people use."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import write_replica
from PIL import Image, ImageFilter
from test_bad_input import BAD_PHOTOS, command
from tiny import tiny_config

from jacobinerf_ns.cli.check import Check
from jacobinerf_ns.dataparsers import jacobinerf_data
from jacobinerf_ns.dataparsers.capture_report import Line, seen_by_others, sharpness
from jacobinerf_ns.demo.capture import write_capture
from jacobinerf_ns.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(jacobinerf_data, "_reported", set())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("check") / "room", num_views=16, width=32, height=24, num_test=3)


@pytest.fixture
def capture(tmp_path: Path, original: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "room"))


def check(*arguments: object) -> dict[str, Line]:
    return {line.what: line for line in command(Check, *arguments)}


def _photos(capture: Path) -> list[Path]:
    meta = json.loads((capture / "transforms.json").read_text())
    return [capture / name for name in meta["train_filenames"]]


def test_the_demo_room_is_whole_and_nothing_is_odd(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = check("--data", capture)
    assert [line.what for line in lines.values() if line.odd] == []
    assert lines["photos"].found == "13 to train on, 3 held out"
    assert lines["size"].found == "32x24 pixels (width x height)"
    assert lines["cameras"].found == "1 lens, perspective, 90 degrees across"
    assert lines["masks"].found == "none"
    assert "classes on" in lines["labels"].found
    assert "13 maps of instances" in lines["labels"].found
    assert lines["depth"].found.endswith(" m")
    assert "Training can read this capture. Nothing is odd." in capsys.readouterr().out


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(capture: Path) -> None:
        path = capture / "transforms.json"
        meta = json.loads(path.read_text())
        change(meta)
        path.write_text(json.dumps(meta))

    return edit


def _away(meta: dict[str, Any]) -> None:
    meta["frames"][3]["transform_matrix"][0][3] = 500.0


def _blur(capture: Path) -> None:
    path = _photos(capture)[2]
    with Image.open(path) as picture:
        picture.filter(ImageFilter.GaussianBlur(4)).save(path)


def _black_masks(capture: Path) -> None:
    (capture / "masks").mkdir()

    def change(meta: dict[str, Any]) -> None:
        for i, frame in enumerate(meta["frames"]):
            frame["mask_path"] = f"masks/{i:04d}.png"
            Image.new("L", (32, 24), 0 if i == 1 else 255).save(capture / frame["mask_path"])

    _edit(change)(capture)


def _no_depth(capture: Path) -> None:
    meta = json.loads((capture / "transforms.json").read_text())
    for frame in meta["frames"]:
        Image.fromarray(np.zeros((24, 32), dtype=np.uint16)).save(capture / frame["depth_file_path"])


def _nameless(capture: Path) -> None:
    (capture / "classes.json").write_text('{"void_id": 0, "classes": [{"id": 1, "name": "wall"}]}')


ODD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a photo is gone": (lambda capture: _photos(capture)[0].unlink(), "photos", "dropped 1 of 16 frames"),
    "listed twice": (_edit(lambda meta: meta["frames"].append(meta["frames"][0])), "photos", "more than once"),
    "far away": (_edit(_away), "photos", "far from all others"),
    "blurred": (_blur, "sharpness", "much less sharp"),
    "black": (lambda capture: Image.new("RGB", (32, 24)).save(_photos(capture)[0]), "sharpness", "next to black"),
    "few": (_edit(lambda meta: meta.update(train_filenames=meta["train_filenames"][:5])), "photos", "5 photos"),
    "narrow": (_edit(lambda meta: meta.update(fl_x=1e5)), "cameras", "few cameras have"),
    "off the middle": (_edit(lambda meta: meta.update(cx=1.0)), "cameras", "far off the middle"),
    "masks that keep nothing": (_black_masks, "masks", "next to nothing"),
    "depth without a value": (_no_depth, "depth", "without any depth"),
    "a class without a name": (_nameless, "labels", "has no name"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_is_named_in_its_line(capture: Path, case: str) -> None:
    change, what, message = ODD[case]
    change(capture)
    assert message in " ".join(check("--data", capture)[what].odd)


@pytest.mark.parametrize("case", ["cut", "400 megapixels", "CMYK", "another size"])
def test_what_training_would_refuse(capture: Path, case: str) -> None:
    photo = _photos(capture)[1]
    BAD_PHOTOS[case](photo)
    with pytest.raises(UserError, match=photo.name):
        check("--data", capture)


def test_held_out_photos_label_maps_and_depth_are_read_too(capture: Path) -> None:
    meta = json.loads((capture / "transforms.json").read_text())
    held_out = next(frame for frame in meta["frames"] if frame["file_path"] not in meta["train_filenames"])
    for key in ("semantics_path", "instances_path", "depth_file_path", "file_path"):
        path = capture / held_out[key]
        before = path.read_bytes()
        path.write_bytes(before[:-30])
        with pytest.raises(UserError, match=path.name):
            check("--data", capture)
        path.write_bytes(before)


def test_of_a_run_with_its_own_options(capture: Path, tmp_path: Path) -> None:
    config = tiny_config(capture, tmp_path / "out")
    config.pipeline.datamanager.dataparser.downscale_factor = 2  # pyright: ignore[reportAttributeAccessIssue]
    config.save_config()
    run = config.get_base_dir() / "config.yml"
    assert check("--load-config", run)["size"].found == "16x12 pixels (width x height)"
    with pytest.raises(UserError, match="the run's own"):
        check("--load-config", run, "--downscale-factor", 2)
    for arguments in ((), ("--data", capture, "--load-config", run)):
        with pytest.raises(UserError, match="give --data CAPTURE, or --load-config"):
            check(*arguments)


def test_replica(tmp_path: Path) -> None:
    write_replica(tmp_path)
    lines = check("--data", tmp_path / "room_0", "--dataparser", "replica-data")
    assert lines["cameras"].found.startswith("1 lens, perspective, 90 degrees")
    assert "classes on" in lines["labels"].found


def test_sharpness_by_hand() -> None:
    """A checkerboard of 0 and 1 has Laplacians of ±4, of variance 16, and a brightness of variance 1/4."""
    board = (np.indices((10, 10)).sum(axis=0) % 2).astype(float)
    assert sharpness(board) == pytest.approx(64)
    assert sharpness(np.full((5, 5), 0.3)) == 0
    assert sharpness(np.zeros((1, 9))) == 0


def test_coverage_by_hand() -> None:
    """Two cameras a unit apart that look along -z, and one that looks away from them."""
    ahead, behind = np.eye(4)[:3], np.diag([-1.0, 1.0, -1.0, 1.0])[:3]
    cameras = np.stack([ahead, ahead, behind])
    cameras[1, 0, 3] = 1.0
    wide, narrow = np.full((3, 2), 3.0), np.full((3, 2), 0.1)
    assert seen_by_others(cameras, wide).tolist() == [1, 1, 0]
    assert seen_by_others(cameras, narrow).tolist() == [0, 0, 0]
