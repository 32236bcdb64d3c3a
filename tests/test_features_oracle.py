"""The teacher made of label maps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.oracle import OracleConfig


@pytest.fixture
def frame(tmp_path: Path) -> Frame:
    """16x24: class 1 left, class 2 right, a void block; two instances of class 1."""
    labels = np.ones((16, 24), dtype=np.uint8)
    labels[:, 12:] = 2
    labels[8:, 16:] = 0
    instances = np.full((16, 24), 7, dtype=np.uint8)
    instances[8:] = 9
    Image.fromarray(labels).save(tmp_path / "classes.png")
    Image.fromarray(instances).save(tmp_path / "instances.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    return Frame(0, tmp_path / "image.png", (16, 24), None, tmp_path / "classes.png", tmp_path / "instances.png")


def test_clean_features_are_patch_means_of_unit_vectors(frame: Frame):
    values = OracleConfig(noise=0.0).setup().extract(frame).values
    assert values.shape == (2, 3, 64)
    torch.testing.assert_close(values[0, 0].norm(), torch.tensor(1.0))
    torch.testing.assert_close(values[0, 0], values[1, 0])
    torch.testing.assert_close(values[0, 1], (values[0, 0] + values[0, 2]) / 2)
    assert values[1, 2].abs().max() == 0
    assert values[0, 0] @ values[0, 2] < 0.5


def test_class_vectors_are_the_same_in_every_image(frame: Frame, tmp_path: Path):
    Image.fromarray(np.full((16, 24), 2, dtype=np.uint8)).save(tmp_path / "other.png")
    other = replace(frame, semantics=tmp_path / "other.png")
    oracle = OracleConfig(noise=0.0).setup()
    torch.testing.assert_close(oracle.extract(other).values[0, 0], oracle.extract(frame).values[0, 2])
    changed = OracleConfig(noise=0.0, seed=1).setup().extract(frame).values
    assert not torch.allclose(changed[0, 0], oracle.extract(frame).values[0, 0])


def test_instances_are_told_apart_on_request(frame: Frame):
    values = OracleConfig(noise=0.0, per_instance=True).setup().extract(frame).values
    assert not torch.allclose(values[0, 0], values[1, 0])
    shared = OracleConfig(noise=0.0).setup().extract(frame).values[0, 0]
    assert values[0, 0] @ shared > 0.5


def test_noise_of_one_is_an_eighth_of_the_mean_length_per_component(tmp_path: Path):
    Image.fromarray(np.full((320, 320), 3, dtype=np.uint8)).save(tmp_path / "classes.png")
    Image.fromarray(np.zeros((320, 320, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    frame = Frame(0, tmp_path / "image.png", (320, 320), None, tmp_path / "classes.png")
    clean = OracleConfig(noise=0.0).setup().extract(frame).values
    for noise in (1.0, 3.0):
        difference = OracleConfig(noise=noise).setup().extract(frame).values - clean
        assert difference.std().item() == pytest.approx(noise * clean.norm(dim=-1).mean().item() / 8, rel=0.02)


def test_noise_is_fixed_per_image_and_seed_wherever_the_image_lies(frame: Frame, tmp_path: Path):
    first = OracleConfig().setup().extract(frame).values
    moved = tmp_path / "elsewhere.png"
    moved.write_bytes(frame.path.read_bytes())
    assert torch.equal(first, OracleConfig().setup().extract(replace(frame, path=moved, index=5)).values)
    note = PngImagePlugin.PngInfo()
    note.add_text("made", "at another time")
    with Image.open(frame.path) as image:
        image.save(moved, pnginfo=note)
    assert torch.equal(first, OracleConfig().setup().extract(replace(frame, path=moved)).values)
    Image.new("RGB", (24, 16)).save(tmp_path / "black.png")
    assert not torch.allclose(first, OracleConfig().setup().extract(replace(frame, path=tmp_path / "black.png")).values)
    assert not torch.allclose(first, OracleConfig(seed=1).setup().extract(frame).values)


def test_missing_label_maps_are_counted_and_named(frame: Frame):
    bare = replace(frame, path=Path("0007.png"), semantics=None, instances=None)
    with pytest.raises(UserError, match=r"1 of 2 images have no semantics map \(first: 0007\.png\).*semantics_path"):
        OracleConfig().setup().check([frame, bare])
    with pytest.raises(UserError, match="no instances map"):
        OracleConfig(per_instance=True).setup().check([replace(frame, instances=None)])
    OracleConfig().setup().check([replace(frame, instances=None)])


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="patch size 0 and noise 1 given"):
        OracleConfig(patch_size=0).setup()
    with pytest.raises(UserError, match="noise -1 given"):
        OracleConfig(noise=-1.0).setup()


def test_sources_hold_label_maps_that_count(frame: Frame):
    assert frame.instances not in OracleConfig().setup().sources(frame)
    sources = OracleConfig(per_instance=True).setup().sources(frame)
    assert {frame.path, frame.semantics, frame.instances} <= set(sources)


def test_words_are_the_vectors_of_class_names(frame: Frame, tmp_path: Path):
    (tmp_path / "classes.json").write_text('{"classes": [{"id": 1, "name": "Chair"}, {"id": 2, "name": "wall"}]}')
    oracle = OracleConfig(noise=0.0, by_name=True).setup()
    words = oracle.encode([" chair", "Wall", "giraffe"])
    values = oracle.extract(frame).values
    torch.testing.assert_close(words[:2], torch.stack([values[0, 0], values[0, 2]]))
    torch.testing.assert_close(words.norm(dim=-1), torch.ones(3))
    assert (words[2] @ words[:2].T).abs().max() < 0.5
    with pytest.raises(UserError, match="knows words only by name: give oracle --by-name"):
        OracleConfig().setup().encode(["chair"])
