"""Words: where they fit, whether they are there at all, and as seeds of labels."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from tiny import start, tiny_config

import jacobinerf_ns as jn
from jacobinerf_ns.annotations.changes import select
from jacobinerf_ns.annotations.formats.seeds_io import export_seeds
from jacobinerf_ns.annotations.rasterise import rasterise
from jacobinerf_ns.annotations.rays import seed_rays
from jacobinerf_ns.annotations.schema import Annotations, Click, InImage, Label, Place, TextSeed, drawn
from jacobinerf_ns.annotations.store import read_annotations, write_annotations
from jacobinerf_ns.cli.annotate import Annotate
from jacobinerf_ns.cli.distil import Distil
from jacobinerf_ns.cli.query import Query
from jacobinerf_ns.core.relevancy import relevancy, smoothed, spread_places, stands_out
from jacobinerf_ns.demo.capture import write_capture
from jacobinerf_ns.errors import UserError, plain_errors
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.surfaces import SurfacesConfig
from jacobinerf_ns.files.index_maps import read_label_map
from jacobinerf_ns.labels.responses import relevancies
from jacobinerf_ns.labels.snapshot import Relevancy
from jacobinerf_ns.labels.words import compared_with
from jacobinerf_ns.tasks.words import ask

BY_NAME = OracleConfig(noise=0.5, patch_size=2, by_name=True)
PLACES = tuple(Place(image=image, width=24, height=18, pixel=pixel) for image, pixel in (("a", (1, 2)), ("b", (5, 6))))
SEED = TextSeed(label=1, words="a chair", model="some/clip", against=("object",), stands_out=5.5, places=PLACES)


def test_relevancy_is_measured_against_the_likeliest_of_the_others():
    query, others = torch.tensor([0.3, 0.2]), torch.tensor([[0.1, 0.2], [0.2, 0.0]])
    torch.testing.assert_close(relevancy(query, others), torch.tensor([0.7310586, 0.5]))
    pairs = torch.exp(10 * query)[:, None] / (torch.exp(10 * query)[:, None] + torch.exp(10 * others))
    torch.testing.assert_close(relevancy(query, others), pairs.amin(-1))


def test_a_text_stands_out_by_deviations_of_the_others():
    others = torch.tensor([[0.1, 0.3], [0.1, 0.3], [0.2, 0.2]])
    found = stands_out(torch.tensor([0.5, 0.2, 0.2]), others)
    torch.testing.assert_close(found, torch.tensor([3.0, 0.0, 0.0]))
    shifted = stands_out(torch.tensor([5.5, 5.2, 5.2]) * 2, (others + 5) * 2)
    torch.testing.assert_close(shifted, found, atol=1e-3, rtol=1e-3)


def test_values_are_averaged_over_what_resonates():
    jacobians = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.0, 3.0]])
    values = torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    torch.testing.assert_close(smoothed(values, jacobians, 2), torch.tensor([[2.0], [2.0], [15.0], [15.0]]))
    torch.testing.assert_close(smoothed(values, jacobians, 9), torch.full((4, 1), 8.5))


def test_places_are_spread_and_begin_with_the_surest():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [4, 0, 0], [10, 0, 0]])
    assert spread_places(points, torch.tensor([1.0, 5, 2, 2, 2]), 3).tolist() == [1, 2, 3]
    assert spread_places(points, torch.tensor([1.0, 5, 2, 2, 2]), 9).tolist() == [1, 2, 3, 0]


def test_text_seeds_are_kept_and_stand_for_their_places(tmp_path: Path):
    annotations = Annotations(labels=(Label(id=1, name="chair", colour=(1, 2, 3)),), seeds=(SEED,))
    write_annotations(tmp_path / "annotations.json", annotations)
    assert read_annotations(tmp_path / "annotations.json") == annotations
    clicks = tuple(Click(label=1, **dict(place)) for place in PLACES)
    assert drawn(SEED) == SEED.clicks() == clicks
    assert drawn(clicks[0]) == clicks[:1]
    rasters: list[str] = []

    def covered(seed: InImage) -> np.ndarray:
        rasters.append(seed.image)
        return rasterise(seed, tmp_path)

    export_seeds(annotations, covered, tmp_path / "masks", "png")
    assert rasters == ["a", "b"]


def test_rays_of_a_text_are_those_of_its_places_in_the_seeds_order(run: jn.Run):
    data = run.pipeline.datamanager
    names = data.train_dataparser_outputs.image_filenames
    places = tuple(
        Place(image=names[i].name, width=24, height=18, pixel=pixel) for i, pixel in ((2, (5, 6)), (0, (7, 8)))
    )
    text = SEED.model_copy(update={"places": places})
    first = Click(label=1, image=names[1].name, width=24, height=18, pixel=(3, 3))
    label = (Label(id=1, name="chair", colour=(1, 2, 3)),)

    def rays(*seeds):
        annotations = Annotations(labels=label, seeds=seeds)
        return seed_rays(annotations, Path(), data.train_dataset.cameras, names, run.pipeline.world)

    found, expected = rays(first, text, first), rays(first, *text.clicks(), first)
    assert found.index.tolist() == [0, 1, 1, 2]
    torch.testing.assert_close(found.rays.directions, expected.rays.directions)
    torch.testing.assert_close(found.rays.origins, expected.rays.origins)


def test_files_of_the_version_before_are_read_written_and_read_again(tmp_path: Path):
    old = SEED.model_dump(exclude={"relevancy", "photos"})
    content = {"version": 2, "labels": [{"id": 1, "name": "chair", "colour": [1, 2, 3]}], "seeds": [old]}
    file = tmp_path / "annotations.json"
    for version, seeds in ((2, (SEED,)), (1, ())):
        file.write_text(json.dumps({**content, "version": version, "seeds": [old][: len(seeds)]}))
        found = read_annotations(file)
        assert (found.version, found.seeds) == (2, seeds)
        write_annotations(file, found)
        assert read_annotations(file) == found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"words": " "}, "words"),
        ({"words": "x" * 10_000}, "words"),
        ({"words": "a\x00b"}, "control character"),
        ({"places": ()}, "places"),
        ({"relevancy": "?"}, "the relevancy is no base64"),
        ({"relevancy": "A" * 100_000}, "relevancy"),
        ({"places": (PLACES[0].model_copy(update={"pixel": (24, 0)}),)}, r"pixel \(24, 0\) is outside of a"),
    ],
)
def test_damaged_text_seeds_are_refused(changed: dict, message: str):
    with pytest.raises(UserError, match=message), plain_errors():
        TextSeed(**{**dict(SEED), **changed})


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A demo room, with a teacher that stands in for CLIP."""
    folder = tmp_path_factory.mktemp("words")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        data = write_capture(folder / "room", num_views=6, width=48, height=36, num_test=2)
        config = tiny_config(data, folder / "out", steps=60)
        config.pipeline.datamanager.extractor = BY_NAME
        trainer = start(config)
        trainer.train()
        yield trainer.base_dir / "config.yml"


@pytest.fixture(scope="module")
def run(config_path: Path) -> jn.Run:
    return jn.open_run(config_path)


def truth_of(frame: Frame) -> torch.Tensor:
    """Classes of a photo's pixels."""
    assert frame.semantics is not None
    return read_label_map(frame.semantics, frame.size)


def share_of(run: jn.Run, places: tuple[Place, ...], name: str) -> float:
    """Share of places that are of a class."""
    identity = next(key for key, value in _classes(run).items() if value == name)
    frames = {frame.path.name: frame for frame in run.pipeline.datamanager.frames("train")}
    maps = {place.image: truth_of(frames[place.image]) for place in places}
    return float(np.mean([int(maps[p.image][p.pixel[1], p.pixel[0]]) == identity for p in places]))


def test_places_are_of_what_was_asked_for(run: jn.Run):
    for name in ("wall", "floor"):
        answer = run.find(name)
        assert 1 < len(answer.places) <= 8
        assert answer.stands_out > 5
        assert share_of(run, answer.places, name) > 0.7
        assert run.find(name) == answer
    assert str(answer).startswith(f"'floor' is here, at {len(answer.places)} places: it fits ")


def test_nothing_like_that_is_an_answer(run: jn.Run, config_path: Path, capsys: pytest.CaptureFixture[str]):
    answer = run.find("giraffe")
    assert answer.places == ()
    assert answer.stands_out < 3.5
    with pytest.raises(UserError, match="nothing like 'giraffe' here"):
        run.annotations.say("animal", "giraffe")
    command = ["--load-config", str(config_path), "--label", "animal", "--text", "giraffe"]
    assert tyro.cli(Annotate, args=command).main() == Annotations()
    assert "nothing like 'giraffe' here" in capsys.readouterr().out
    assert not (config_path.parent / "annotations.json").exists()


def test_what_is_said_is_a_label_as_any_other(run: jn.Run, config_path: Path):
    notes = run.annotations.say("ground", "Floor").say("house", "wall", against=("floor", "sofa"))
    assert [seed.kind for seed in notes.annotations.seeds] == ["text", "text"]
    view = run.fit(notes).render(run.photos("train")[0].path.name)
    assert set(np.unique(view.ids)) <= {0, 1, 2}
    command = ["--load-config", str(config_path), "--label", "ground", "--text", "Floor"]
    saved = tyro.cli(Annotate, args=command).main()
    try:
        assert saved.seeds == notes.annotations.seeds[:1]
        assert read_annotations(config_path.parent / "annotations.json") == saved
    finally:
        (config_path.parent / "annotations.json").unlink()


def rendered(run: jn.Run, annotations: Annotations) -> torch.Tensor:
    """The output `relevancy` of a held-out view."""
    model, maker = run.pipeline.model, run.pipeline.label_maker()
    model.label_source = lambda: maker.snapshot_of(annotations, Path())
    try:
        outputs = model.get_outputs_for_camera(run.pipeline.datamanager.eval_dataset.cameras[:1])
        rays = run.pipeline.random_training_rays(50)
        assert model(rays)["relevancy"].shape == (50, 1)
    finally:
        model.label_source = None
    return outputs["relevancy"][..., 0]


def test_relevancy_is_an_output_and_needs_no_teacher(run: jn.Run, monkeypatch: pytest.MonkeyPatch):
    (wall,) = (key for key, name in _classes(run).items() if name == "wall")
    notes = run.annotations.say("house", "wall").click("other", run.photos("train")[0].path.name, (3, 3))
    notes = replace(notes, annotations=Annotations.model_validate_json(notes.annotations.model_dump_json()))
    monkeypatch.setattr(OracleConfig, "setup", lambda *_, **__: pytest.fail("a teacher was set up"))
    found, truth = rendered(run, notes.annotations), truth_of(run.pipeline.datamanager.frames("eval")[0])
    assert found[truth == wall].mean() > found[truth != wall].mean() + 0.3
    ids = {label.name: label.id for label in notes.annotations.labels}
    clicked = select(notes.annotations, ids["other"])
    seed = notes.annotations.seeds[0]
    assert isinstance(seed, TextSeed)
    elsewhere = notes.annotations.model_copy(update={"seeds": (seed.model_copy(update={"photos": 99}),)})
    older = notes.annotations.model_copy(update={"seeds": (seed.model_copy(update={"relevancy": ""}),)})
    for annotations in (clicked, elsewhere, older):
        assert not rendered(run, annotations).any()


def test_a_ray_is_as_relevant_as_what_it_resonates_with_most():
    vectors = torch.eye(6)[:, :6]
    jacobians = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]])
    known = Relevancy(vectors, torch.tensor([1.0, 0.5, 0.5, 0.0, 0.25, 0.25]))
    piece: Any = SimpleNamespace(jacobians=jacobians)
    torch.testing.assert_close(relevancies(piece, known), torch.tensor([[0.5], [0.25]]))
    assert relevancies(piece, None).tolist() == [[0.0], [0.0]]


def test_another_teacher_is_named_at_the_end(run: jn.Run, config_path: Path):
    config = run.pipeline.datamanager.config
    own, config.extractor = config.extractor, HandcraftedConfig(cell=2)
    try:
        with pytest.raises(UserError, match="this run's teacher knows no words: name one that does"):
            run.find("wall")
        config.extractor = SurfacesConfig()
        with pytest.raises(UserError, match="this run's teacher knows no words"):
            run.find("wall")
        assert run.find("wall", teacher=BY_NAME).places
    finally:
        config.extractor = own
    command = ["--load-config", str(config_path), "--label", "a", "--text", "wall", "oracle", "--by-name"]
    tyro.cli(Annotate, args=[*command, "--noise", "0"]).main()
    (config_path.parent / "annotations.json").unlink()


def test_features_and_words_of_different_models_are_refused(run: jn.Run):

    with pytest.raises(
        UserError, match="the features have 5 dimensions and the words 64: they are of different models"
    ):
        run.pipeline.words.find("wall", features=lambda pixels: torch.zeros(len(pixels), 5))


def test_words_are_compared_with_others_than_themselves():
    teacher = BY_NAME.setup()
    assert compared_with(teacher, "Things") == ("object", "stuff", "texture")
    assert compared_with(teacher, "wall", [" floor", "floor ", "Wall"]) == ("floor",)
    with pytest.raises(UserError, match="'wall' is compared with nothing but itself"):
        compared_with(teacher, "wall", ["wall"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "a", "--text", ""], "empty text given"),
        (["--label", "a", "--text", "x" * 10_000], "a text of 10,000 characters given"),
        (["--label", "a", "--text", "a\x1bb"], r"control character U\+001B"),
        (["--label", "a", "--text", "wall", "--against", ""], "empty text given"),
        (["--text", "wall"], "--text is about a label"),
        (["--label", "a", "--against", "wall"], "belong to --text"),
        (["--label", "a", "--image", "0.png", "--text", "wall"], "--image belongs to a seed"),
        (["--label", "a", "--text", "wall", "oracle"], "the oracle teacher knows words only by name"),
        (["--label", "a", "--text", "wall", "precomputed"], "come without text embeddings"),
        (["--label", "a", "--text", "wall", "clip", "--model", "/gone"], "model folder /gone does not exist"),
    ],
)
def test_bad_input_is_one_line(config_path: Path, options: list[str], message: str):
    with pytest.raises(UserError, match=message) as caught:
        tyro.cli(Annotate, args=["--load-config", str(config_path), *options]).main()
    assert "\n" not in str(caught.value)


def test_words_of_another_model_than_the_features_are_one_line(run: jn.Run, config_path: Path, tmp_path: Path):
    for frame in run.pipeline.datamanager.frames("train"):
        np.save(tmp_path / f"{frame.path.stem}.npy", np.ones((3, 4, 5), np.float32))
    np.save(tmp_path / "words.npy", np.eye(3, 7))
    (tmp_path / "words.txt").write_text("wall\nfloor\nsofa\n")
    command = ["--load-config", str(config_path), "--label", "a", "--text", "wall", "precomputed"]
    with pytest.raises(UserError, match="the features have 5 dimensions and the words 7: they are of different models"):
        tyro.cli(Annotate, args=[*command, "--folder", str(tmp_path), "--texts", str(tmp_path / "words.npy")]).main()
    assert not (config_path.parent / "annotations.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", ""], "empty text given"),
        (["--text", "x" * 10_000], "a text of 10,000 characters given"),
        (["--text", "a\x1bb"], r"control character U\+001B"),
        (["--text", "wall", "--against", "\t"], "empty text given"),
        (["--click", "1", "1", "--against", "wall"], "what to look for"),
    ],
)
def test_queries_that_cannot_be_asked_are_one_line(tmp_path: Path, options: list[str], message: str):
    common = ["--load-config", str(tmp_path / "config.yml"), "--output-dir", str(tmp_path)]
    with pytest.raises(UserError, match=message) as caught:
        tyro.cli(Query, args=[*common, *options]).main()
    assert "\n" not in str(caught.value)


def test_relevancy_of_all_photos_by_the_feature_field(run: jn.Run, config_path: Path, tmp_path: Path, capsys):
    common = ["--load-config", str(config_path)]
    query = [*common, "--output-dir", str(tmp_path / "found"), "--split", "test", "--text"]
    with pytest.raises(UserError, match="run jacobinerf distil first"):
        tyro.cli(Query, args=[*query, "wall"]).main()
    tyro.cli(Distil, args=[*common, "--steps", "150", "--rays", "256", "--pool", "4096"]).main()
    try:
        assert tyro.cli(Query, args=[*query, "giraffe"]).main() == 0
        assert not (tmp_path / "found").exists()
        capsys.readouterr()
        assert tyro.cli(Query, args=[*query, "wall", "--against", "floor", "object"]).main() == 2
        assert "at a relevancy of 0.5 or more" in capsys.readouterr().out
        frames = run.pipeline.datamanager.frames("eval")
        wall = next(key for key, name in _classes(run).items() if name == "wall")
        for frame in frames:
            mask = np.asarray(Image.open(tmp_path / "found" / "masks" / f"{frame.path.stem}.png")) > 0
            truth = truth_of(frame).numpy() == wall
            assert mask[truth].mean() > mask[~truth].mean() + 0.3
        assert not (tmp_path / "found" / "edited").exists()
        check_edits_and_labels(run, config_path, tmp_path, "wall")
        with pytest.raises(UserError, match="leave them out with --text"):
            tyro.cli(Query, args=[*query, "wall", "--click", "1", "1"]).main()
        with pytest.raises(UserError, match="what to look for"):
            tyro.cli(Query, args=[*query, "wall", "--image", "a"]).main()
        config = run.pipeline.datamanager.config
        own, config.extractor = config.extractor, OracleConfig(noise=0.2, by_name=True)
        with pytest.raises(UserError, match="was distilled from another teacher"):
            ask(run, "wall")
        config.extractor = own
        assert ask(run, "wall").places
    finally:
        (config_path.parent / "feature_field.pt").unlink()


def check_edits_and_labels(run: jn.Run, config_path: Path, tmp_path: Path, name: str) -> None:
    """A thing that is asked for by words and by a pixel is painted, and kept as a label that stands on it."""
    data, file = run.pipeline.datamanager, config_path.parent / "annotations.json"
    identity = next(key for key, value in _classes(run).items() if value == name)
    photo = data.frames("train")[0]
    row, column = (truth_of(photo) == identity).nonzero()[7].tolist()
    ways = {"text": ["--text", name], "click": ["--image", photo.path.name, "--click", str(column), str(row)]}
    for kind, asked in ways.items():
        command = ["--load-config", str(config_path), "--output-dir", str(tmp_path / kind), "--split", "test", *asked]
        paint = ["--edit", "recolour", "--colour", "255", "0", "0"]
        assert tyro.cli(Query, args=[*command, *paint]).main()
        assert not file.exists()
        with pytest.raises(UserError, match="is there already"):
            tyro.cli(Query, args=[*command, *paint]).main()
        frame, view = data.frames("eval")[0], data.eval_dataset.cameras[:1]
        shown = np.asarray(Image.open(tmp_path / kind / "edited" / f"{frame.path.stem}.png")).astype(float) / 255
        plain = run.pipeline.model.get_outputs_for_camera(view)["rgb"].numpy()
        truth = truth_of(frame).numpy() == identity
        redder = (shown - plain)[..., 0] - (shown - plain)[..., 1]
        assert redder[truth].mean() > redder[~truth].mean() + 0.1
        kept = [*command, "--overwrite", "--label", "house", "--edit", "remove"]
        tyro.cli(Query, args=kept).main()
        saved = read_annotations(file)
        places = [place for seed in saved.seeds for place in (seed.places if isinstance(seed, TextSeed) else [seed])]
        assert {seed.kind for seed in saved.seeds} == {kind}
        assert share_of(run, tuple(places), name) > 0.7  # pyright: ignore[reportArgumentType]
        assert [(edit.kind, edit.label) for edit in saved.edits] == [("remove", 1)]
        assert (saved.labels[0].name, saved.view.selected) == ("house", 1)
        file.unlink()
    with pytest.raises(UserError, match="lower --threshold"):
        tyro.cli(Query, args=[*command, "--overwrite", "--label", "a", "--threshold", "2"]).main()
    with pytest.raises(UserError, match="--colour belongs to --edit recolour"):
        tyro.cli(Query, args=[*command, "--colour", "1", "2", "3"]).main()
    with pytest.raises(UserError, match="label"):
        tyro.cli(Query, args=[*command, "--label", " "]).main()


def _classes(run: jn.Run) -> dict[int, str]:
    return run.pipeline.datamanager.train_dataparser_outputs.metadata["classes"]
