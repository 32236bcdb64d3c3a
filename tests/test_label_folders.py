"""Label maps in folders beside a capture of any format, found by the names of its images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from test_datamanager import manager
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.cli.evaluate import Evaluate
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import Annotator
from jacobinerf_ns.evaluation.exercise import TrainedFields
from jacobinerf_ns.evaluation.labels import Report, evaluate
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.files.index_maps import read_classes
from jacobinerf_ns.files.names import match_by_name
from jacobinerf_ns.labels.truth import read_truth


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo room in six tiny views, drawn once."""
    return tiny_capture(tmp_path_factory.mktemp("drawn") / "room")


@pytest.fixture
def room(drawn: Path, tmp_path: Path) -> Path:
    """A copy whose transforms.json says nothing of labels, and whose label maps lie elsewhere."""
    shutil.copytree(drawn, tmp_path / "room")
    meta = json.loads((drawn / "transforms.json").read_text())
    for frame in meta["frames"]:
        del frame["semantics_path"], frame["instances_path"]
    (tmp_path / "room" / "transforms.json").write_text(json.dumps(meta))
    (tmp_path / "labels").mkdir()
    for name in ("semantics", "instances", "classes.json"):
        (tmp_path / "room" / name).rename(tmp_path / "labels" / name)
    return tmp_path / "room"


@pytest.fixture
def labels(room: Path) -> Path:
    return room.parent / "labels"


@pytest.fixture
def blender(room: Path) -> tuple[Path, Path]:
    """The room in Blender's layout, in which images of different splits have one name; and its labels."""
    meta = json.loads((room / "transforms.json").read_text())
    folder, labels = room.parent / "blender", room.parent / "blender labels"
    for split in ("train", "val", "test"):
        chosen = [frame for frame in meta["frames"] if frame["file_path"] in meta[f"{split}_filenames"]]
        frames = []
        for i, frame in enumerate(chosen):
            source = Path(frame["file_path"]).name
            copies = {folder / split: room / "images"}
            copies |= {labels / kind / split: room.parent / "labels" / kind for kind in ("semantics", "instances")}
            for target, origin in copies.items():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(origin / source, target / f"r_{i}.png")
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": frame["transform_matrix"]})
        content = {"camera_angle_x": np.pi / 2, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))
    shutil.copy(room.parent / "labels" / "classes.json", labels)
    return folder, labels


def write_colmap(room: Path) -> Path:
    """The room as COLMAP's text model; its names are 0000.jpg, so that labels have other suffixes."""
    meta = json.loads((room / "transforms.json").read_text())
    sparse = room.parent / "colmap" / "colmap" / "sparse" / "0"
    images = room.parent / "colmap" / "images"
    for folder in (sparse, images):
        folder.mkdir(parents=True)
    intrinsics = " ".join(str(meta[key]) for key in ("fl_x", "fl_y", "cx", "cy"))
    (sparse / "cameras.txt").write_text(f"1 PINHOLE {meta['w']} {meta['h']} {intrinsics}\n")
    lines = []
    for i, frame in enumerate(meta["frames"]):
        pose = np.array(frame["transform_matrix"]) @ np.diag([1.0, -1.0, -1.0, 1.0])
        turn = pose[:3, :3].T
        w = np.sqrt(max(0.0, 1 + np.trace(turn))) / 2
        x, y, z = (turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]) / (4 * w)
        numbers = " ".join(f"{v:.9f}" for v in (w, x, y, z, *(-turn @ pose[:3, 3])))
        name = Path(frame["file_path"]).stem + ".jpg"
        Image.open(room / frame["file_path"]).save(images / name, quality=95)
        lines.append(f"{i + 1} {numbers} 1 {name}\n1.0 1.0 -1\n")
    (sparse / "images.txt").write_text("".join(lines))
    (sparse / "points3D.txt").write_text("1 0.0 0.0 0.0 10 10 10 0.1 1 0\n")
    return room.parent / "colmap"


def manage(data: Path, label_dir: Path | None, parser: DataParserConfig | None = None, **settings):
    parser = parser or JacobiNeRFDataParserConfig()
    return manager(data, OracleConfig(), data.parent / "cache", dataparser=parser, label_dir=label_dir, **settings)


def assert_same_maps(found, expected) -> None:
    """The ground truth of all images of both splits is that of the images of the same name."""
    for split in ("train", "eval"):
        frames, others = found.frames(split), expected.frames(split)
        places = {frame.path.stem: i for i, frame in enumerate(frames)}
        for truth in ("semantics", "instances"):
            mine, theirs = read_truth(frames, truth), read_truth(others, truth)
            for i, frame in enumerate(others):
                assert torch.equal(mine[places[frame.path.stem]], theirs[i]), (split, truth, frame.path.name)


def test_folders_beside_images_are_the_same_as_paths_in_transforms_json(drawn: Path, room: Path, labels: Path):
    assert manage(room, None).frames("train")[0].semantics is None
    for path in labels.iterdir():
        path.rename(room / path.name)
    assert_same_maps(manage(room, None), manage(drawn, None))
    classes = manage(room, None).train_dataparser_outputs.metadata["classes"]
    assert classes == read_classes(drawn / "classes.json")


def test_an_incomplete_folder_beside_images_is_an_error(room: Path, labels: Path):
    (labels / "semantics").rename(room / "semantics")
    (room / "semantics" / "0003.png").unlink()
    with pytest.raises(UserError, match=r"semantics has no label map for 1 of 6 images \(first: 0003\.png\)"):
        manage(room, None)


@pytest.mark.parametrize("make", [JacobiNeRFDataParserConfig, NerfstudioDataParserConfig])
def test_a_label_folder_serves_every_parser(
    make: Callable[[], DataParserConfig], drawn: Path, room: Path, labels: Path
):
    found = manage(room, labels, make())
    assert_same_maps(found, manage(drawn, None))
    assert found.train_dataparser_outputs.metadata["classes"] == read_classes(labels / "classes.json")
    found.prepare_features(from_step=0)
    assert found.next_train(0)[1]["features"].shape == (64, 64)


def test_instant_ngp_and_a_flat_folder_of_classes(drawn: Path, room: Path, labels: Path):
    shutil.copy(labels / "classes.json", labels / "semantics")
    found = manage(room, labels / "semantics", InstantNGPDataParserConfig(eval_mode="all"))
    frames = found.frames("train")
    assert [f.semantics.name for f in frames if f.semantics] == [f.path.name for f in frames]
    assert all(frame.instances is None for frame in frames)
    assert found.train_dataparser_outputs.metadata["classes"][1] == read_classes(drawn / "classes.json")[1]


def test_colmap_with_other_suffixes(room: Path, labels: Path):
    data = write_colmap(room)
    found = manage(data, labels, ColmapDataParserConfig(eval_interval=3))
    frames = [*found.frames("train"), *found.frames("eval")]
    assert len(frames) == 6
    for frame in frames:
        assert frame.path.suffix == ".jpg"
        assert frame.semantics == labels / "semantics" / f"{frame.path.stem}.png"
        assert frame.instances == labels / "instances" / f"{frame.path.stem}.png"


def test_blender_splits_with_images_of_one_name(blender: tuple[Path, Path], drawn: Path):
    data, labels = blender
    found = manage(data, labels, BlenderDataParserConfig())
    for frames, folder in ((found.frames("train"), "train"), (found.frames("eval"), "val")):
        for frame in frames:
            assert frame.semantics == labels / "semantics" / folder / frame.path.name
            assert frame.size == (18, 24)
    expected = read_truth(manage(drawn, None).frames("train"))
    assert all(torch.equal(*pair) for pair in zip(read_truth(found.frames("train")), expected, strict=True))


def test_one_map_for_images_of_two_splits_is_an_error(blender: tuple[Path, Path]):
    data, labels = blender
    for kind in ("semantics", "instances"):
        for path in sorted((labels / kind).rglob("*.png")):
            shutil.copy(path, labels / kind / path.name)
        for split in ("train", "val", "test"):
            shutil.rmtree(labels / kind / split)
    with pytest.raises(UserError, match=r"r_0\.png belongs to .*train/r_0\.png and to .*val/r_0\.png by its name"):
        manage(data, labels, BlenderDataParserConfig())


@pytest.mark.parametrize("settings", [{"camera_res_scale_factor": 0.5}, {}])
def test_maps_of_the_original_size_serve_smaller_images(room: Path, labels: Path, drawn: Path, settings: dict):
    scaled = not settings
    parser = JacobiNeRFDataParserConfig(downscale_factor=2 if scaled else None)
    found = manage(room, labels, parser, **settings)
    other = manage(drawn, None, JacobiNeRFDataParserConfig(downscale_factor=2 if scaled else None), **settings)
    assert found.frames("train")[0].size == (9, 12)
    assert_same_maps(found, other)


def test_maps_larger_than_the_images_of_a_stock_parser(room: Path, labels: Path):
    (room / "images_2").mkdir()
    for path in (room / "images").iterdir():
        Image.open(path).resize((12, 9)).save(room / "images_2" / path.name)
    found = manage(room, labels, NerfstudioDataParserConfig(downscale_factor=2))
    frame = found.frames("train")[0]
    assert (frame.size, frame.original_size) == ((9, 12), (18, 24))
    assert read_truth([frame])[0].shape == (9, 12)


def test_other_maps_than_the_captures_own(drawn: Path, room: Path, labels: Path):
    """Without a legend the names of the capture's own classes are not those of the new maps."""
    for path in (labels / "semantics").iterdir():
        Image.fromarray(np.full((18, 24), 7, dtype=np.uint8)).save(path)
    (labels / "classes.json").unlink()
    found = manage(drawn, labels)
    assert int(read_truth(found.frames("eval"))[0].unique()) == 7
    assert found.train_dataparser_outputs.metadata["classes"] is None
    shutil.rmtree(labels / "semantics")
    found = manage(drawn, labels)
    assert found.frames("train")[0].instances == labels / "instances" / found.frames("train")[0].path.name
    assert found.frames("train")[0].semantics == drawn / "semantics" / found.frames("train")[0].path.name
    assert found.train_dataparser_outputs.metadata["classes"] is not None


def test_rendering_needs_no_labels(room: Path, labels: Path):
    config = manage(room, labels).config
    shutil.rmtree(labels)
    found = config.setup(device="cpu", test_mode="inference", world_size=1, local_rank=0)
    assert len(found.train_dataset) == 4
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config


def _remove(labels: Path) -> None:
    (labels / "semantics" / "0001.png").unlink()


def _repeat(labels: Path) -> None:
    shutil.copy(labels / "semantics" / "0001.png", labels / "semantics" / "0001.PNG")


def _resize(labels: Path) -> None:
    Image.new("L", (25, 18)).save(labels / "instances" / "0001.png")


def _colour(labels: Path) -> None:
    Image.new("RGB", (24, 18)).save(labels / "instances" / "0001.png")


def _damage(labels: Path) -> None:
    (labels / "semantics" / "0001.png").write_text("no picture")


def _empty(labels: Path) -> None:
    shutil.rmtree(labels / "semantics")
    (labels / "semantics").mkdir()


def _delete(labels: Path) -> None:
    shutil.rmtree(labels)


def _spoil_legend(labels: Path) -> None:
    (labels / "classes.json").write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove, r"semantics has no label map for 1 of 6 images \(first: 0001\.png\)"),
        (_repeat, r"0001\.png has two files in .*semantics: .*0001\.PNG and .*0001\.png: keep one"),
        (_resize, r"0001\.png is 25x18 pixels \(width x height\), expected 24x18 or a whole multiple of it"),
        (_colour, r"0001\.png is a RGB image, expected one 8- or 16-bit index per pixel"),
        (_damage, r"0001\.png cannot be read"),
        (_empty, "no PNG in .*semantics"),
        (_delete, "no such folder: .*labels"),
        (_spoil_legend, r"classes\.json: expected"),
    ],
)
def test_every_error_is_one_line(room: Path, labels: Path, spoil: Callable[[Path], None], message: str):
    spoil(labels)
    with pytest.raises(UserError, match=message) as caught:
        manage(room, labels, NerfstudioDataParserConfig(downscale_factor=1))
    assert "\n" not in str(caught.value)


def test_maps_of_two_sizes_beside_a_parser_that_knows_the_original(room: Path, labels: Path):
    Image.new("L", (48, 36)).save(labels / "semantics" / "0001.png")
    with pytest.raises(
        UserError, match=r"0001\.png is 48x36 pixels \(width x height\), expected 24x18: label maps need"
    ):
        manage(room, labels)
    with pytest.raises(UserError, match=r"expected 12x9 or 24x18 \(not downscaled\)"):
        manage(room, labels, JacobiNeRFDataParserConfig(downscale_factor=2))


IMAGES = [Path("/c/images_4/a/1.jpg"), Path("/c/images_4/b/1.jpg"), Path("/c/images_4/b/2.jpg")]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/1.png", "b/1.png", "b/2.png"], ["a/1.png", "b/1.png", "b/2.png"]),
        (["images/a/1.png", "b/1.png", "2.png"], ["images/a/1.png", "b/1.png", "2.png"]),
        (["b/1.jpg.png", "2_mask.png", "c/1.png"], [None, "b/1.jpg.png", "2_mask.png"]),
        (["b/1.png", "b/1_mask.png", "2.png", "b/2.png"], [None, "b/1.png", "b/2.png"]),
        (["3.png"], [None, None, None]),
    ],
)
def test_files_are_matched_by_name_and_folders(files: list[str], expected: list[str | None]):
    root = Path("/masks")
    found = match_by_name(IMAGES, [root / name for name in files], root)
    assert found == [None if name is None else root / name for name in expected]


def test_one_name_in_two_folders_needs_two_files():
    root = Path("/masks")
    with pytest.raises(UserError, match=r"/masks/1\.png belongs to .*a/1\.jpg and to .*b/1\.jpg by its name: put"):
        match_by_name(IMAGES, [root / "1.png"], root)
    assert match_by_name([IMAGES[0], IMAGES[0]], [root / "1.png"], root) == [root / "1.png"] * 2


def test_training_and_evaluation_with_blender_data(blender: tuple[Path, Path]):
    """The oracle teaches, the annotator clicks, and scores are taken, from a label folder alone."""
    data, labels = blender
    config = tiny_config(data, data.parent / "out", steps=6)
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig(alpha_color=None)
    config.pipeline.datamanager.label_dir = labels
    trainer = start(config)
    trainer.train()
    trainer.pipeline.eval()
    config_path = trainer.base_dir / "config.yml"
    report = evaluate(TrainedFields(trainer.pipeline, None), Annotator(), ("2d",), seeds=(0,), stride=4)
    assert set(report.names.values()) <= set(read_classes(labels / "classes.json").values())
    saved = config_path.read_text().replace("label_dir:", "no_label_dir:")
    (config_path.parent / "without.yml").write_text(saved)
    without = (config_path.parent / "without.yml",)
    quick = {"methods": ("2d",), "seeds": (0,), "stride": 4, "pictures": 0}
    with pytest.raises(UserError, match=r"no ground truth for 4 of 4 images .* in a folder given as label-dir"):
        Evaluate(without, **quick).main()
    again = Evaluate(without, label_dir=labels, **quick).main()
    assert isinstance(again, Report)
    assert (again.names, again.view) == (report.names, report.view)
    assert again.mean("2d", "miou") == pytest.approx(report.mean("2d", "miou"), abs=0.02)
