"""`replica-data`: an exact miniature's geometry, labels, splits and names, and one clear line for what is damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from miniatures import RAW_IDS, VIEWS, Miniature, write_replica
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image
from reprojection import class_maps, reproject, truth_errors

from jacobinerf_ns.datamanager import list_frames
from jacobinerf_ns.dataparsers.replica_data import ReplicaDataParserConfig, read_class_names, replica_data
from jacobinerf_ns.demo.room import CLASSES
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.oracle import OracleConfig

ATELIER = Path(__file__).resolve().parents[2] / "shared" / "scenes" / "atelier-replica"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def miniature(tmp_path: Path) -> Miniature:
    """Twelve views of the demo room as `room_0/Sequence_1`."""
    return write_replica(tmp_path)


@pytest.fixture(scope="session")
def _small_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    write_replica(root, width=12, height=8)
    return root


@pytest.fixture
def small(_small_original: Path, tmp_path: Path) -> Path:
    """The sequence folder of a miniature too small for geometry; the test's own, to be damaged."""
    shutil.copytree(_small_original, tmp_path, dirs_exist_ok=True)
    return tmp_path / "room_0" / "Sequence_1"


def _outputs(data: Path, split: str = "train", **settings: Any) -> Any:
    return ReplicaDataParserConfig(data=data, **settings).setup().get_dataparser_outputs(split)


def _error(data: Path, split: str = "train", **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        _outputs(data, split, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _pairs(outputs: Any) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(len(outputs.image_filenames) - 1)]


def test_geometry_is_the_tracers(miniature: Miniature) -> None:
    train = _outputs(miniature.folder, train_every=2, test_offset=1)
    metres, pixels = truth_errors(train, miniature, list(range(0, VIEWS, 2)))
    print(f"replica miniature: {metres * 1000:.2f} mm, {pixels:.3f} px against the tracer")
    assert metres < 0.001
    assert pixels < 0.1


@pytest.mark.parametrize("factor", [None, 2])
def test_frames_agree_with_each_other(miniature: Miniature, factor: int | None) -> None:
    train = _outputs(miniature.folder, train_every=2, test_offset=1, downscale_factor=factor)
    found = reproject(train, _pairs(train))
    print(f"replica miniature, downscale {factor}: {found}")
    assert found.visible > 0.4
    assert found.pixels <= 1
    assert found.agreement > 0.96
    assert found.inside > 0.99


@pytest.mark.parametrize("orientation", ["pca", "up", "none"])
def test_transform_and_scale_lead_back_to_the_files(miniature: Miniature, orientation: Any) -> None:
    outputs = _outputs(miniature.folder, orientation_method=orientation, scale_factor=0.7)
    opengl = torch.from_numpy(miniature.poses[::5] @ np.diag([1.0, -1.0, -1.0, 1.0])).float()
    found = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")
    torch.testing.assert_close(found, opengl[:, :3], rtol=1e-4, atol=1e-4)
    parts = [outputs, _outputs(miniature.folder, "test", orientation_method=orientation, scale_factor=0.7)]
    assert max(part.cameras.camera_to_worlds[:, :, 3].abs().max() for part in parts) <= 0.7 + 1e-6


def test_untouched_world(miniature: Miniature) -> None:
    settings: Any = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}
    outputs = _outputs(miniature.folder, **settings)
    opengl = torch.from_numpy(miniature.poses[::5] @ np.diag([1.0, -1.0, -1.0, 1.0])).float()
    torch.testing.assert_close(outputs.cameras.camera_to_worlds, opengl[:, :3])
    assert outputs.dataparser_scale == 1


def test_splits_are_the_papers(small: Path) -> None:
    def numbers(split: str, **settings: Any) -> list[int]:
        return [int(path.stem[4:]) for path in _outputs(small, split, **settings).image_filenames]

    assert numbers("train") == [0, 5, 10]
    assert numbers("val") == numbers("test") == [2, 7]
    assert numbers("test", train_every=4, test_offset=3) == [3, 7, 11]
    train, test = _outputs(small), _outputs(small, "test")
    assert train.dataparser_scale == test.dataparser_scale
    assert torch.equal(train.dataparser_transform, test.dataparser_transform)


def test_room_and_sequence_are_the_same(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _outputs(small).image_filenames
    assert _outputs(small.parent).image_filenames == expected
    monkeypatch.chdir(small.parent.parent)
    assert _outputs(Path("room_0")).image_filenames == expected
    (small.parent / "Sequence_1").rename(small.parent / "Sequence_2")
    assert _outputs(small.parent, sequence="Sequence_2").image_filenames[0].parent.parent.name == "Sequence_2"
    assert "no Sequence_1 in" in _error(small.parent)
    assert "which has Sequence_2" in _error(small.parent)


def test_ids_are_renumbered(miniature: Miniature) -> None:
    outputs = _outputs(miniature.folder, "test")
    present = np.unique(miniature.classes).tolist()
    names = [CLASSES[number - 1] for number in present]
    assert outputs.metadata["classes"] == dict(enumerate(names, start=1))
    raw = [RAW_IDS[number - 1] for number in present]
    assert outputs.metadata["class_mapping"] == {old: new for new, old in enumerate(raw, start=1)}
    for found, number in zip(class_maps(outputs), (2, 7), strict=True):
        assert np.array_equal(found, np.searchsorted(present, miniature.classes[number]) + 1)


def test_ids_of_the_whole_sequence_count(small: Path) -> None:
    """A class that only an unused frame shows still has its number, and void keeps 0."""
    for number in range(VIEWS):
        ids = np.full((8, 12), 40 if number else 0, np.uint8)
        ids[0] = 30 if number == 3 else 90
        Image.fromarray(ids).save(small / "semantic_class" / f"semantic_class_{number}.png")
    (small.parent / "info_semantic.json").unlink()
    outputs = _outputs(small)
    assert outputs.metadata["classes"] == {1: "class 30", 2: "class 40", 3: "class 90"}
    assert np.unique(class_maps(outputs)[0]).tolist() == [0, 3]
    assert np.unique(class_maps(outputs)[1]).tolist() == [2, 3]
    Image.fromarray(np.full((8, 12), 35, np.uint8)).save(small / "semantic_class" / "semantic_class_4.png")
    assert list(_outputs(small).metadata["class_mapping"]) == [30, 35, 40, 90]


def test_consecutive_ids_need_no_copies(small: Path) -> None:
    for number in range(VIEWS):
        ids = np.arange(96, dtype=np.uint8).reshape(8, 12) % 4
        Image.fromarray(ids).save(small / "semantic_class" / f"semantic_class_{number}.png")
    (small.parent / "info_semantic.json").unlink()
    assert _outputs(small).metadata["semantics_filenames"][0] == small / "semantic_class" / "semantic_class_0.png"


def test_copies_are_kept_until_their_source_changes(small: Path) -> None:
    first = _outputs(small).metadata["semantics_filenames"]
    before = [path.stat().st_mtime_ns for path in first]
    assert [path.stat().st_mtime_ns for path in _outputs(small).metadata["semantics_filenames"]] == before
    Image.fromarray(np.full((8, 12), RAW_IDS[0], np.uint8)).save(small / "semantic_class" / "semantic_class_0.png")
    assert (class_maps(_outputs(small))[0] == 1).all()
    first[1].write_bytes(b"damaged")
    assert class_maps(_outputs(small))[1].max() > 0


def test_cache_that_cannot_be_written(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert f"{tmp_path / 'file'}/jacobinerf-ns/labels" in _error(small)


def test_the_data_set_stays_as_it_is(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.parent.rglob("*")}
    _outputs(small, downscale_factor=2)
    assert {path: path.stat().st_mtime_ns for path in small.parent.rglob("*")} == before


def test_downscaling(small: Path) -> None:
    outputs = _outputs(small, downscale_factor=2)
    cameras = outputs.cameras
    sizes = (cameras.height, cameras.width, cameras.fx, cameras.cx)
    assert [float(value[0]) for value in sizes] == [4, 6, 3, 3]
    assert outputs.metadata["original_sizes"] == [(8, 12)] * 3
    assert Image.open(outputs.metadata["depth_filenames"][0]).size == (6, 4)
    assert class_maps(outputs)[0].shape == (4, 6)
    assert InputDataset(outputs)[0]["image"].shape == (4, 6, 3)
    assert "leaves no pixel" in _error(small, downscale_factor=20)
    assert "downscale factor 1.5: expected a whole number" in _error(small, downscale_factor=1.5)


def test_inference_opens_no_photograph(small: Path) -> None:
    _outputs(small)
    (small / "rgb" / "rgb_5.png").write_bytes(b"no image")
    parser = ReplicaDataParserConfig(data=small, downscale_factor=2).setup()
    parser.downscale_factor = 1  # As nerfstudio's datamanager does for ns-viewer and ns-render.
    assert parser.get_dataparser_outputs("train").cameras.height[0] == 8


def test_the_oracle_teacher_reads_it(small: Path) -> None:
    outputs = _outputs(small)
    frames = list_frames(outputs, outputs.cameras)
    extractor = OracleConfig(per_instance=True, patch_size=4).setup()
    extractor.check(frames)
    assert extractor.extract(frames[0]).values.shape[-1] == 64
    assert outputs.metadata["instances_filenames"][1] == small / "semantic_instance" / "semantic_instance_5.png"
    assert outputs.metadata["depth_unit_scale_factor"] == 1e-3


def test_folders_that_are_not_there(small: Path) -> None:
    for name in ("semantic_class", "semantic_instance", "depth"):
        (small / name).rename(small / f"no_{name}")
    metadata = _outputs(small).metadata
    keys = ("semantics_filenames", "instances_filenames", "depth_filenames", "classes", "class_mapping")
    assert [metadata[key] for key in keys] == [None] * 5


@pytest.mark.parametrize(
    "content",
    [
        {"classes": [{"id": 4, "name": "lamp"}]},
        {"objects": [{"id": 9, "class_id": 4, "class_name": "lamp"}, {"id": 1, "class_id": -1, "class_name": ""}]},
        [{"id": 9, "class_id": 4, "class_name": "lamp", "oriented_bbox": {}}],
        [{"id": 4, "name": "lamp"}, {"id": 0, "name": "undefined"}],
    ],
)
def test_layouts_of_class_names(tmp_path: Path, content: Any) -> None:
    (tmp_path / "info.json").write_text(json.dumps(content))
    assert read_class_names(tmp_path / "info.json") == {4: "lamp"}


@pytest.mark.parametrize("place", ["Sequence_1", "habitat", "../semantic_info/room_0"])
def test_places_of_class_names(small: Path, place: str) -> None:
    folder = small.parent / place
    folder.mkdir(parents=True, exist_ok=True)
    (small.parent / "info_semantic.json").rename(folder / "info_semantic.json")
    assert _outputs(small).metadata["classes"][1] in CLASSES


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": 3}', '"text"'])
def test_bad_class_names(small: Path, content: str) -> None:
    (small.parent / "info_semantic.json").write_text(content)
    message = _error(small)
    assert "info_semantic.json" in message
    assert "expected" in message


def test_unknown_class_id(small: Path) -> None:
    Image.fromarray(np.full((8, 12), 77, np.uint8)).save(small / "semantic_class" / "semantic_class_4.png")
    message = _error(small)
    assert "semantic_class_4.png has the class id 77" in message
    assert "info_semantic.json" in message


@pytest.mark.parametrize(
    "name", ["depth/depth_4", "semantic_class/semantic_class_4", "semantic_instance/semantic_instance_4"]
)
def test_missing_file(small: Path, name: str) -> None:
    (small / f"{name}.png").unlink()
    assert f"{Path(name).name}.png is missing" in _error(small)


def test_missing_folder_and_poses(small: Path, tmp_path: Path) -> None:
    assert "no such data folder" in _error(tmp_path / "nowhere")
    (small / "traj_w_c.txt").unlink()
    assert "traj_w_c.txt cannot be read" in _error(small)
    (small / "rgb").rename(small / "colour")
    assert "has no sequence" not in _error(small.parent)
    assert "no folder" in _error(small.parent)
    (small / "rgb").mkdir()
    assert "expected rgb_N.png" in _error(small.parent)


@pytest.mark.parametrize("name", ["rgb/rgb_5", "depth/depth_5", "semantic_instance/semantic_instance_5"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_corrupt_png(small: Path, name: str, keep: float) -> None:
    path = small / f"{name}.png"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert f"{path} cannot be read" in _error(small)
    path.write_bytes(content)
    _outputs(small)


def test_corrupt_class_map(small: Path) -> None:
    path = small / "semantic_class" / "semantic_class_5.png"
    path.write_bytes(path.read_bytes()[:60])
    assert f"{path} cannot be read" in _error(small)


def test_flipped_bits(small: Path) -> None:
    path = small / "rgb" / "rgb_5.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert f"{path} cannot be read" in _error(small)


def test_depth_of_8_bits(small: Path) -> None:
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(small / "depth" / "depth_5.png")
    assert "depth_5.png is an 8-bit L image, expected 16 bits" in _error(small)


def test_sizes_that_differ(small: Path) -> None:
    Image.new("RGB", (10, 8)).save(small / "rgb" / "rgb_5.png")
    assert "rgb_5.png is 10x8 pixels" in _error(small)
    Image.new("RGB", (12, 8)).save(small / "rgb" / "rgb_5.png")
    Image.new("L", (6, 4)).save(small / "semantic_instance" / "semantic_instance_5.png")
    assert "semantic_instance_5.png is 6x4 pixels" in _error(small)
    Image.new("RGB", (12, 8)).save(small / "semantic_instance" / "semantic_instance_5.png")
    assert "semantic_instance_5.png is a RGB image" in _error(small)


def test_pose_count_unlike_image_count(small: Path) -> None:
    lines = (small / "traj_w_c.txt").read_text().splitlines(keepends=True)
    (small / "traj_w_c.txt").write_text("".join(lines[:-1]))
    assert "traj_w_c.txt has 11 poses and" in _error(small)
    (small / "traj_w_c.txt").write_text("".join(lines))
    (small / "rgb" / "rgb_7.png").unlink()
    assert "11 images (rgb_7.png is missing)" in _error(small)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_nan_pose(small: Path, value: str) -> None:
    lines = (small / "traj_w_c.txt").read_text().splitlines()
    lines[4] = " ".join([value, *lines[4].split()[1:]])
    (small / "traj_w_c.txt").write_text("\n".join(lines))
    assert "traj_w_c.txt: the pose of rgb_4.png (line 5) has a NaN or infinite entry" in _error(small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda poses: poses[:, :3], "12 numbers per line"),
        (lambda poses: poses.transpose(0, 2, 1), "is no camera-to-world matrix"),
        (lambda poses: poses * [1, 1, -1, 1], "is no camera-to-world matrix"),
        (lambda poses: poses[[0] * VIEWS], "are at one place"),
    ],
)
def test_matrices_that_are_no_poses(small: Path, change: Any, message: str) -> None:
    poses = np.loadtxt(small / "traj_w_c.txt").reshape(-1, 4, 4)
    np.savetxt(small / "traj_w_c.txt", change(poses).reshape(VIEWS, -1))
    assert message in _error(small)


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("a b c", "is no table of numbers")])
def test_unreadable_poses(small: Path, text: str, message: str) -> None:
    (small / "traj_w_c.txt").write_text(text)
    assert f"traj_w_c.txt {message}" in _error(small)


def test_empty_split(tmp_path: Path) -> None:
    folder = write_replica(tmp_path, views=2, width=12, height=8).folder
    assert len(_outputs(folder).image_filenames) == 1
    assert "no frame in split 'test'" in _error(folder, "test")
    assert "test offset 5 with every 5th frame" in _error(folder, test_offset=5)
    assert "test offset 0 with every 5th frame" in _error(folder, test_offset=0)


def test_one_number_twice(small: Path) -> None:
    Image.new("RGB", (12, 8)).save(small / "rgb" / "rgb_03.png")
    assert "have the same number" in _error(small)


def test_config_survives_yaml() -> None:
    assert yaml.load(yaml.dump(replica_data.config), Loader=yaml.Loader) == replica_data.config


@pytest.mark.skipif(not ATELIER.is_dir(), reason="the rendered room in Replica's layout is not here")
@pytest.mark.parametrize("factor", [None, 2])
def test_somebody_elses_room(factor: int | None) -> None:
    train, test = (_outputs(ATELIER, split, downscale_factor=factor) for split in ("train", "test"))
    assert len(train.image_filenames) == len(test.image_filenames) == 30
    assert train.metadata["classes"][1] == "wall"
    assert len(train.metadata["classes"]) == 18
    found = reproject(train, _pairs(train))
    print(f"atelier-replica, downscale {factor}: {found}")
    assert found.visible > 0.4
    assert found.pixels <= 1
    assert found.agreement > 0.98
    assert found.inside > 0.995
