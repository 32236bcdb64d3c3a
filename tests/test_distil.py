"""`jacobinerf distil` and `jacobinerf query`, from a run to files, and what they refuse."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.cli.distil import Distil
from jacobinerf_ns.cli.query import Query
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.run.opened import Run, open_run
from jacobinerf_ns.run.photos import list_photos
from jacobinerf_ns.tasks import queries as feature_queries
from jacobinerf_ns.tasks.feature_field import files as feature_field_files
from jacobinerf_ns.tasks.feature_field.field import FeatureField
from jacobinerf_ns.tasks.feature_field.files import FILE_NAME, load_feature_field, save_feature_field


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distil")
    config = tiny_config(tiny_capture(folder / "room"), folder)
    config.pipeline.datamanager.extractor = HandcraftedConfig(cell=2)
    trainer = start(config)
    trainer.train()
    return trainer.base_dir / "config.yml"


@pytest.fixture(scope="module")
def run(config_path: Path) -> Run:
    run = open_run(config_path, load_photos=True)
    run.pipeline.eval()
    return run


@pytest.fixture
def feature_field(run: Run) -> Iterator[FeatureField]:
    field = FeatureField(run.pipeline.model.field, dims=64)
    torch.nn.init.normal_(field.encoding.hash_table)
    yield field
    (run.folder / FILE_NAME).unlink(missing_ok=True)


@contextmanager
def changed(config: Any, **fields: Any) -> Iterator[None]:
    before = {name: getattr(config, name) for name in fields}
    vars(config).update(fields)
    try:
        yield
    finally:
        vars(config).update(before)


def test_a_saved_field_comes_back_as_it_was(run, feature_field):
    path = save_feature_field(run, feature_field)
    assert path == run.folder / "feature_field.pt"
    loaded = load_feature_field(run, HandcraftedConfig(cell=2).setup().fingerprint())
    traced = run.pipeline.model.trace(run.pipeline.random_training_rays(5))
    assert torch.equal(loaded.rendered(traced), feature_field.rendered(traced))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(UserError, match=r"feature_field.pt is there already"):
        save_feature_field(run, feature_field)
    save_feature_field(run, feature_field, overwrite=True)


def test_a_field_of_something_else_is_refused(run, feature_field):
    with pytest.raises(UserError, match=r"feature_field.pt is not there: run jacobinerf distil first"):
        load_feature_field(run)
    save_feature_field(run, feature_field)
    with pytest.raises(
        UserError, match=r"distilled at step 7, the run's checkpoint is of 9: run jacobinerf distil again"
    ):
        load_feature_field(replace(run, step=9))
    with pytest.raises(UserError, match=r"another teacher .* run jacobinerf distil again"):
        load_feature_field(run, teacher="someone else")
    with (
        changed(run.pipeline.datamanager.config, extractor=HandcraftedConfig(cell=3)),
        pytest.raises(UserError, match=r"another teacher .* run jacobinerf distil again"),
    ):
        load_feature_field(run)
    bias = run.pipeline.model.field.mlp_head.rgb_layer.bias.data
    kept = bias.clone()
    bias += 1.0
    with pytest.raises(UserError, match=r"other weights .* run jacobinerf distil again"):
        load_feature_field(run)
    bias.copy_(kept)


@pytest.mark.parametrize("content", [b"", b"nonsense", {"version": 99}, {"version": 1}, [1]])
def test_a_damaged_field_is_refused(run, feature_field, content):
    path = run.folder / FILE_NAME
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=r"feature_field.pt is damaged or made by another version"):
        load_feature_field(run)


def test_box_pixels_cover_the_box(monkeypatch):
    assert feature_queries.box_pixels((3, 1, 2, 2), (4, 5), "a.png").tolist() == [[2, 1], [3, 1], [2, 2], [3, 2]]
    monkeypatch.setattr(feature_queries, "MAX_PIXELS", 10)
    few = feature_queries.box_pixels((0, 0, 99, 99), (100, 100), "a.png")
    assert len(few) == 10
    assert few.min() < 40 < 60 < few.max()
    with pytest.raises(UserError, match=r"pixel \(5, 0\) is outside of a.png, which is 5x4 pixels"):
        feature_queries.box_pixels((0, 0, 5, 0), (4, 5), "a.png")


def test_a_click_resembles_itself_most(run, feature_field):
    """The query's own pixel has cosine 1 in its view, and the view's cosines are those of its rendered features."""
    camera = list_photos(run.pipeline.datamanager, "train")[1].camera
    model = run.pipeline.model
    query = feature_queries.query_of_pixels(model, feature_field, camera, np.array([[20, 4]]))
    similarity = feature_queries.view_similarity(model, feature_field, camera, query)
    assert similarity.shape == (18, 24)
    assert similarity[4, 20] == pytest.approx(1.0, abs=1e-4)
    assert similarity[4, 20] >= similarity.max() - 1e-4
    rays = camera.generate_rays(camera_indices=0, coords=torch.tensor([[7.5, 2.5]]))
    with torch.no_grad():
        other = feature_field.rendered(model.trace(rays))
    assert similarity[7, 2] == pytest.approx(float(F.cosine_similarity(other, query[None])), abs=1e-4)


def test_a_picture_is_seen_through_the_teacher(tmp_path):
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[:, 6:] = (200, 30, 30)
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    teacher = HandcraftedConfig(cell=2).setup()
    left, right = (
        feature_queries.query_of_picture(teacher, tmp_path / "patch.png", box) for box in ((0, 0, 2, 7), (9, 0, 11, 7))
    )
    whole = feature_queries.query_of_picture(teacher, tmp_path / "patch.png")
    likeness = [float(F.cosine_similarity(side, whole, dim=0)) for side in (left, right)]
    assert float(F.cosine_similarity(left, right, dim=0)) < min(likeness) < 0.95
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text.png cannot be read"):
        feature_queries.query_of_picture(teacher, tmp_path / "text.png")
    with pytest.raises(UserError, match=r"pixel \(12, 0\) is outside of patch.png"):
        feature_queries.query_of_picture(teacher, tmp_path / "patch.png", (0, 0, 12, 0))
    with pytest.raises(UserError, match=r"the oracle teacher needs label maps"):
        feature_queries.query_of_picture(OracleConfig().setup(), tmp_path / "patch.png")


def test_answers_have_the_photos_size():
    values = torch.arange(12.0).view(3, 4)
    assert feature_queries.at_photo_size(values, (3, 4)) is values
    large = feature_queries.at_photo_size(values, (6, 8))
    assert large.shape == (6, 8)
    assert float(large[2, 3]) == pytest.approx(5.0 - 0.25 * 4 + 0.25 * 1, abs=1e-5)


def test_queries_that_see_nothing_are_refused(run, feature_field):
    for parameter in feature_field.parameters():
        torch.nn.init.zeros_(parameter)
    camera = list_photos(run.pipeline.datamanager, "train")[0].camera
    with pytest.raises(UserError, match="the pixels that were named see nothing"):
        feature_queries.query_of_pixels(run.pipeline.model, feature_field, camera, np.array([[1, 1]]))


def test_from_run_to_masks(config_path, tmp_path, capsys):
    """distil, then the three kinds of query, by the command line's own options."""
    field = config_path.parent / FILE_NAME
    short = ["--steps", "5", "--rays", "32", "--pool", "100"]
    common = ["--load-config", str(config_path)]
    weights = config_path.read_bytes()
    tyro.cli(Distil, args=[*common, *short]).main()
    printed = capsys.readouterr().out
    assert str(field) in printed.replace("\n", "")
    assert "Distilling" in printed
    assert config_path.read_bytes() == weights
    with pytest.raises(UserError, match=r"is there already: query it, or give --overwrite"):
        tyro.cli(Distil, args=[*common, *short]).main()
    tyro.cli(Distil, args=[*common, *short, "--overwrite", "--max-res", "32"]).main()
    run = open_run(config_path)
    assert load_feature_field(run).shape.max_res == 32
    photos = list_photos(run.pipeline.datamanager, "all")
    patch = photos[0].path
    queries = {
        "click": ["--image", photos[0].path.name, "--click", "3", "4", "--threshold", "-1.1"],
        "box": ["--image", photos[0].path.name, "--box", "3", "4", "6", "8", "--split", "test", "--threshold", "1.1"],
        "patch": ["--patch", str(patch), "--box", "3", "4", "6", "8", "--split", "train"],
    }
    counts = {}
    for name, arguments in queries.items():
        found = tyro.cli(Query, args=[*common, "--output-dir", str(tmp_path / name), *arguments]).main()
        masks, maps = (sorted((tmp_path / name / folder).iterdir()) for folder in ("masks", "heat_maps"))
        assert [path.name for path in masks] == [path.name for path in maps]
        counts[name] = len(masks)
        white = [np.asarray(Image.open(path)) for path in masks]
        assert all(mask.shape == (18, 24) and set(np.unique(mask)) <= {0, 255} for mask in white)
        assert found == sum(mask.any() for mask in white)
        assert np.asarray(Image.open(maps[0])).shape == (18, 24, 3)
        if name != "patch":
            assert {mask.all() for mask in white} == {name == "click"}  # thresholds that all and none reach
    assert counts == {"click": 6, "box": 2, "patch": 4}
    names = {path.name for path in (tmp_path / "click" / "masks").iterdir()}
    assert names == {photo.path.with_suffix(".png").name for photo in photos}
    field.unlink()


def test_files_are_kept_and_photos_are_safe(config_path, run, feature_field, tmp_path):
    save_feature_field(run, feature_field)
    command = Query(config_path, tmp_path, image="0000", click=(1, 1), split="test")
    command.main()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    with pytest.raises(UserError, match=r"is there already: choose another --output-dir, or --overwrite"):
        replace(command, click=(20, 2)).main()
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    replace(command, click=(20, 2), overwrite=True).main()
    assert before != {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    with pytest.raises(UserError, match=r"is a capture, with its own images"):
        replace(command, output_dir=run.pipeline.datamanager.get_datapath(), overwrite=True).main()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written"):
        replace(command, output_dir=tmp_path / "file").main()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "what to look for"),
        ({"image": "a.png", "patch": Path("b.png")}, "what to look for"),
        ({"image": "a.png"}, "needs either --click X Y or --box"),
        ({"image": "a.png", "click": (1, 1), "box": (0, 0, 1, 1)}, "needs either --click X Y or --box"),
        ({"patch": Path("b.png"), "click": (1, 1)}, "--click belongs to --image"),
    ],
)
def test_queries_that_do_not_say_what_to_look_for(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Query(tmp_path / "config.yml", tmp_path, **options).main()


def test_bad_input_is_one_line(config_path, run, feature_field, tmp_path):
    with pytest.raises(UserError, match=r"--steps 0 given, expected at least 1"):
        Distil(config_path, steps=0).main()
    with pytest.raises(UserError, match=r"--max-res 8 given, expected at least 16"):
        Distil(config_path, max_res=8).main()
    with pytest.raises(UserError, match=r"run jacobinerf distil first"):
        Query(config_path, tmp_path, image="0000", click=(1, 1)).main()
    save_feature_field(run, feature_field)
    with pytest.raises(UserError, match=r"pixel \(24, 1\) is outside of .*, which is 24x18 pixels"):
        Query(config_path, tmp_path, image="0000", click=(24, 1)).main()
    with pytest.raises(UserError, match=r"no image 'nobody.png' among the 4 training images"):
        Query(config_path, tmp_path, image="nobody.png", click=(1, 1)).main()
    with pytest.raises(UserError, match="this run's teacher knows no words: name one that does"):
        Query(config_path, tmp_path, text="wall").main()
    assert not list(tmp_path.iterdir())
    assert feature_field_files.feature_field_path(run).exists()
