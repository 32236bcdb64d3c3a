"""Simulated clicks, nearest prototypes, contact sheets, and the demo from end to end (made small)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.cli.demo import Demo
from jacobinerf_ns.demo import contact_sheet
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation import shaping_quality
from jacobinerf_ns.evaluation.annotators import view_with_most_ids
from jacobinerf_ns.evaluation.one_click import centre_pixel
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.files.pictures import Tile, heat_map, write_sheet
from jacobinerf_ns.labels.truth import read_truth


def test_clicks_lie_on_their_class_and_depend_on_the_seed_only():
    classes = torch.tensor([[0, 1, 1, 2], [3, 3, 1, 2]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    clicks = shaping_quality.one_click_per_class(classes, seed=5)
    assert [click.label for click in clicks] == [1, 2, 3]  # void is no class
    assert all(classes[click.row, click.col] == click.label for click in clicks)
    assert clicks == shaping_quality.one_click_per_class(classes, seed=5)
    assert clicks != shaping_quality.one_click_per_class(classes, seed=6)


def test_the_view_with_most_classes_is_clicked():
    views = torch.tensor([[[1, 1]], [[1, 2]], [[0, 2]], [[2, 3]]])
    assert view_with_most_ids(list(views)) == 1


def test_nearest_label_is_by_cosine_not_by_length():
    vectors = torch.tensor([[10.0, 1.0], [0.1, 1.0]])
    prototypes = torch.tensor([[0.0, 100.0], [0.01, 0.0]])
    assert shaping_quality.nearest_label(vectors, prototypes, torch.tensor([7, 4])).tolist() == [4, 7]


def test_perfect_vectors_score_one_and_constant_ones_do_not():
    classes = torch.arange(4).repeat(6, 3) + 1
    perfect = torch.eye(5)[classes]
    by_click, dense = shaping_quality.score_vectors(perfect, perfect.flatten(0, 1), classes, classes.flatten(), (0, 1))
    assert by_click == (1.0, 1.0)
    assert dense == 1.0
    constant = torch.ones_like(perfect)
    by_click, _ = shaping_quality.score_vectors(constant, constant.flatten(0, 1), classes, classes.flatten(), (0,))
    assert by_click[0] == pytest.approx(1 / 16)  # one of four classes is guessed everywhere


def test_a_capture_without_label_maps_cannot_be_scored():
    with pytest.raises(UserError, match=r"no ground truth for 1 of 1 images \(first: a.png\)"):
        read_truth([Frame(0, Path("a.png"), (4, 4))])


def test_rendered_colour_is_the_models_own(tmp_path: Path):
    pipeline = start(tiny_config(tiny_capture(tmp_path / "room"), tmp_path)).pipeline
    pipeline.eval()
    camera = pipeline.datamanager.eval_dataset.cameras[:1]
    view = shaping_quality.render_jacobians(pipeline.model, camera)
    assert torch.allclose(view.rgb, pipeline.model.get_outputs_for_camera(camera)["rgb"], atol=1e-6)
    assert view.jacobians.shape == (18, 24, 3 * (16 + 8))
    with pipeline.model.answering_by("trunk"):
        assert not pipeline.model.answers_as_shaped
        trunk = shaping_quality.render_jacobians(pipeline.model, camera)
    assert pipeline.model.answers_as_shaped
    assert torch.equal(trunk.rgb, view.rgb)
    assert trunk.jacobians.shape == (18, 24, 3 * 16)


def test_teacher_and_field_are_scored_alike(tmp_path: Path):
    config = tiny_config(tiny_capture(tmp_path / "room"), tmp_path)
    data = start(config).pipeline.datamanager
    noisy = shaping_quality.evaluate_teacher(data)
    config.pipeline.datamanager.extractor = OracleConfig(noise=0.0, patch_size=1)
    clean = shaping_quality.evaluate_teacher(start(config).pipeline.datamanager)
    assert clean["mean_click_miou"] > noisy["mean_click_miou"]
    assert clean["cosine_gap"] > 0.9


def test_sheets_hold_their_tiles(tmp_path: Path):
    red = torch.tensor([1.0, 0.0, 0.0]).expand(6, 8, 3)
    write_sheet(tmp_path / "sheet.png", [[Tile(red, "one"), Tile(heat_map(torch.zeros(6, 8)), "two", (3, 4))]], 80)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert (sheet == [255, 0, 0]).all(-1).sum() == 80 * 60


def test_centre_pixel_is_inside_and_deep():
    mask = torch.zeros(9, 11, dtype=torch.bool)
    mask[2:7, 3:8] = True
    assert centre_pixel(mask) == (4, 5)


@pytest.mark.slow
def test_demo_writes_pictures_and_numbers_and_a_run_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(contact_sheet, "PICTURE_WIDTH", 24)  # a field of 12 steps is a fog, and edits look all of it up
    Demo(output_dir=tmp_path, extractor=HandcraftedConfig(), views=6, width=24, steps=12).main()
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 288
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["teacher"]["kind"] == "HandcraftedConfig"
    printed = capsys.readouterr().out
    assert "contact_sheet.png" in printed
    assert len(list(tmp_path.glob("outputs/room/jacobinerf-lite/*/config.yml"))) == 1
    assert numbers["shaped"]["mean"]["own"] != numbers["unshaped"]["mean"]["own"]
