"""The front door: `import jacobinerf_ns as jn`, from opening a run to saved clicks, on a tiny run."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import tyro
from nbclient import NotebookClient
from nerfstudio.configs.method_configs import method_configs
from PIL import Image
from tiny import start, tiny_capture, tiny_config

import jacobinerf_ns as jn
from jacobinerf_ns.annotations.schema import PALETTE, Annotations, Click, Mask
from jacobinerf_ns.annotations.store import read_annotations, write_annotations
from jacobinerf_ns.cli.annotate import Annotate
from jacobinerf_ns.core.propagation import PAPER_PROPAGATION, PropagationConfig
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.files.grids import resample
from jacobinerf_ns.tasks.masks import propagate
from jacobinerf_ns.tasks.settings import PropagateSettings

assert method_configs  # nerfstudio's own configs have to be imported before any plugin's

WIDTH, HEIGHT = 24, 18
NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on photos at half their size."""
    folder = tmp_path_factory.mktemp("door")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        config = tiny_config(tiny_capture(folder / "capture"), folder / "runs", steps=120)
        config.pipeline.datamanager.dataparser = JacobiNeRFDataParserConfig(downscale_factor=2)
        trainer = start(config)
        trainer.train()
        yield trainer.base_dir / "config.yml"


@pytest.fixture(scope="module")
def run(config_path: Path) -> jn.Run:
    """Opened once; what is saved is saved through runs of the tests' own."""
    return jn.open_run(str(config_path))


@pytest.fixture
def own_file(config_path: Path) -> Iterator[Path]:
    """Where the run's annotations lie; gone after the test."""
    path = config_path.parent / "annotations.json"
    yield path
    path.unlink(missing_ok=True)
    shutil.rmtree(path.parent / "masks", ignore_errors=True)


@pytest.fixture(scope="module")
def image(run: jn.Run) -> str:
    return run.photos("train")[0].path.name


@pytest.fixture(scope="module")
def notes(run: jn.Run, image: str) -> jn.Notes:
    """Two labels, clicked."""
    two = run.annotations.click("wall", image=image, xy=(3, 3)).click("floor", image=image, xy=(12, 16))
    return two.click("wall", image=image, xy=(20, 5))


@pytest.fixture(scope="module")
def labels(run: jn.Run, notes: jn.Notes) -> jn.Labels:
    return run.fit(notes)


def png(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, jacobinerf_ns as jn; "
        "heavy = {'torch', 'nerfstudio', 'numpy', 'pydantic'} & set(sys.modules); "
        "assert not heavy, heavy; assert {'open_run', 'Run', 'UserError'} <= set(dir(jn)); "
        "assert not hasattr(jn, 'nothing'); from jacobinerf_ns import UserError; "
        "assert issubclass(UserError, ValueError) and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", jn.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(jn, name).__name__ == name
    assert name in dir(jn)


def test_clicks_are_counted_in_the_original_photo(notes: jn.Notes, image: str):
    first, second = notes.annotations.labels
    assert (first.name, first.id, first.colour) == ("wall", 1, PALETTE[0])
    assert (second.name, second.id, second.colour) == ("floor", 2, PALETTE[1])
    assert notes.annotations.seeds[0] == Click(label=1, image=image, pixel=(3, 3), width=WIDTH, height=HEIGHT)
    assert [seed.label for seed in notes.annotations.seeds] == [1, 2, 1]
    assert "wall: 2, floor: 1" in repr(notes)


def test_notes_never_change(run: jn.Run, notes: jn.Notes, image: str, own_file: Path):
    before = notes.annotations
    more = notes.click(" wall ", image=image, xy=np.array([1, 2]), negative=True).rename("floor", "ground")
    assert notes.annotations is before
    assert [label.name for label in more.annotations.labels] == ["wall", "ground"]
    assert more.annotations.seeds[-1].negative
    assert more.remove("wall").annotations.labels == more.annotations.labels[1:]
    assert len(more.remove("wall").annotations.seeds) == 1
    with pytest.raises(FrozenInstanceError):
        notes.annotations = more.annotations  # pyright: ignore[reportAttributeAccessIssue]
    assert not own_file.exists()
    assert run.annotations.annotations == Annotations()


def test_scribbles_and_boxes(notes: jn.Notes, image: str):
    seeds = (
        notes.scribble("lamp", image, [(1, 1), (5, 2)], radius=1)
        .box("lamp", image, corner=(2, 2), opposite=(4, 6), negative=True)
        .annotations.seeds
    )
    assert [seed.kind for seed in seeds[-2:]] == ["scribble", "box"]
    assert [seed.negative for seed in seeds[-2:]] == [False, True]


@pytest.mark.parametrize(
    ("photo", "xy", "words"),
    [
        ("0000.png", (24, 3), r"pixel \(24, 3\) is outside of 0000\.png, .* x in 0\.\.23 and y in 0\.\.17"),
        ("0000.png", (3, -1), "outside of 0000"),
        ("0000.png", (3.5, 1), "valid integer"),
        ("0000.png", (3,), r"pixel\[1\]: this entry is missing"),
        ("00.png", (3, 3), r"no image '00\.png' among the 4 training images: did you mean 0"),
        ("0001.png", (3, 3), r"no image '0001\.png'"),  # held out: only training photos can be clicked in
    ],
)
def test_clicks_that_meet_nothing(notes: jn.Notes, photo: str, xy: tuple, words: str):
    with pytest.raises(jn.UserError, match=words):
        notes.click("wall", image=photo, xy=xy)


def test_sizes_and_labels_that_are_alone(run: jn.Run, notes: jn.Notes, image: str, config_path: Path, tmp_path: Path):
    """A label alone is what responds at least as its level says, here as in the files that `propagate` writes."""
    alone = notes.remove("floor")
    levels = run.fit(alone).snapshot.levels(0)
    areas = []
    for grow in (-9, 0, 9):
        labels = run.fit(alone.grow("wall", grow))
        view, threshold = labels.render(image), levels.levels[levels.used(grow)]
        # In one piece, so perhaps not all that responds.
        assert (view.response("wall")[view.mask("wall")] >= threshold).all()
        areas.append(view.mask("wall").sum())
        asked = PropagateSettings(split="train", grow=grow)
        write_annotations(tmp_path / "notes.json", alone.annotations)
        folder = propagate(config_path, tmp_path / f"out{grow}", asked, tmp_path / "notes.json").folder
        size = next(photo.size for photo in run.photos("train") if photo.path.name == image)
        np.testing.assert_array_equal(resample(view.ids, size), png(folder / image))
    assert areas == sorted(areas)
    settings = alone.annotations.view.model_copy(update={"propagation": PropagationConfig(connected=False)})
    loose = replace(alone, annotations=alone.annotations.model_copy(update={"view": settings}))
    levels = run.fit(loose).snapshot.levels(0)
    for grow in (-9, 0, 9):
        view, threshold = run.fit(loose.grow("wall", grow)).render(image), levels.levels[levels.used(grow)]
        np.testing.assert_array_equal(view.mask("wall"), view.response("wall") >= threshold)
    assert (run.fit(alone, threshold=0.0).render(image).response("wall") > 0).sum() == (
        run.fit(alone, threshold=0.0).render(image).mask("wall").sum()
    )
    with pytest.raises(jn.UserError, match="no label 'lamp'"):
        notes.grow("lamp", 1)


def test_names_that_are_not_there(notes: jn.Notes):
    for change in (lambda: notes.rename("flor", "ground"), lambda: notes.remove("flor")):
        with pytest.raises(jn.UserError, match="no label 'flor' among 2 labels: did you mean floor"):
            change()
    with pytest.raises(jn.UserError, match="two labels have the name wall"):
        notes.rename("floor", "wall")


def test_a_view_has_all_that_belongs_to_it(labels: jn.Labels, image: str):
    view = labels.render(image)
    small = (HEIGHT // 2, WIDTH // 2)
    assert labels.names == ("wall", "floor")
    assert view.rgb.shape == (*small, 3)
    assert view.rgb.dtype == view.depth.dtype == view.confidence.dtype == np.float32
    assert view.depth.shape == view.ids.shape == view.confidence.shape == small
    assert 0 <= view.rgb.min() <= view.rgb.max() <= 1
    assert view.mask("wall").dtype == bool
    np.testing.assert_array_equal(view.mask("floor"), view.ids == 2)
    np.testing.assert_array_equal(view.mask("floor"), view.response("floor") > view.response("wall"))
    assert view.response("wall")[1, 1] == pytest.approx(1.0, abs=1e-5)
    painted = view.overlay(opacity=1.0)
    walls = painted[view.mask("wall")]
    np.testing.assert_allclose(walls, np.broadcast_to(np.array(PALETTE[0]) / 255, walls.shape), atol=1e-6)
    np.testing.assert_array_equal(view.overlay(opacity=0.0), view.rgb)
    for ask in (view.mask, view.response):
        with pytest.raises(jn.UserError, match=r"no label 'chair' in this view: expected one of 'wall', 'floor'"):
            ask("chair")


def test_views_by_photo_and_by_camera_are_the_same(run: jn.Run, labels: jn.Labels):
    for photo in run.photos("all"):
        by_name = labels.render(photo.name)
        for view in (labels.render(photo.path.stem), labels.render(photo.camera), labels.render(photo.camera[0])):
            np.testing.assert_array_equal(view.rgb, by_name.rgb)
            np.testing.assert_array_equal(view.responses, by_name.responses)
    assert labels.render("0001", full_resolution=True).ids.shape == (HEIGHT, WIDTH)


def test_views_that_there_are_not(run: jn.Run, labels: jn.Labels):
    cameras = run.pipeline.datamanager.train_dataset.cameras
    with pytest.raises(jn.UserError, match=r"no image '0009\.jpg' among the 6 photos"):
        labels.render("0009.jpg")
    with pytest.raises(jn.UserError, match="found 4 cameras, expected one"):
        labels.render(cameras)
    with pytest.raises(jn.UserError, match="full_resolution is about photos"):
        labels.render(cameras[:1], full_resolution=True)
    with pytest.raises(jn.UserError, match="no split 'val': expected one of 'train', 'test', 'all'"):
        labels.render_all("val")  # pyright: ignore[reportArgumentType]


def test_all_views_of_a_split_come_when_they_are_asked_for(
    run: jn.Run, labels: jn.Labels, capsys: pytest.CaptureFixture[str]
):
    views = labels.render_all("test", full_resolution=True, progress=False)
    assert next(views)[1].ids.shape == (HEIGHT, WIDTH)
    assert [name for name, _ in views] == [run.photos("test")[1].name]
    assert capsys.readouterr().out == ""
    assert [name for name, _ in labels.render_all()] == [photo.name for photo in run.photos("all")]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("settings", [{}, {"refine": 2, "smooth": 0.5, "space": "3d", "void_below": 0.3}])
def test_ids_are_what_propagate_writes(
    run: jn.Run, notes: jn.Notes, config_path: Path, tmp_path: Path, settings: dict, full: bool
):
    write_annotations(tmp_path / "notes.json", notes.annotations)
    asked = PropagateSettings(full_resolution=full, **settings)
    folder = propagate(config_path, tmp_path / "out", asked, tmp_path / "notes.json").folder
    labels = run.fit(notes, **settings)
    photos = run.photos("all")
    assert len(photos) == 6
    for photo in photos:
        ids = labels.render(photo.name, full_resolution=full).ids
        np.testing.assert_array_equal(resample(ids, photo.size), png(folder / photo.path.name))
        if full:
            assert ids.shape == photo.size


def test_labels_stay_as_they_were_fitted(run: jn.Run, notes: jn.Notes, image: str, own_file: Path):
    labels = run.fit(notes)
    before = labels.render(image)
    other = run.fit(notes.remove("floor").click("lamp", image=image, xy=(1, 16)), void_below=0.9)
    write_annotations(own_file, Annotations())
    after = labels.render(image)
    assert other.names == ("wall", "lamp")
    assert (other.render(image).ids != before.ids).any()
    for name in ("rgb", "ids", "confidence", "responses"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_settings_of_one_fit(run: jn.Run, notes: jn.Notes, image: str):
    given = {"refine": 3, "smooth": 0.25, "space": "3d", "void_below": 0.2, "threshold": 0.9}
    config = run.fit(notes, **given).snapshot.config  # type: ignore[arg-type]
    assert {name: getattr(config, name) for name in given} == given
    assert run.fit(notes).snapshot.config == notes.annotations.view.propagation
    assert (run.fit(notes, void_below=1.0).render(image).ids == 0).all()


def test_one_more_click_renders_just_that(run: jn.Run, notes: jn.Notes, image: str, monkeypatch: pytest.MonkeyPatch):
    run.fit(notes)
    asked, trace = [], run.pipeline.model.trace

    def counted(rays):
        asked.append(len(rays))
        return trace(rays)

    monkeypatch.setattr(run.pipeline.model, "trace", counted)
    run.fit(notes.click("wall", image=image, xy=(2, 8)))
    assert asked == [1]


def test_what_no_label_can_be_made_of(run: jn.Run, notes: jn.Notes, image: str, monkeypatch: pytest.MonkeyPatch):
    def refused(notes: jn.Notes, words: str, **settings) -> None:
        with pytest.raises(jn.UserError, match=words):
            run.fit(notes, **settings)

    refused(run.annotations, "no label is there to fit: click first")
    against = notes.click("lamp", image=image, xy=(1, 1), negative=True)
    refused(against, "label 'lamp' has no positive seed: click it")
    refused(notes, r"refine is -1, expected 0\.\.1000", refine=-1)
    refused(notes, r"propagation\.space: expected '2d' or '3d', found '4d'", space="4d")
    paper = run.annotations.annotations.model_copy(update={"view": notes.annotations.view})
    paper = paper.model_copy(update={"view": paper.view.model_copy(update={"propagation": PAPER_PROPAGATION})})
    with pytest.raises(jn.UserError, match=r"void_below does nothing .* 'paper'"):
        run.fit(paper, void_below=0.5)

    trace = run.pipeline.model.trace

    def empty(rays):
        traced = trace(rays)
        return traced._replace(outputs={**traced.outputs, "accumulation": torch.zeros(len(rays), 1)})

    monkeypatch.setattr(run.pipeline.model, "trace", empty)
    refused(notes.click("lamp", image=image, xy=(7, 7)), r"no seed of label 'lamp' hits a surface \(1 tried")


def test_what_is_saved_is_what_the_command_reads(config_path: Path, notes: jn.Notes, image: str, own_file: Path):
    run = jn.open_run(config_path)
    assert run.save(notes) is None
    shown = tyro.cli(Annotate, args=["--load-config", str(config_path)]).main()
    assert shown == notes.annotations
    clicked = ["--label", "lamp", "--image", image, "--click", "4", "5"]
    after = tyro.cli(Annotate, args=["--load-config", str(config_path), *clicked]).main()
    assert run.annotations.annotations == after
    assert len(run.annotations.annotations.labels) == 3


def test_what_others_saved_is_not_lost(config_path: Path, notes: jn.Notes, image: str, own_file: Path):
    run = jn.open_run(config_path)
    run.save(notes)
    run.save(notes)
    run.save(notes.click("lamp", image=image, xy=(1, 1)))
    run.save(notes)  # what this run saved, it may replace
    assert read_annotations(own_file) == notes.annotations
    tyro.cli(Annotate, args=["--load-config", str(config_path), "--label", "wall", "--rename", "back wall"]).main()
    before = own_file.read_bytes()
    with pytest.raises(jn.UserError, match=r"annotations\.json was changed by another program .* run\.annotations"):
        run.save(notes.click("lamp", image=image, xy=(1, 1)))
    assert own_file.read_bytes() == before
    run.save(run.annotations.click("back wall", image=image, xy=(1, 1)))
    assert len(read_annotations(own_file).seeds) == len(notes.annotations.seeds) + 1
    own_file.write_text("{")
    with pytest.raises(jn.UserError, match=r"annotations\.json is not valid JSON"):
        run.save(notes)
    with pytest.raises(jn.UserError, match=r"annotations\.json is not valid JSON"):
        _ = run.annotations


def test_notes_of_another_file_are_refused(config_path: Path, notes: jn.Notes, tmp_path: Path):
    other = jn.open_run(config_path, annotations=str(tmp_path / "other.json"))
    with pytest.raises(jn.UserError, match=r"belong to .*annotations\.json, expected .*other\.json"):
        other.save(notes)
    assert not (tmp_path / "other.json").exists()


def test_masks_are_files_from_when_they_are_saved(
    config_path: Path, run: jn.Run, notes: jn.Notes, image: str, own_file: Path
):
    drawn = np.zeros((HEIGHT, WIDTH), dtype=bool)
    drawn[2:9, 3:7] = True
    masked = notes.mask("lamp", image, drawn).mask("floor", image, drawn * 255, negative=True)
    first = run.fit(masked).render(image)
    assert not (own_file.parent / "masks").exists()
    jn.open_run(config_path).save(masked)
    seeds = [seed for seed in read_annotations(own_file).seeds if isinstance(seed, Mask)]
    assert len(seeds) == 2
    np.testing.assert_array_equal(png(own_file.parent / seeds[0].file) == seeds[0].value, drawn)
    opened = jn.open_run(config_path)
    for again in (opened.annotations, opened.annotations.mask("lamp", image, ~drawn).mask("lamp", image, drawn)):
        assert set(again.annotations.labels) == set(masked.annotations.labels)
        opened.fit(again)
    np.testing.assert_array_equal(opened.fit(opened.annotations).render(image).ids, first.ids)
    with pytest.raises(jn.UserError, match=r"shape \(9, 12\), expected \(18, 24\)"):
        notes.mask("lamp", image, drawn[::2, ::2])
    with pytest.raises(jn.UserError, match="no pixel that is true"):
        notes.mask("lamp", image, ~drawn & drawn)


def test_what_cannot_be_opened(config_path: Path, tmp_path: Path):
    with pytest.raises(jn.UserError, match="no such file"):
        jn.open_run(tmp_path / "config.yml")
    (tmp_path / "config.yml").write_text("just: words\n")
    with pytest.raises(jn.UserError, match=r"is not a config\.yml that training wrote"):
        jn.open_run(str(tmp_path / "config.yml"))
    checkpoints = config_path.parent / "nerfstudio_models"
    checkpoints.rename(tmp_path / "away")
    try:
        with pytest.raises(jn.UserError, match=r"no step-\*\.ckpt in .*nerfstudio_models"):
            jn.open_run(config_path)
    finally:
        (tmp_path / "away").rename(checkpoints)


def test_a_run_says_what_it_is(run: jn.Run, labels: jn.Labels, image: str):
    assert repr(run) == f"Run(jacobinerf-lite, step 119, {run.folder})"
    assert repr(labels) == "Labels(wall, floor)"
    assert repr(labels.render(image)) == "LabelledView(12x9: wall, floor)"


def outputs_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(config_path: Path, notes: jn.Notes, image: str, own_file: Path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = (
        f"CONFIG, PHOTO = {str(config_path)!r}, {image!r}\nCHAIR, SOFA, SOFA_BACK = (3, 3), (12, 16), (5, 8)"
    )
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = outputs_of(notebook)
    assert [output.ename for output in outputs if output.output_type == "error"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert "4 training photos, 2 held out" in "".join(output.get("text", "") for output in outputs)
    saved = read_annotations(own_file)
    assert [label.name for label in saved.labels] == ["chair", "sofa"]
    assert len(saved.seeds) == 3


def test_the_notebook_shows_its_pictures():
    outputs = outputs_of(nbformat.read(NOTEBOOK, as_version=4))
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert {output.output_type for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert NOTEBOOK.stat().st_size < 600_000
