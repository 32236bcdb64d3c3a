"""`scannet-labels`: an exact miniature's geometry, labels, splits and names, and one clear line for what is damaged."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from miniatures import SCANNET_CLASSES, VIEWS, Miniature, write_scannet
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.datasets.depth_dataset import DepthDataset
from PIL import Image
from reprojection import class_maps, reproject, truth_errors

from jacobinerf_ns.dataparsers import scannet_labels as module
from jacobinerf_ns.dataparsers.scannet_labels import ScanNetLabelsParserConfig, read_nyu40
from jacobinerf_ns.errors import UserError

TRAIN = [number for number in range(VIEWS) if number % 8]
TSV = "scannetv2-labels.combined.tsv"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_reported", set())


@pytest.fixture
def miniature(tmp_path: Path) -> Miniature:
    """Twelve views of the demo room as `scans/scene0000_00`."""
    return write_scannet(tmp_path)


@pytest.fixture(scope="session")
def _small_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    write_scannet(root, width=12, height=8)
    return root


@pytest.fixture
def small(_small_original: Path, tmp_path: Path) -> Path:
    """The scene folder of a miniature too small for geometry; the test's own, to be damaged."""
    shutil.copytree(_small_original, tmp_path, dirs_exist_ok=True)
    return tmp_path / "scans" / "scene0000_00"


def _outputs(data: Path, split: str = "train", **settings: Any) -> Any:
    return ScanNetLabelsParserConfig(data=data, **settings).setup().get_dataparser_outputs(split)


def _error(data: Path, split: str = "train", **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        _outputs(data, split, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _numbers(outputs: Any) -> list[int]:
    return [int(path.stem) for path in outputs.image_filenames]


def _spoil(scene: Path, numbers: range | list[int], value: str = "-inf") -> None:
    for number in numbers:
        (scene / "pose" / f"{number}.txt").write_text("\n".join([" ".join([value] * 4)] * 4))


def test_geometry_is_the_tracers(miniature: Miniature) -> None:
    metres, pixels = truth_errors(_outputs(miniature.folder), miniature, TRAIN)
    print(f"scannet miniature: {metres * 1000:.2f} mm, {pixels:.3f} px against the tracer")
    assert metres < 0.001
    assert pixels < 0.1


@pytest.mark.parametrize("factor", [None, 2])
def test_frames_agree_with_each_other(miniature: Miniature, factor: int | None) -> None:
    outputs = _outputs(miniature.folder, downscale_factor=factor)
    found = reproject(outputs, [(i, i + 1) for i in range(len(TRAIN) - 1)])
    print(f"scannet miniature, downscale {factor}: {found}")
    assert found.visible > 0.4
    assert found.pixels <= 1
    assert found.agreement > 0.94
    assert found.inside > 0.99


def test_transform_and_scale_lead_back_to_the_files(miniature: Miniature) -> None:
    outputs = _outputs(miniature.folder)
    opengl = torch.from_numpy(miniature.poses[TRAIN] @ np.diag([1.0, -1.0, -1.0, 1.0])).float()
    found = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")
    torch.testing.assert_close(found, opengl[:, :3], rtol=1e-4, atol=1e-4)


def test_labels_are_nyu40(miniature: Miniature) -> None:
    outputs = _outputs(miniature.folder)
    names = {nyu: name for _, nyu, name in SCANNET_CLASSES.values()}
    assert outputs.metadata["classes"] == dict(sorted(names.items()))
    assert outputs.metadata["class_mapping"][1163] == 20
    table = np.array([0, *(nyu for _, nyu, _ in SCANNET_CLASSES.values())])
    for found, number in zip(class_maps(outputs), TRAIN, strict=True):
        assert np.array_equal(found, table[miniature.classes[number]])


def test_void_stays_void_and_a_class_without_nyu40_becomes_it(small: Path) -> None:
    with (small.parent.parent / TSV).open("a") as file:
        file.write("900\todd thing\todd\t1\t\t0\t\t\t\n")
    ids = np.zeros((8, 12), np.uint16)
    ids[0], ids[1] = 900, 1164
    Image.fromarray(ids).save(small / "label-filt" / "1.png")
    found = class_maps(_outputs(small))[0]
    assert found[:3, 0].tolist() == [0, 23, 0]


def test_splits_and_frame_step(small: Path) -> None:
    assert _numbers(_outputs(small, "test")) == _numbers(_outputs(small, "val")) == [0, 8]
    assert _numbers(_outputs(small)) == TRAIN
    assert _numbers(_outputs(small, "test", frame_step=2, test_every=3)) == [0, 6]
    assert _numbers(_outputs(small, frame_step=2, test_every=3)) == [2, 4, 8, 10]
    assert _outputs(small).dataparser_scale == _outputs(small, "test").dataparser_scale


def test_invalid_poses_are_dropped_and_counted_once(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _spoil(small, [0, 3])
    _spoil(small, [4], "nan")
    assert _numbers(_outputs(small, "test", test_every=4)) == [1, 7, 11]
    outputs = _outputs(small, test_every=4)
    assert _numbers(outputs) == [2, 5, 6, 8, 9, 10]
    assert [path.stem for path in outputs.metadata["semantics_filenames"]] == ["2", "5", "6", "8", "9", "10"]
    assert torch.isfinite(outputs.cameras.camera_to_worlds).all()
    assert capsys.readouterr().out.count(f"dropped 3 of 12 frames of {small}: invalid pose (first: pose/0.txt)") == 1


def test_no_valid_pose(small: Path) -> None:
    _spoil(small, range(VIEWS))
    message = _error(small)
    assert "12 of 12 frames" in message
    assert "pose/0.txt" in message


def test_downscaling(small: Path) -> None:
    outputs = _outputs(small, downscale_factor=2)
    assert (int(outputs.cameras.height[0]), int(outputs.cameras.width[0])) == (4, 6)
    assert outputs.metadata["original_sizes"][0] == (8, 12)
    assert class_maps(outputs)[0].shape == (4, 6)
    assert InputDataset(outputs)[0]["image"].shape == (4, 6, 3)


def test_nerfstudio_reads_the_depth(small: Path) -> None:
    outputs = _outputs(small)
    data = DepthDataset(outputs)[0]
    own = np.array(Image.open(small / "depth" / "1.png")) * 1e-3 * outputs.dataparser_scale
    assert data["depth_image"].shape == (8, 12, 1)
    np.testing.assert_allclose(data["depth_image"][::2, ::2, 0], own, rtol=1e-5)


def test_depth_of_another_camera_is_left_out(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_intrinsics(small / "intrinsic" / "intrinsic_depth.txt", 12, 12, 2.5, 1.5)
    assert _outputs(small).metadata["depth_filenames"] is None
    _outputs(small, "test")
    assert capsys.readouterr().out.count(f"depth of {small} is left out") == 1


def test_pixel_centres(small: Path) -> None:
    one, two = _outputs(small), _outputs(small, pixel_centre=0.0)
    assert float(one.cameras.cx[0] - two.cameras.cx[0]) == pytest.approx(0.5)


def test_folders_that_are_not_there(small: Path) -> None:
    for name in ("label-filt", "instance-filt", "depth"):
        (small / name).rename(small / f"no-{name}")
    metadata = _outputs(small).metadata
    keys = ("semantics_filenames", "instances_filenames", "depth_filenames", "classes", "class_mapping")
    assert [metadata[key] for key in keys] == [None] * 5


def test_places_of_the_table(small: Path, tmp_path: Path) -> None:
    table = (small.parent.parent / TSV).rename(tmp_path / "elsewhere.tsv")
    message = _error(small)
    assert f"no {TSV} in {small}" in message
    assert _outputs(small, labels_tsv=table).metadata["classes"][1] == "wall"
    table.rename(small / TSV)
    assert _outputs(small).metadata["classes"][1] == "wall"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'id'"),
        (b"id\tnyu40id\n1\t1\n", "has no column 'nyu40class'"),
        (b"id,nyu40id,nyu40class\n1,1,wall\n", "has no column 'id'"),
        (b"id\tnyu40id\tnyu40class\n1\tone\twall\n", "line 2 has no whole numbers"),
        (b"id\tnyu40id\tnyu40class\n\n1\n", "line 3 has no whole numbers"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_unreadable_table(small: Path, content: bytes, message: str) -> None:
    table = small.parent.parent / TSV
    table.write_bytes(content)
    assert f"{table}" in _error(small)
    assert message in _error(small)


def test_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.tsv cannot be read"):
        read_nyu40(tmp_path / "nowhere.tsv")


def test_unknown_class_id(small: Path) -> None:
    Image.fromarray(np.full((8, 12), 1357, np.uint16)).save(small / "label-filt" / "5.png")
    message = _error(small)
    assert "label-filt/5.png has the class id 1357" in message
    assert TSV in message


@pytest.mark.parametrize("name", ["depth/5.png", "label-filt/5.png", "instance-filt/5.png"])
def test_missing_file(small: Path, name: str) -> None:
    (small / name).unlink()
    assert f"{small / name} is missing" in _error(small)


@pytest.mark.parametrize("name", ["color", "pose"])
def test_missing_folder(small: Path, name: str) -> None:
    (small / name).rename(small / "away")
    assert f"no folder {small / name}" in _error(small)
    assert "no such data folder" in _error(small / "nowhere")


@pytest.mark.parametrize("name", ["color/5.jpg", "depth/5.png", "label-filt/5.png", "instance-filt/5.png"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.75])
def test_corrupt_image(small: Path, name: str, keep: float) -> None:
    path = small / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert f"{path} cannot be read" in _error(small)


def test_depth_of_8_bits(small: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(small / "depth" / "5.png")
    assert "depth/5.png is an 8-bit L image, expected 16 bits" in _error(small)


def test_label_map_of_another_size(small: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(small / "label-filt" / "5.png")
    assert "label-filt/5.png is 6x4 pixels" in _error(small)


def test_pose_count_unlike_image_count(small: Path) -> None:
    (small / "pose" / "7.txt").unlink()
    message = _error(small)
    assert "has 11 poses" in message
    assert f"{small / 'color' / '7.jpg'} has no pose" in message
    (small / "color" / "7.jpg").unlink()
    (small / "color" / "8.jpg").unlink()
    assert "8.txt has no image" in _error(small)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("1 2 3", "has 1 lines of 3 numbers"),
        ("a b", "is no table of numbers"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n2 3 4 1", "is no camera-to-world matrix"),
    ],
)
def test_bad_pose(small: Path, text: str, message: str) -> None:
    (small / "pose" / "5.txt").write_text(text)
    assert f"pose/5.txt {message}" in _error(small)


def test_bad_intrinsics(small: Path) -> None:
    path = small / "intrinsic" / "intrinsic_color.txt"
    _write_intrinsics(path, 100, 100, 64, 48)
    assert "intrinsic_color.txt has the principal point (64.5, 48.5)" in _error(small)
    _write_intrinsics(path, 0, 100, 6, 4)
    assert "intrinsic_color.txt has no positive finite focal lengths" in _error(small)
    path.unlink()
    assert "intrinsic_color.txt cannot be read" in _error(small)


def test_empty_split(tmp_path: Path) -> None:
    scene = write_scannet(tmp_path, views=2, width=12, height=8).folder
    message = _error(scene, frame_step=2)
    assert "no frame in split 'train'" in message
    assert str(scene) in message
    assert "frame step 0" in _error(scene, frame_step=0)
    assert "test every 1" in _error(scene, test_every=1)


def test_config_survives_yaml() -> None:
    config = module.scannet_labels.config
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config


def _write_intrinsics(path: Path, fx: float, fy: float, cx: float, cy: float) -> None:
    path.write_text(f"{fx} 0 {cx} 0\n0 {fy} {cy} 0\n0 0 1 0\n0 0 0 1\n")
