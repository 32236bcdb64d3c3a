"""`jacobinerf transfer` between two tiny captures of the demo room: other views, other weights, other class ids."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from tiny import start, tiny_config

from jacobinerf_ns.annotations.rays import world_click
from jacobinerf_ns.annotations.schema import Annotations, Click, Label, ViewSettings
from jacobinerf_ns.annotations.store import read_annotations, write_annotations
from jacobinerf_ns.cli.transfer import Transfer
from jacobinerf_ns.core.matching import UNLABELLED
from jacobinerf_ns.core.propagation import PAPER_PROPAGATION
from jacobinerf_ns.demo.capture import write_capture
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import Annotator
from jacobinerf_ns.evaluation.exercise import TrainedFields, make_exercise
from jacobinerf_ns.features.base import Frame, fingerprint_of
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig
from jacobinerf_ns.labels.truth import read_truth
from jacobinerf_ns.run.opened import Run, open_run
from jacobinerf_ns.tasks.feature_field.field import FeatureField
from jacobinerf_ns.tasks.feature_field.files import feature_field_path, save_feature_field
from jacobinerf_ns.tasks.transfer.files import plan_transfer, write_transfer
from jacobinerf_ns.tasks.transfer.pictures import HEIGHT, Line, draw_matches
from jacobinerf_ns.tasks.transfer.side import Side, check_teachers
from jacobinerf_ns.tasks.transfer.transfer import Transferred, TransferSettings, transfer

BY_NAME = ["oracle", "--by-name", "--noise", "0.3", "--patch-size", "2"]


def renumber(capture: Path) -> None:
    """Gives every class another id: what a second capture by somebody else looks like."""
    path = capture / "classes.json"
    content = json.loads(path.read_text())
    last = max(entry["id"] for entry in content["classes"])
    for entry in content["classes"]:
        entry["id"] = last + 1 - entry["id"]
    for file in (capture / "semantics").iterdir():
        ids = np.asarray(Image.open(file))
        Image.fromarray(np.where(ids == 0, 0, last + 1 - ids).astype(np.uint8)).save(file)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two trained runs; the first has five clicks per class."""
    folder = tmp_path_factory.mktemp("transfer")
    paths = []
    for i, views in enumerate((6, 9)):
        data = write_capture(folder / f"room {i}", num_views=views, width=24, height=18, num_test=2)
        if i:
            renumber(data)
        config = tiny_config(data, folder / f"out{i}", steps=60)
        config.machine.seed = i
        config.pipeline.datamanager.extractor = HandcraftedConfig(cell=2)
        trainer = start(config)
        trainer.train()
        paths.append(trainer.base_dir / "config.yml")
    run = open_run(paths[0])
    maps, names = read_truth(run.pipeline.datamanager.frames("train")), classes(run)
    labelled = Annotator("clicks", 5).label(maps, seed=0)
    exercise = make_exercise(TrainedFields(run.pipeline, None), labelled, names, False, folder)
    write_annotations(run.folder / "annotations.json", exercise.annotations)
    return paths[0], paths[1]


@pytest.fixture(scope="module")
def sides(configs: tuple[Path, Path]) -> tuple[Side, Side]:
    runs = [open_run(path) for path in configs]
    for run in runs:
        run.pipeline.eval()
    return Side(runs[0]), Side(runs[1])


@pytest.fixture(scope="module")
def annotations(sides: tuple[Side, Side]) -> Annotations:
    return read_annotations(sides[0].run.folder / "annotations.json")


@pytest.fixture
def command(configs, tmp_path) -> list[str]:
    return ["--from", str(configs[0]), "--to", str(configs[1].parent), "--output-dir", str(tmp_path / "out")]


@contextmanager
def changed(config: Any, **fields: Any) -> Iterator[None]:
    before = {name: getattr(config, name) for name in fields}
    vars(config).update(fields)
    try:
        yield
    finally:
        vars(config).update(before)


def classes(run: Run) -> dict[int, str]:
    return run.pipeline.datamanager.train_dataparser_outputs.metadata["classes"]


def share_right(side: Side, found: Transferred) -> float:
    """Share of the new clicks that lie on the class they are named after."""
    maps, names = read_truth(side.run.pipeline.datamanager.frames("train")), classes(side.run)
    hits = [
        names[int(maps[image][row, col])] == part.label.name
        for part in found.found
        for image, row, col in part.pixels.tolist()
    ]
    return sum(hits) / len(hits)


def test_labels_arrive_on_their_classes_by_name(command, sides: tuple[Side, Side], annotations, tmp_path, capsys):
    """Ids differ, so only names can match; the file written is one that the second run shows as it is."""
    found = tyro.cli(Transfer, args=[*command, "--clicks", "4", "--min-confidence", "0.3", *BY_NAME]).main()
    assert len(found.annotations.labels) >= 5
    assert share_right(sides[1], found) >= 0.7  # of twelve classes; patches of two pixels mix those of small things
    written = read_annotations(tmp_path / "out" / "annotations_from_room_0.json")
    assert written == found.annotations
    for label in written.labels:
        assert annotations.label(label.id) == label  # id, name and colour stay
        assert 1 <= len(written.seeds_of(label.id)) <= 4
    for part in found.found:
        assert (part.confidence >= 0.3) == (len(part.pixels) > 0)
    printed = capsys.readouterr().out
    assert "left out" in printed
    assert "room 0: teacher, room 1: teacher" in printed
    assert f"{len(written.labels)} of {len(found.found)} labels found" in printed
    shown = open_run(sides[1].run.folder / "config.yml", annotations=tmp_path / "out" / "annotations_from_room_0.json")
    view = shown.fit(shown.annotations).render(sides[1].photos[0].camera)
    assert view.ids.shape == (18, 24)
    assert int(view.ids.max()) > 0
    picture = Image.open(tmp_path / "out" / "correspondence_from_room_0.png")
    assert picture.width > 2 * HEIGHT * 24 / 18
    assert picture.height > HEIGHT


def test_the_runs_own_teacher_is_taken_when_none_is_named(sides: tuple[Side, Side], annotations):
    found = transfer(*sides, annotations, Path(), TransferSettings(clicks=3, min_confidence=0.0))
    assert share_right(sides[1], found) > 0.5  # colours and texture alone; a third of the pixels is the largest class
    matched = found.correspondence
    assert matched.pairs.shape[1:] == (2, 2)
    for side, (row, col) in zip(sides, matched.pairs.amax(0).tolist(), strict=True):
        height, width = side.sizes[0]
        assert row < height
        assert col < width
    assert set(matched.labels.tolist()) <= {UNLABELLED, *range(len(annotations.labels))}


def test_a_stricter_confidence_leaves_out_more_and_changes_nothing_else(sides: tuple[Side, Side], annotations):
    all_of_them = transfer(*sides, annotations, Path(), TransferSettings(min_confidence=0.0))
    confidences = sorted(part.confidence for part in all_of_them.found)
    bar = confidences[len(confidences) // 2]
    fewer = transfer(*sides, annotations, Path(), TransferSettings(min_confidence=bar))
    for kept, part in zip(fewer.found, all_of_them.found, strict=True):
        assert kept.confidence == pytest.approx(part.confidence, abs=1e-5)
        if part.confidence >= bar:
            assert torch.equal(kept.pixels, part.pixels)
        else:
            assert len(kept.pixels) == 0
    names = [part.label.name for part in fewer.found if len(part.pixels)]
    assert [label.name for label in fewer.annotations.labels] == names


def test_the_papers_decision_is_carried_along_but_not_used_to_match(sides: tuple[Side, Side], annotations):
    """Its raw responses have no confidence; matches are those of any other setting."""
    settings = TransferSettings(clicks=3, min_confidence=0.0)
    found = transfer(*sides, annotations, Path(), settings)
    by_paper = annotations.model_copy(update={"view": ViewSettings(propagation=PAPER_PROPAGATION)})
    again = transfer(*sides, by_paper, Path(), settings)
    assert again.annotations.view.propagation == PAPER_PROPAGATION
    assert again.annotations.seeds == found.annotations.seeds


def test_files_that_are_there_stay(command, configs, sides: tuple[Side, Side], tmp_path):
    arguments = [*command, "--min-confidence", "0", *BY_NAME]
    tyro.cli(Transfer, args=arguments).main()
    path = tmp_path / "out" / "annotations_from_room_0.json"
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"annotations_from_room_0.json is there already: move it away"):
        tyro.cli(Transfer, args=arguments).main()
    path.unlink()
    with pytest.raises(UserError, match=r"correspondence_from_room_0.png is there already"):
        tyro.cli(Transfer, args=arguments).main()
    path.write_bytes(before)
    own = configs[1].parent / "annotations.json"
    photo = sides[1].photos[0].name
    mine = Annotations(
        labels=(Label(id=1, name="mine", colour=(1, 2, 3)),),
        seeds=(Click(label=1, image=photo, width=24, height=18, pixel=(3, 4)),),
    )
    write_annotations(own, mine)
    found = tyro.cli(Transfer, args=[*arguments[:6], "--merge", *arguments[6:]]).main()
    both = read_annotations(own)
    own.unlink()
    assert both.labels[0] == mine.labels[0]
    assert both.seeds[0] == mine.seeds[0]
    assert {label.name for label in both.labels} == {"mine", *(label.name for label in found.annotations.labels)}
    assert len(both.seeds) == 1 + len(found.annotations.seeds)
    assert path.read_bytes() == before


def test_merging_never_replaces_a_damaged_file(sides: tuple[Side, Side], annotations, tmp_path):
    found = transfer(*sides, annotations, Path(), TransferSettings(min_confidence=0.0))
    files = plan_transfer(*sides, tmp_path, merge=True)
    files.annotations.write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        write_transfer(files, *sides, found)
    assert files.annotations.read_text() == "{"
    files.annotations.unlink()


def test_nothing_found_writes_no_annotations(sides: tuple[Side, Side], annotations, tmp_path):
    found = transfer(*sides, annotations, Path(), TransferSettings(min_confidence=1.0))
    assert not found.annotations.labels  # no match of a hand-made feature is perfect
    write_transfer(plan_transfer(*sides, tmp_path, merge=False), *sides, found)
    assert [path.name for path in tmp_path.iterdir()] == ["correspondence_from_room_0.png"]


def test_outputs_keep_out_of_captures_and_of_what_is_no_folder(sides: tuple[Side, Side], annotations, tmp_path):
    with pytest.raises(UserError, match="is a capture, with its own images"):
        plan_transfer(*sides, sides[1].run.pipeline.datamanager.get_datapath(), merge=False)
    (tmp_path / "file").write_text("")
    files = plan_transfer(*sides, tmp_path / "file", merge=False)
    found = transfer(*sides, annotations, Path(), TransferSettings(min_confidence=0.0))
    with pytest.raises(UserError, match=r"cannot (be )?write"):
        write_transfer(files, *sides, found)
    files = plan_transfer(*sides, None, merge=False)
    assert files.annotations == sides[1].run.folder / "annotations_from_room_0.json"


def test_a_feature_field_is_used_where_there_is_one(sides: tuple[Side, Side]):
    run = sides[1].run
    field = FeatureField(run.pipeline.model.field, dims=64)
    torch.nn.init.normal_(field.encoding.hash_table)
    save_feature_field(run, field)
    try:
        with_field, without = Side(run), Side(run, own_teacher=False)
        pixels = without.grid(20)
        with torch.no_grad():
            expected = field.rendered(run.pipeline.model.trace(without.rays(pixels)))
        torch.testing.assert_close(with_field.features(pixels), expected)
        store = run.pipeline.datamanager.teacher_store("train")
        torch.testing.assert_close(without.features(pixels), store.sample(pixels))
        assert (with_field.source_of_features, without.source_of_features) == ("feature field", "teacher")
    finally:
        feature_field_path(run).unlink()


def test_a_click_in_space_stands_for_the_pixel_that_hits_there(sides: tuple[Side, Side]):
    """Clicked along a training pixel's own ray, the nearest hit of the pool is that pixel."""
    side = sides[0]
    pool = side.grid(10_000)
    points = side.look(pool).points
    place = 700
    ray = side.rays(pool[place : place + 1])
    click = world_click(side.run.pipeline.world, ray.origins[0], ray.directions[0], label=5)
    annotations = Annotations(labels=(Label(id=5, name="a", colour=(0, 0, 0)),), seeds=(click,))
    seeds = side.seed_pixels(annotations, Path(), pool, points)
    assert torch.equal(seeds.pixels, pool[place : place + 1])
    assert seeds.labels.tolist() == [0]


def test_grids_cover_the_images_in_even_steps(sides: tuple[Side, Side]):
    everything = sides[0].grid(10_000)
    assert len(everything) == 4 * 24 * 18
    few = sides[0].grid(100, images=[2])
    assert set(few[:, 0].tolist()) == {2}
    assert 80 <= len(few) <= 125
    assert few[:, 1:].min() >= 0
    assert (few[:, 1:].amax(0) < torch.tensor([18, 24])).all()


def test_runs_without_a_common_feature_space(sides: tuple[Side, Side], annotations, monkeypatch):
    source, target = sides[0].run, sides[1].run
    data = target.pipeline.datamanager.config
    with (
        changed(data, extractor=HandcraftedConfig(cell=3)),
        pytest.raises(
            UserError, match=r"different teachers, HandcraftedConfig\(cell=2\) and HandcraftedConfig\(cell=3"
        ),
    ):
        check_teachers(source, target, own_teachers=True)
    with changed(data, extractor=OracleConfig()), pytest.raises(UserError, match="different teachers"):
        check_teachers(source, target, own_teachers=True)
    oracle, first = OracleConfig(), source.pipeline.datamanager.config
    with changed(data, extractor=oracle), changed(first, extractor=oracle):
        with pytest.raises(UserError, match="no common feature space: end the command with `oracle --by-name`"):
            check_teachers(source, target, own_teachers=False)
        check_teachers(source, source, own_teachers=False)  # the same ids mean the same there
    folders = [PrecomputedConfig(folder=Path(name)) for name in "ab"]
    with changed(first, extractor=folders[0]), changed(data, extractor=folders[1]):
        check_teachers(source, target, own_teachers=True)  # every capture has a folder of its own
    features = Side.features
    monkeypatch.setattr(Side, "features", lambda side, p: features(side, p)[:, : 64 if side is sides[0] else 63])
    with pytest.raises(UserError, match="of room 0 have 64 dimensions, those of room 1 63"):
        transfer(*sides, annotations, Path(), TransferSettings())


def test_a_run_without_a_teacher_is_told_to_name_one(sides: tuple[Side, Side]):
    source, target = (side.run for side in sides)
    model = target.config.pipeline.model
    with changed(model, shaping=replace(model.shaping, mig_loss_mult=0.0, norm_loss_mult=0.0)):
        assert not model.shaping.active
        with pytest.raises(UserError, match="was trained without a teacher: name one teacher for both"):
            check_teachers(source, target, own_teachers=True)
        check_teachers(source, target, own_teachers=False)


def test_nothing_to_transfer(sides: tuple[Side, Side], annotations, tmp_path, configs):
    negative = tuple(seed.model_copy(update={"negative": True}) for seed in annotations.seeds)
    for empty in (Annotations(), annotations.model_copy(update={"seeds": negative})):
        with pytest.raises(UserError, match=r"nothing to transfer: \d+ labels found and no seed"):
            transfer(*sides, empty, Path(), TransferSettings())
    with pytest.raises(UserError, match="nothing to transfer"):
        Transfer(configs[0], configs[1], tmp_path, annotations=tmp_path / "none.json").main()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clicks": 0}, "--clicks 0 given, expected at least 1"),
        ({"prototypes": -1}, "--prototypes -1 given, expected at least 1"),
        ({"min_confidence": 1.5}, "--min-confidence 1.5 given, expected 0..1"),
        ({}, "no such file: .*nobody"),
    ],
)
def test_bad_options_are_one_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Transfer(tmp_path / "nobody.yml", tmp_path, **options).main()


def test_a_line_joins_its_two_places():
    blank = Image.new("RGB", (HEIGHT, HEIGHT), "white")
    picture = np.asarray(draw_matches((blank, blank), [Line((0.5, 0.25), (0.5, 0.25), (255, 0, 0))]))
    red = (picture == (255, 0, 0)).all(-1)
    rows, cols = red.nonzero()
    assert abs(rows.mean() - HEIGHT / 4) < 1
    assert abs(cols.min() - HEIGHT / 2) <= 4
    assert abs(picture.shape[1] - HEIGHT / 2 - cols.max()) <= 4


def test_the_oracle_by_name_shares_vectors_between_captures(tmp_path):
    """Chair is 3 here and 7 there; the vector is one. By id, 3 and 7 are strangers."""
    frames = []
    for name, identity in (("a", 3), ("b", 7)):
        folder = tmp_path / name
        (folder / "semantics").mkdir(parents=True)
        Image.fromarray(np.full((8, 8), identity, dtype=np.uint8)).save(folder / "semantics" / "0.png")
        Image.new("RGB", (8, 8)).save(folder / "0.png")
        word = "Chair " if name == "a" else "chair"
        content = {"void_id": 0, "classes": [{"id": identity, "name": word}, {"id": 1, "name": "wall"}]}
        (folder / "classes.json").write_text(json.dumps(content))
        frames.append(Frame(0, folder / "0.png", (8, 8), None, folder / "semantics" / "0.png"))
    by_name, by_id = OracleConfig(noise=0.0, by_name=True).setup(), OracleConfig(noise=0.0).setup()
    first, second = (by_name.extract(frame).values[0, 0] for frame in frames)
    torch.testing.assert_close(first, second)
    assert float(by_id.extract(frames[0]).values[0, 0] @ by_id.extract(frames[1]).values[0, 0]) < 0.5
    assert by_name.fingerprint() != by_id.fingerprint()
    assert by_id.fingerprint() == fingerprint_of("oracle-2", by_id.config, ignore=["by_name"])  # caches stay good
    before = by_name.sources(frames[0])
    content["classes"][0] = {"id": 3, "name": "stool"}
    (tmp_path / "a" / "classes.json").write_text(json.dumps(content))
    assert by_name.sources(frames[0]) != before
    (tmp_path / "a" / "classes.json").unlink()
    with pytest.raises(UserError, match=r"finds no classes.json in the 3 folders above"):
        by_name.extract(frames[0])
    with pytest.raises(UserError, match="per instance and by name"):
        OracleConfig(per_instance=True, by_name=True).setup()
