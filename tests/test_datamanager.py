"""Features at the pixels of training batches."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image

from jacobinerf_ns.datamanager import FeatureDataManager, FeatureDataManagerConfig
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig
from jacobinerf_ns.shaping import anchor_rays

COUNT = 6


def make_capture(folder: Path, sizes: list[tuple[int, int]], labels: bool = False) -> Path:
    """Random images on a circle, with features (image, y, x) at their pixels; images 0 and 3 are for evaluation."""
    (folder / "images").mkdir(parents=True)
    (folder / "arrays").mkdir()
    frames = []
    for i, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:04}.png")
        rows, cols = (np.arange(side) + 0.5 for side in (height, width))
        places = np.meshgrid(rows / height, cols / width, indexing="ij")
        np.save(folder / "arrays" / f"{i:04}.npy", np.dstack([np.full((height, width), i), *places]))
        angle = 2 * np.pi * i / len(sizes)
        pose = np.eye(4)
        pose[:3, 3] = np.cos(angle), np.sin(angle), 0.1
        frame = {"file_path": f"images/{i:04}.png", "transform_matrix": pose.tolist(), "w": width, "h": height}
        frame |= {"fl_x": 20.0, "fl_y": 20.0, "cx": width / 2, "cy": height / 2}
        if labels:
            Image.fromarray(np.full((height, width), 1 + i % 2, dtype=np.uint8)).save(folder / f"{i:04}.png")
            frame["semantics_path"] = f"{i:04}.png"
        frames.append(frame)
    test = [frames[i]["file_path"] for i in (0, 3)]
    train = [frame["file_path"] for frame in frames if frame["file_path"] not in test]
    splits = {"train_filenames": train, "val_filenames": test, "test_filenames": test}
    (folder / "transforms.json").write_text(json.dumps({"camera_model": "OPENCV", "frames": frames, **splits}))
    return folder


def manager(data: Path, extractor, cache: Path, **settings) -> FeatureDataManager:
    """A small data manager on the CPU."""
    config = FeatureDataManagerConfig(
        data=data,
        extractor=extractor,
        cache_dir=cache,
        train_num_rays_per_batch=64,
        eval_num_rays_per_batch=32,
        **settings,
    )
    return config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return make_capture(tmp_path / "capture", [(12, 16)] * COUNT, labels=True)


@pytest.mark.parametrize("sizes", [[(12, 16)] * COUNT, [(12, 16), (16, 12), (9, 11), (12, 16), (20, 10), (8, 8)]])
def test_features_are_those_of_the_sampled_pixels(tmp_path: Path, sizes):
    data = make_capture(tmp_path / "capture", sizes)
    found = manager(data, PrecomputedConfig(folder=data / "arrays"), tmp_path / "cache")
    found.prepare_features(from_step=0)
    names = [int(path.stem) for path in found.train_dataset.image_filenames]
    assert sorted(names) == [1, 2, 4, 5]
    for step in range(3):
        rays, batch = found.next_train(step)
        image, row, col = batch["indices"].T
        height, width = torch.tensor([sizes[names[i]] for i in image.tolist()]).T
        expected = torch.stack([torch.tensor(names)[image], (row + 0.5) / height, (col + 0.5) / width], dim=1)
        assert batch["features"].dtype == torch.float32
        assert len(rays) == len(batch["features"])
        torch.testing.assert_close(batch["features"], expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("in_a_thread", [False, True])
@pytest.mark.parametrize("resident", [False, True])
def test_features_are_those_of_the_anchors_and_change_no_pixel(
    capture: Path, tmp_path: Path, in_a_thread: bool, resident: bool
):
    found = manager(capture, OracleConfig(), tmp_path / "cache")
    torch.manual_seed(3)
    plain = [found.next_train(step)[1]["indices"] for step in range(3)]
    found.prepare_features(from_step=0, num_anchors=10)
    assert found.feature_store is not None
    if in_a_thread:
        found._reader = ThreadPoolExecutor(max_workers=1)
    if resident:
        found._resident = found.feature_store.resident("cpu")
    torch.manual_seed(3)
    for step, indices in enumerate(plain):
        batch = found.next_train(step)[1]
        features = batch["features"]
        assert isinstance(features, Future) == (in_a_thread and not resident)
        features = features.result() if isinstance(features, Future) else features
        assert torch.equal(batch["indices"], indices)
        assert torch.allclose(
            features, found.feature_store.sample(indices)[anchor_rays(64, 10)], atol=1e-6 if resident else 0, rtol=0
        )
        assert features.shape == (10, 64)


def test_features_come_only_when_prepared_and_due(capture: Path, tmp_path: Path):
    found = manager(capture, OracleConfig(), tmp_path / "cache")
    assert type(found.train_dataset) is InputDataset
    assert found.feature_store is None
    assert "features" not in found.next_train(1000)[1]
    found.prepare_features(from_step=10)
    assert found.feature_store is not None
    assert len(found.feature_store) == 4
    assert "features" not in found.next_train(9)[1]
    assert found.next_train(10)[1]["features"].shape == (64, 64)
    assert found.next_train(11)[1]["features"].shape == (64, 64)
    assert "features" not in found.next_eval(11)[1]


def test_construction_loads_no_teacher_and_touches_no_cache(capture: Path, tmp_path: Path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("an extractor was set up")

    monkeypatch.setattr(DinoConfig, "setup", refuse)
    found = manager(capture, DinoConfig(), tmp_path / "cache")
    found.next_train(0)
    found.next_eval(0)
    found.next_eval_image(0)
    assert not (tmp_path / "cache").exists()


def test_projection_is_an_option(capture: Path, tmp_path: Path):
    found = manager(capture, HandcraftedConfig(), tmp_path / "cache", feature_dim=5, center_features=True)
    found.prepare_features(from_step=0)
    assert found.next_train(0)[1]["features"].shape == (64, 5)
    assert found.teacher_store("eval").dim == 128
    assert len(found.teacher_store("eval")) == 2


def test_frames_carry_the_label_maps(capture: Path, tmp_path: Path):
    found = manager(capture, OracleConfig(), tmp_path / "cache")
    frames = found.frames("train")
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.path.name for frame in frames] == ["0001.png", "0002.png", "0004.png", "0005.png"]
    assert [frame.semantics.name for frame in frames if frame.semantics] == [frame.path.name for frame in frames]
    assert {frame.size for frame in frames} == {(12, 16)}
    assert [frame.path.name for frame in found.frames("eval")] == ["0000.png", "0003.png"]


def test_the_oracle_reads_maps_of_the_full_size_for_downscaled_images(tmp_path: Path):
    data = make_capture(tmp_path / "capture", [(32, 48)] * COUNT, labels=True)
    found = manager(data, OracleConfig(noise=0.0, patch_size=4), tmp_path / "cache", camera_res_scale_factor=0.5)
    found.prepare_features(from_step=0)
    assert found.frames("train")[0].size == (16, 24)
    batch = found.next_train(0)[1]
    assert int(batch["indices"][:, 1].max()) < 16
    torch.testing.assert_close(batch["features"].norm(dim=1), torch.ones(64), atol=1e-3, rtol=0)


def test_a_capture_without_label_maps_has_no_oracle(tmp_path: Path):
    data = make_capture(tmp_path / "capture", [(12, 16)] * COUNT)
    found = manager(data, OracleConfig(), tmp_path / "cache")
    with pytest.raises(UserError, match="needs label maps, and 4 of 4 images have no semantics map"):
        found.prepare_features(from_step=0)


@pytest.mark.parametrize("extractor", [DinoConfig(layer=9), HandcraftedConfig(), PrecomputedConfig(), OracleConfig()])
def test_configs_survive_config_yml(extractor, tmp_path: Path):
    config = FeatureDataManagerConfig(data=tmp_path, extractor=extractor, feature_dim=3, cache_dir=tmp_path)
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config
