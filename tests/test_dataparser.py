"""`jacobinerf-data`: dropped frames, downscaling without a prepared folder, label maps, and clear errors."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image

from jacobinerf_ns.dataparsers import jacobinerf_data as module
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.index_maps import read_label_map

WIDTH, HEIGHT, VIEWS = 26, 15, 6
SCENES = Path(__file__).resolve().parents[2] / "shared" / "scenes"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_reported", set())


def _pose(index: int) -> list[list[float]]:
    angle = 2 * math.pi * index / VIEWS
    c, s = math.cos(angle), math.sin(angle)
    return [[-s, 0.0, c, 3 * c], [c, 0.0, s, 3 * s], [0.0, 1.0, 0.0, 0.1 * index], [0.0, 0.0, 0.0, 1.0]]


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Six views with masks, depth, label maps, and one list of file names per split."""
    folder = tmp_path / "capture"
    random = np.random.default_rng(0)
    files = {"file_path": "images", "mask_path": "mask", "depth_file_path": "depth"}
    files |= {"semantics_path": "semantics", "instances_path": "instances"}
    frames = []
    for index in range(VIEWS):
        frame: dict[str, Any] = {"transform_matrix": _pose(index)}
        for key, name in files.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            shape = (HEIGHT, WIDTH, 3) if name == "images" else (HEIGHT, WIDTH)
            values = random.integers(0, 65535 if name == "depth" else 255, shape)
            values = values.astype(np.uint16 if name == "depth" else np.uint8)
            Image.fromarray(values).save(folder / name / f"{index:03d}.png")
            frame[key] = f"./{name}/{index:03d}.png"
        frames.append(frame)
    meta = {"fl_x": 20.0, "fl_y": 21.0, "cx": 13.5, "cy": 7.0, "w": WIDTH, "h": HEIGHT, "k1": 0.1, "frames": frames}
    meta["train_filenames"] = [f"images/{index:03d}.png" for index in (0, 1, 3, 4, 5)]
    meta["test_filenames"] = ["images/002.png"]
    (folder / "transforms.json").write_text(json.dumps(meta))
    (folder / "classes.json").write_text('{"void_id": 0, "classes": [{"id": 1, "name": "wall"}]}')
    return folder


def _edit(folder: Path, **changes: Any) -> dict[str, Any]:
    path = folder / "transforms.json"
    meta = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))
    return meta


def _outputs(data: Path, split: str = "train", **settings: Any) -> Any:
    return JacobiNeRFDataParserConfig(data=data, **settings).setup().get_dataparser_outputs(split)


def _error(data: Path, split: str = "train", **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        _outputs(data, split, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path)).astype(np.int64)


def test_without_options_it_agrees_with_nerfstudio(capture: Path) -> None:
    ours = _outputs(capture)
    stock = NerfstudioDataParserConfig(data=capture).setup().get_dataparser_outputs("train")
    assert ours.image_filenames == stock.image_filenames
    assert ours.mask_filenames == stock.mask_filenames
    assert ours.metadata["depth_filenames"] == stock.metadata["depth_filenames"]
    for name in ("camera_to_worlds", "fx", "fy", "cx", "cy", "height", "width", "distortion_params"):
        assert torch.equal(getattr(ours.cameras, name), getattr(stock.cameras, name)), name
    assert torch.equal(ours.dataparser_transform, stock.dataparser_transform)
    assert ours.dataparser_scale == stock.dataparser_scale


def test_transforms_file_and_relative_folder_are_accepted(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(capture.parent)
    expected = _outputs(capture).image_filenames
    assert _outputs(Path("capture")).image_filenames == expected
    assert _outputs(Path("capture/transforms.json")).image_filenames == expected


def test_missing_images_are_dropped_and_counted_once(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in (1, 4):
        (capture / "images" / f"{index:03d}.png").unlink()
    train, val = _outputs(capture, "train"), _outputs(capture, "val")
    assert [path.name for path in train.image_filenames] == ["000.png", "003.png", "005.png"]
    assert [path.name for path in val.image_filenames] == ["002.png"]
    assert [path.name for path in train.metadata["semantics_filenames"]] == ["000.png", "003.png", "005.png"]
    assert len(train.cameras.camera_to_worlds) == len(train.mask_filenames) == 3
    assert capsys.readouterr().out.count("dropped 2 of 6 frames: no image file (first: ./images/001.png)") == 1


def test_splits_without_lists_are_nerfstudios(capture: Path) -> None:
    _edit(capture, train_filenames=None, test_filenames=None)
    (capture / "images" / "000.png").unlink()
    names = [path.name for path in _outputs(capture, "val", eval_mode="interval", eval_interval=2).image_filenames]
    assert names == ["001.png", "003.png", "005.png"]


def test_val_and_test_stand_in_for_each_other(capture: Path) -> None:
    assert _outputs(capture, "val").image_filenames == _outputs(capture, "test").image_filenames
    _edit(capture, test_filenames=None, val_filenames=["images/003.png"])
    assert [path.name for path in _outputs(capture, "test").image_filenames] == ["003.png"]


def test_labels_follow_the_images(capture: Path) -> None:
    metadata = _outputs(capture).metadata
    assert [path.name for path in metadata["instances_filenames"]] == [f"{i:03d}.png" for i in (0, 1, 3, 4, 5)]
    assert metadata["semantics_filenames"][0] == capture / "semantics" / "000.png"
    assert metadata["classes"] == {1: "wall"}
    assert metadata["original_sizes"] == [(HEIGHT, WIDTH)] * 5


def test_capture_without_labels(capture: Path) -> None:
    meta = _edit(capture)
    keys = ("semantics_path", "instances_path")
    _edit(capture, frames=[{key: frame[key] for key in frame if key not in keys} for frame in meta["frames"]])
    (capture / "classes.json").unlink()
    for name in ("semantics", "instances"):
        (capture / name).rename(capture / f"other {name}")
    metadata = _outputs(capture).metadata
    assert metadata["semantics_filenames"] is metadata["instances_filenames"] is metadata["classes"] is None


@pytest.mark.parametrize("factor", [2, 4])
def test_downscaling_without_a_folder(capture: Path, factor: int) -> None:
    before = sorted(path for path in capture.rglob("*"))
    outputs = _outputs(capture, downscale_factor=factor)
    height, width = HEIGHT // factor, WIDTH // factor
    cameras = outputs.cameras
    assert (cameras.height == height).all()
    assert (cameras.width == width).all()
    torch.testing.assert_close(cameras.fx[0], torch.tensor([20.0 / factor]))
    torch.testing.assert_close(cameras.cx[0], torch.tensor([13.5 / factor]))
    assert outputs.metadata["original_sizes"][0] == (HEIGHT, WIDTH)
    # A copy's pixel is the mean of the factor x factor pixels it covers, and a mask's is the one at its centre.
    source = _pixels(capture / "images" / "000.png")[: height * factor, : width * factor]
    means = source.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    assert np.abs(_pixels(outputs.image_filenames[0]) - means).max() <= 0.5
    for copies, name in ((outputs.mask_filenames, "mask"), (outputs.metadata["depth_filenames"], "depth")):
        picked = _pixels(capture / name / "000.png")[factor // 2 :: factor, factor // 2 :: factor][:height, :width]
        assert (_pixels(copies[0]) == picked).all()
    assert InputDataset(outputs)[0]["image"].shape == (height, width, 3)
    assert sorted(path for path in capture.rglob("*")) == before


def test_copies_are_written_once_and_follow_their_source(capture: Path) -> None:
    first = _outputs(capture, downscale_factor=3).image_filenames
    times = [path.stat().st_mtime_ns for path in first]
    assert first[0].name == "000.png"
    second = _outputs(capture, downscale_factor=3).image_filenames
    assert second == first
    assert [path.stat().st_mtime_ns for path in second] == times
    Image.new("RGB", (WIDTH, HEIGHT), (9, 8, 7)).save(capture / "images" / "000.png")
    first[1].write_bytes(first[1].read_bytes()[:100])
    third = _outputs(capture, downscale_factor=3).image_filenames
    assert (_pixels(third[0]) == [9, 8, 7]).all()
    assert _pixels(third[1]).shape == (5, 8, 3)
    assert [path.stat().st_mtime_ns for path in third[2:]] == times[2:]


def test_complete_prepared_folder_is_used(capture: Path) -> None:
    (capture / "images_2").mkdir()
    for index in range(VIEWS):
        Image.new("RGB", (WIDTH // 2, HEIGHT // 2)).save(capture / "images_2" / f"{index:03d}.png")
    assert _outputs(capture, downscale_factor=2).image_filenames[0] == capture / "images_2" / "000.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(capture / "images_2" / "003.png")
    assert "cache" in _outputs(capture, downscale_factor=2).image_filenames[0].parts
    (capture / "images_2" / "003.png").unlink()
    assert "cache" in _outputs(capture, downscale_factor=2).image_filenames[0].parts


def test_images_may_exist_downscaled_only(capture: Path) -> None:
    (capture / "images_2").mkdir()
    for index in range(VIEWS):
        Image.new("RGB", (WIDTH // 2, HEIGHT // 2)).save(capture / "images_2" / f"{index:03d}.png")
        (capture / "images" / f"{index:03d}.png").unlink()
    assert len(_outputs(capture, downscale_factor=2).image_filenames) == 5
    assert "none of the 6 frames" in _error(capture, downscale_factor=3)
    Image.new("RGB", (WIDTH, HEIGHT)).save(capture / "images" / "000.png")
    (capture / "images_2" / "000.png").unlink()
    assert "001.png cannot be read (No such file or directory)" in _error(capture, downscale_factor=2)


def test_inference_opens_no_image(capture: Path, tmp_path: Path) -> None:
    for path in (capture / "images").iterdir():
        path.write_text("no image")
    parser = JacobiNeRFDataParserConfig(data=capture, downscale_factor=4).setup()
    parser.downscale_factor = 1  # As nerfstudio's datamanager does for ns-viewer and ns-render.
    outputs = parser.get_dataparser_outputs("train")
    assert outputs.cameras.height[0] == HEIGHT
    assert outputs.image_filenames[0] == capture / "images" / "000.png"
    assert not (tmp_path / "cache").exists()


def test_large_images_use_prepared_folders_by_themselves(capture: Path) -> None:
    meta = _edit(capture)
    frames = [{**frame, "w": 1800, "h": 4} for frame in meta["frames"][:2]]
    for frame in frames:
        del frame["mask_path"], frame["depth_file_path"]
        Image.new("RGB", (1800, 4)).save(capture / frame["file_path"])
    _edit(capture, frames=frames, w=None, h=None, train_filenames=["images/000.png", "images/001.png"])
    assert _outputs(capture).cameras.width[0] == 1800
    (capture / "images_2").mkdir()
    for index in range(2):
        Image.new("RGB", (900, 2)).save(capture / "images_2" / f"{index:03d}.png")
    outputs = _outputs(capture)
    assert outputs.cameras.width[0] == 900
    assert outputs.image_filenames[0] == capture / "images_2" / "000.png"


def test_config_survives_yaml() -> None:
    config = module.jacobinerf_data.config
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config


def test_missing_folder_and_file(tmp_path: Path) -> None:
    assert "no such data folder" in _error(tmp_path / "nowhere")
    assert "no such file" in _error(tmp_path / "nowhere" / "transforms.json")
    assert "no transforms.json in" in _error(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "has no frames"),
        ('{"frames": []}', "has no frames"),
        ('{"frames": [{}]}', "frame 0 has no file_path"),
        ('{"frames": [{"file_path": "a.png"}]}', "a.png has no 4x4 transform_matrix"),
        ('{"frames": [{"file_path": "a.png", "transform_matrix": [[1]]}]}', "a.png has no 4x4 transform_matrix"),
    ],
)
def test_bad_transforms(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "transforms.json").write_text(content)
    assert message in _error(tmp_path)


def test_bad_frames(capture: Path) -> None:
    meta = _edit(capture)
    frames = json.loads(json.dumps(meta["frames"]))
    frames[2]["transform_matrix"][0][3] = math.nan
    _edit(capture, frames=frames)
    assert "the pose of ./images/002.png has a NaN or infinite entry" in _error(capture)
    _edit(capture, frames=meta["frames"], fl_x=None)
    assert "fl_x is given neither for the capture nor for ./images/000.png" in _error(capture)


def test_cameras_at_one_place(capture: Path) -> None:
    meta = _edit(capture)
    _edit(capture, frames=[{**frame, "transform_matrix": _pose(0)} for frame in meta["frames"]])
    assert "all cameras of" in _error(capture)


def test_no_image_at_all(capture: Path) -> None:
    for path in (capture / "images").iterdir():
        path.unlink()
    assert "none of the 6 frames of" in _error(capture)


def test_empty_splits(capture: Path) -> None:
    (capture / "images" / "002.png").unlink()
    assert "no image left in test_filenames" in _error(capture, "val")
    _edit(capture, test_filenames=None)
    assert "not val_filenames or test_filenames" in _error(capture, "val")
    _edit(capture, train_filenames=None)
    assert "no image in split 'val'" in _error(capture, "val", train_split_fraction=1.0)


def test_name_in_a_split_without_a_frame(capture: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(capture / "images" / "900.png")
    _edit(capture, train_filenames=["images/000.png", "images/900.png"])
    assert "lists 900.png in train_filenames, but has no frame" in _error(capture)


def test_bad_labels(capture: Path) -> None:
    (capture / "semantics" / "003.png").unlink()
    assert "003.png, which is missing" in _error(capture)
    meta = _edit(capture)
    frames = [dict(frame) for frame in meta["frames"]]
    del frames[1]["instances_path"]
    _edit(capture, frames=frames)
    (capture / "semantics" / "003.png").write_bytes((capture / "semantics" / "002.png").read_bytes())
    assert "1 of 6 frames have no instances_path (first: ./images/001.png)" in _error(capture)


def test_bad_images_and_factors(capture: Path) -> None:
    assert "downscale factor 2.5: expected a whole number" in _error(capture, downscale_factor=2.5)
    assert "downscale factor 0: expected a whole number" in _error(capture, downscale_factor=0)
    assert "leaves no pixel" in _error(capture, downscale_factor=20)
    _edit(capture, w=WIDTH + 1)
    assert "000.png is 26x15 pixels (width x height), its camera in transforms.json is 27x15" in _error(capture)
    _edit(capture, w=WIDTH)
    (capture / "images" / "001.png").write_text("no image")
    assert "001.png cannot be read" in _error(capture)
    data = (capture / "images" / "003.png").read_bytes()
    (capture / "images" / "001.png").write_bytes(data[: len(data) // 2])
    assert "001.png cannot be read" in _error(capture, downscale_factor=2)


def test_cache_that_cannot_be_written(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "set XDG_CACHE_HOME" in _error(capture, downscale_factor=2)


def test_fox_lists_more_frames_than_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    if not (SCENES / "fox").is_dir():
        pytest.skip("the capture 'fox' is not beside this checkout")
    splits = [_outputs(SCENES / "fox", split, downscale_factor=8) for split in ("train", "val")]
    assert [len(outputs.image_filenames) for outputs in splits] == [45, 5]
    assert capsys.readouterr().out.count("dropped 17 of 67 frames") == 1
    assert InputDataset(splits[1])[0]["image"].shape == (240, 135, 3)
    torch.testing.assert_close(splits[1].cameras.cx[0], torch.tensor([554.558 / 8]))


@pytest.mark.parametrize("scene", ["nook", "atelier"])
def test_rendered_rooms_load(scene: str) -> None:
    if not (SCENES / scene).is_dir():
        pytest.skip(f"the capture '{scene}' is not beside this checkout")
    outputs = _outputs(SCENES / scene, "val")
    assert outputs.metadata["classes"][1] == "wall"
    for semantics, image in zip(outputs.metadata["semantics_filenames"], outputs.image_filenames, strict=True):
        assert read_label_map(semantics, (_pixels(image).shape[0], _pixels(image).shape[1])).min() > 0
