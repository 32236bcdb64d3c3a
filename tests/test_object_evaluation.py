"""One object: masks and scribbles as pictures, marks in a reference view, and scores of the other views."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.annotations.schema import Annotations, Click, Label, ViewSettings
from jacobinerf_ns.cli.evaluate import Evaluate
from jacobinerf_ns.core.propagation import PropagationConfig
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.exercise import Fitted, TrainedFields
from jacobinerf_ns.evaluation.objects import (
    ObjectTask,
    evaluate_object,
    make_object_exercise,
    mark,
    object_scores,
    object_views,
    reference_view,
)
from jacobinerf_ns.evaluation.registry import Method
from jacobinerf_ns.evaluation.reports import object_means, object_table, picture_rows, write_report
from jacobinerf_ns.files.masks import find_scribbles, mask_at, read_mask, scribbles_at
from jacobinerf_ns.labels.truth import read_truth

ONE_LABEL: tuple[Method, ...] = ("2d", "3d", "plus", "unshaped", "teacher")
TWO_LABELS: tuple[Method, ...] = ("paper", "probe")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("object")
    config = tiny_config(tiny_capture(folder / "room"), folder / "out", steps=40)
    trainer = start(config)
    trainer.train()
    return trainer


@pytest.fixture
def fields(trained) -> TrainedFields:
    trained.pipeline.eval()
    return TrainedFields(trained.pipeline, trained.pipeline)


def save(path: Path, mask: np.ndarray, size: tuple[int, int] | None = None) -> Path:
    """A mask as a white picture on black, at another (width, height) if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    (image if size is None else image.resize(size, Image.Resampling.NEAREST)).save(path)
    return path


@pytest.fixture
def masks(fields: TrainedFields, tmp_path: Path) -> Path:
    """Masks of the class that most pixels have, for all six images, at twice their size."""
    data = fields.shaped.datamanager
    frames = [*data.frames("train"), *data.frames("eval")]
    truth = read_truth(frames)
    largest = int(torch.cat([view.flatten() for view in truth]).bincount().argmax())
    for frame, view in zip(frames, truth, strict=True):
        save(tmp_path / "masks" / f"{frame.path.stem}.png", (view == largest).numpy(), (48, 36))
    return tmp_path / "masks"


@pytest.fixture
def scribbles(masks: Path, tmp_path: Path) -> Path:
    """Strokes in 0001, most of the positive ones on the object, at twice its size."""
    folder = tmp_path / "scribbles"
    folder.mkdir()
    for name, line in (("0001_pos_0.png", (2, 2, 44, 30)), ("0001_neg.png", (2, 34, 46, 34))):
        picture = Image.new("L", (48, 36))
        ImageDraw.Draw(picture).line(line, fill=255)
        picture.save(folder / name)
    (folder / "readme.png").write_bytes((folder / "0001_neg.png").read_bytes())
    return folder


def test_scores_of_hand_made_counts():
    counts = torch.tensor([[[6, 1], [1, 2]], [[9, 1], [0, 0]]])  # (true, predicted); no object in the second view
    scores = object_scores(counts)
    assert scores.iou == pytest.approx(2 / 4)
    assert scores.iou_pooled == pytest.approx(2 / 5)
    assert scores.accuracy == pytest.approx((8 / 10 + 9 / 10) / 2)


@pytest.mark.parametrize("kind", ["0/1", "0/255", "bits", "colour", "palette", "16 bits", "soft", "jpeg"])
def test_masks_of_every_kind_are_read(kind: str, tmp_path: Path):
    truth = np.zeros((40, 48), dtype=bool)
    truth[8:30, 10:31] = True
    grey = Image.fromarray(truth.astype(np.uint8) * 255)
    path = tmp_path / ("mask.jpg" if kind == "jpeg" else "mask.png")
    if kind == "palette":
        image = Image.fromarray(truth.astype(np.uint8))
        image.putpalette([0, 0, 0, 128, 0, 0])
    else:
        image = {
            "0/1": Image.fromarray(truth.astype(np.uint8)),
            "bits": grey.convert("1"),
            "colour": grey.convert("RGB"),
            "16 bits": Image.fromarray(truth.astype(np.uint16) * 65535),
            "soft": Image.fromarray(np.where(np.roll(truth, 1, 0) != truth, 90, truth * 255).astype(np.uint8)),
        }.get(kind, grey)
    image.save(path)
    expected = np.roll(truth, 1, 0) & truth if kind == "soft" else truth
    assert np.array_equal(read_mask(path), expected)


def test_masks_of_any_size_lie_where_their_image_has_them(tmp_path: Path):
    truth = np.zeros((18, 24), dtype=bool)
    truth[4:9, 10:20] = True
    for size in ((24, 18), (48, 36), (120, 90)):
        found = mask_at(save(tmp_path / "mask.png", truth, size), (18, 24))
        assert torch.equal(found, torch.from_numpy(truth)), size
    small = mask_at(save(tmp_path / "mask.png", truth[::2, ::2]), (18, 24))
    assert torch.equal(small, torch.from_numpy(truth[::2, ::2]).repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_thin_strokes_on_a_large_copy_survive(tmp_path: Path):
    strokes = np.zeros((180, 240), dtype=bool)
    strokes[41, 30:61] = True
    found = scribbles_at([save(tmp_path / "pos.png", strokes)], (18, 24))
    assert found.nonzero().tolist() == [[4, col] for col in (3, 4, 5, 6)]


def test_bad_masks_name_their_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"mask\.png is 24x24 pixels \(width x height\), its image 24x18: expected the"):
        mask_at(save(tmp_path / "mask.png", np.ones((24, 24), dtype=bool)), (18, 24))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (18, 24, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=r"photo\.png is no mask: \d+% of its pixels are neither black nor white"):
        read_mask(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.png cannot be read"):
        read_mask(tmp_path / "text.png")


def test_scribbles_are_told_apart_by_name(scribbles: Path):
    positive, negative = scribbles / "0001_pos_0.png", scribbles / "0001_neg.png"
    assert find_scribbles([scribbles]) == find_scribbles([negative, positive]) == ([positive], [negative])
    with pytest.raises(UserError, match=r"readme\.png: expected 'pos' or 'neg' in the name"):
        find_scribbles([scribbles / "readme.png"])
    with pytest.raises(UserError, match=r"no positive scribbles in .*neg\.png"):
        find_scribbles([negative])
    with pytest.raises(UserError, match=r"no such file or folder: .*nobody"):
        find_scribbles([scribbles / "nobody"])
    positive.rename(scribbles / "pos_neg.png")
    with pytest.raises(UserError, match=r"pos_neg\.png: expected 'pos' or 'neg'"):
        find_scribbles([scribbles])


def test_the_reference_is_not_scored_and_held_out_views_are(fields: TrainedFields, masks: Path):
    report = evaluate_object(fields, ObjectTask(masks, "0002"), ("2d",), seeds=(0, 1), stride=3)
    assert report.reference == "0002.png"
    assert sorted(report.views) == [f"000{i}.png" for i in (0, 1, 3, 4, 5)]
    assert report.held_out == 2
    assert len(report.scores["2d"]) == 2
    assert all(len(row) == 5 for row in report.per_view["2d"])
    for name in ("0003.png", "0004.png"):
        (masks / name).unlink()
    assert len(evaluate_object(fields, ObjectTask(masks, "0002"), ("2d",), seeds=(0,), stride=3).views) == 3


def test_without_a_reference_the_training_view_that_shows_most(fields: TrainedFields, masks: Path):
    trained = {frame.path.stem for frame in fields.shaped.datamanager.frames("train")}
    shares = {path.stem: read_mask(path).mean() for path in masks.iterdir() if path.stem in trained}
    views = object_views(fields, masks)
    assert reference_view(views, ObjectTask(masks)).frame.path.stem == max(shares, key=shares.__getitem__)


@pytest.mark.parametrize("reference", ["0001", "0002"])
def test_clicks_lie_on_the_object_and_rays_through_them(fields: TrainedFields, masks: Path, reference: str):
    views = object_views(fields, masks)
    task = ObjectTask(masks, reference, clicks=5)
    view = reference_view(views, task)
    positive, negative = mark(view, task, seed=3)
    assert (len(positive), len(negative)) == (5, 0)
    assert view.mask is not None
    assert bool(view.mask[positive[:, 0], positive[:, 1]].all())
    exercise = make_object_exercise(fields, view, positive, negative, two_labels=False)
    data, pipeline = fields.shaped.datamanager, fields.shaped
    seeds = pipeline.label_maker()._traces._seed_rays(exercise.annotations, Path())
    expected = fields.rays(view.split, exercise.pixels)
    torch.testing.assert_close(seeds.rays.origins, expected.origins.cpu(), atol=1e-6, rtol=0)
    torch.testing.assert_close(seeds.rays.directions, expected.directions.cpu(), atol=1e-6, rtol=0)
    assert view.split == ("train" if view.frame in data.frames("train") else "eval")


def test_the_mask_is_what_a_user_with_the_same_clicks_selects(fields: TrainedFields, masks: Path):
    """The same clicks in an annotation file, through the model's own outputs, pixel by pixel."""
    task = ObjectTask(masks, "0002", clicks=4, threshold=0.9)
    view = reference_view(object_views(fields, masks), task)
    spots, _ = mark(view, task, seed=0)
    report = evaluate_object(fields, task, ("2d",), seeds=(0,), pictures=5)
    label = Label(id=1, name="thing", colour=(1, 2, 3))
    where = {"label": 1, "image": "0002.png", "width": 24, "height": 18}
    seeds = tuple(Click(pixel=(col, row), **where) for row, col in spots.tolist())
    annotations = Annotations(labels=(label,), seeds=seeds)
    propagation = PropagationConfig(threshold=0.9)
    annotations = annotations.model_copy(
        update={"view": annotations.view.model_copy(update={"propagation": propagation})}
    )
    snapshot = fields.shaped.label_maker().snapshot_of(annotations, Path(), needs_surface=False)
    model, data = fields.shaped.model, fields.shaped.datamanager
    shown = {shown.name: shown.predicted["2d"] == 1 for shown in report.shown}
    some = 0
    model.label_source = lambda: snapshot
    try:
        for i, frame in enumerate(data.frames("eval")):
            camera = data.eval_dataset.cameras[i : i + 1].to(model.device)
            selection = model.get_outputs_for_camera(camera)["selection"][..., 0].cpu()
            assert torch.equal(shown[frame.path.name], selection)
            some += int(selection.sum())
    finally:
        model.label_source = None
    assert 0 < some < 2 * 18 * 24


def test_every_method_competes_by_threshold_or_against_the_rest(fields: TrainedFields, masks: Path, scribbles: Path):
    task = ObjectTask(masks, "0001.png", (scribbles,))
    report = evaluate_object(fields, task, (*ONE_LABEL, *TWO_LABELS), seeds=(0, 1), stride=3, pictures=1)
    for method in (*ONE_LABEL, *TWO_LABELS):
        assert len(report.scores[method]) == 1  # strokes leave nothing to draw
        assert all(0.0 <= value <= 1.0 for value in report.scores[method][0]), method
    assert report.scores["2d"] == report.scores["unshaped"]  # the same field twice
    assert len(picture_rows(report)[0]) == 2 + 2 * len(report.scores)
    found = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert (found["seeds"], found["reference"]) == ("scribbles", "0001.png")


def test_perfect_and_constant_contenders_score_what_they_must(fields: TrainedFields, masks: Path, monkeypatch):
    views = {(view.split, view.frame.index): view.mask for view in object_views(fields, masks)}

    def perfect(fields, exercise) -> Fitted:
        def scores(seen):
            mask = views[seen.split, int(seen.pixels[0, 0])]
            assert mask is not None
            return mask[seen.pixels[:, 1], seen.pixels[:, 2]].float()[:, None]

        return Fitted(scores)

    monkeypatch.setattr("jacobinerf_ns.evaluation.rivals.teacher.fit", perfect)
    monkeypatch.setattr(
        "jacobinerf_ns.evaluation.rivals.feature_field.fit",
        lambda fields, exercise: Fitted(lambda s: torch.ones(len(s.pixels), 1)),
    )
    report = evaluate_object(fields, ObjectTask(masks, "0001"), ("teacher", "dff"), seeds=(0,))
    assert tuple(report.scores["teacher"][0]) == (1.0, 1.0, 1.0)
    masked = {view.frame.path.name: view.mask for view in object_views(fields, masks) if view.mask is not None}
    shares = [float(masked[name].float().mean()) for name in report.views]
    assert len(shares) == 5
    assert report.scores["dff"][0].accuracy == pytest.approx(np.mean(shares))
    assert report.scores["dff"][0].iou == pytest.approx(np.mean([share for share in shares if share]))
    assert report.scores["dff"][0].iou_pooled == pytest.approx(np.mean(shares))


def test_a_single_label_is_not_refined(fields: TrainedFields, masks: Path):
    """Without a second label all that resembles the first counts as clearly its own, and it would drift to all."""
    view = reference_view(object_views(fields, masks), ObjectTask(masks, "0002"))
    positive, _ = mark(view, ObjectTask(masks, "0002"), seed=0)
    found = {}
    for two_labels in (False, True):
        exercise = make_object_exercise(fields, view, positive, (positive + 5) % 18, two_labels)
        for refine in (0, 5):
            settings = ViewSettings(propagation=PropagationConfig(refine=refine))
            annotations = exercise.annotations.model_copy(update={"view": settings})
            snapshot = fields.shaped.label_maker().snapshot_of(annotations, Path(), needs_surface=False)
            assert snapshot is not None
            found[two_labels, refine] = snapshot.prototypes.vectors
    assert torch.equal(found[False, 0], found[False, 5])
    assert not torch.allclose(found[True, 0], found[True, 5])


def test_negative_strokes_take_pixels_away(fields: TrainedFields, masks: Path, scribbles: Path):
    task = ObjectTask(masks, "0001", (scribbles,), threshold=0.0)
    alone = ObjectTask(masks, "0001", (scribbles / "0001_pos_0.png",), threshold=0.0)
    areas = []
    for each in (alone, task):
        shown = evaluate_object(fields, each, ("2d",), seeds=(0,), stride=2, pictures=9).shown
        areas.append(sum(int((view.predicted["2d"] == 1).sum()) for view in shown))
    assert areas[1] < areas[0]


def test_strokes_beside_the_object_are_legal(fields: TrainedFields, masks: Path, tmp_path: Path):
    outside = save(tmp_path / "pos.png", ~read_mask(masks / "0001.png"))
    report = evaluate_object(fields, ObjectTask(masks, "0001", (outside,)), ("2d",), seeds=(0,), stride=4)
    assert 0.0 <= report.scores["2d"][0].iou <= 1.0


def test_a_view_without_the_object_counts_for_accuracy_only(fields: TrainedFields, masks: Path):
    save(masks / "0003.png", np.zeros((18, 24), dtype=bool))
    report = evaluate_object(fields, ObjectTask(masks, "0001"), ("2d",), seeds=(0,), stride=3)
    place = report.views.index("0003.png")
    per_view = report.as_dict()["methods"]["2d"]["iou_per_view"][0]
    assert per_view[place] is None
    assert report.scores["2d"][0].iou == pytest.approx(np.mean([value for value in per_view if value is not None]))


def test_every_bad_input_is_one_line(fields: TrainedFields, masks: Path, scribbles: Path, tmp_path: Path):
    def error(task: ObjectTask, methods: tuple[Method, ...] = ("2d",)) -> str:
        with pytest.raises(UserError) as caught:
            evaluate_object(fields, task, methods, seeds=(0,), stride=4)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such folder" in error(ObjectTask(tmp_path / "nobody"))
    assert "no image 'sofa' among the 6 images of the capture" in error(ObjectTask(masks, "sofa"))
    assert "--scribbles need --reference" in error(ObjectTask(masks, None, (scribbles,)))
    assert "need negative scribbles" in error(ObjectTask(masks, "0001"), ("paper",))
    black = save(tmp_path / "black pos.png", np.zeros((18, 24), dtype=bool))
    assert "positive scribbles in" in error(ObjectTask(masks, "0001", (black,)))
    square = save(tmp_path / "square pos.png", np.ones((24, 24), dtype=bool))
    assert "expected the same aspect ratio" in error(ObjectTask(masks, "0001", (square,)))
    save(masks / "0001.png", np.zeros((18, 24), dtype=bool))
    assert "the mask of 0001.png in" in error(ObjectTask(masks, "0001"))
    (masks / "0001.png").unlink()
    assert "the reference 0001 has no mask" in error(ObjectTask(masks, "0001"))
    save(masks / "0004.png", np.ones((20, 18), dtype=bool))
    assert "0004.png is 18x20 pixels (width x height), its image 24x18" in error(ObjectTask(masks))
    shutil.copy(masks / "0005.png", masks / "0005.jpg")
    assert "0005.png has two files" in error(ObjectTask(masks))
    others = tmp_path / "others"
    save(others / "tree.png", np.ones((18, 24), dtype=bool))
    assert "is named like an image of the capture: tree.png is not" in error(ObjectTask(others))
    save(others / "0003.png", np.ones((18, 24), dtype=bool))
    assert "nothing to score" in error(ObjectTask(others, "0003"))
    (tmp_path / "empty").mkdir()
    assert "it is empty" in error(ObjectTask(tmp_path / "empty"))
    held_out = fields.shaped.datamanager.frames("eval")[0].path.stem
    save(tmp_path / "eval only" / f"{held_out}.png", np.ones((18, 24), dtype=bool))
    assert "no training image has a mask" in error(ObjectTask(tmp_path / "eval only"))


def test_command_for_one_scene_and_for_several(trained, masks: Path, scribbles: Path, tmp_path: Path):
    config = trained.base_dir / "config.yml"
    quick = {"protocol": "object", "methods": ("2d", "teacher"), "seeds": (0,), "stride": 4, "pictures": 1}
    found = Evaluate((config,), masks=(masks,), reference=("0001",), output_dir=tmp_path / "one", **quick).main()
    assert isinstance(found, list)
    written = json.loads((tmp_path / "one" / "object.json").read_text())
    assert written["methods"]["2d"]["mean"]["iou"] == found[0].mean("2d", "iou")
    assert (tmp_path / "one" / "object.png").stat().st_size > 1000
    both = Evaluate((config, config), masks=(masks, masks), reference=("0001", "0004"), output_dir=tmp_path, **quick)
    reports = both.main()
    assert isinstance(reports, list)
    means = json.loads((tmp_path / "objects.json").read_text())
    assert list(means["scenes"]) == ["room", "room-2"]
    assert (tmp_path / "room-2" / "object.json").is_file()
    expected = (reports[0].mean("2d", "iou") + reports[1].mean("2d", "iou")) / 2
    assert means["mean"]["2d"]["iou"] == object_means(reports)["2d"]["iou"] == pytest.approx(expected)
    console = Console(record=True, width=160)
    console.print(object_table({"room": reports[0], "room-2": reports[1]}))
    shown = console.export_text().split("mean")[1]  # the row of means, and those below
    assert f"{expected:.3f}" in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "object"}, "--masks: 0 given for 1 runs"),
        ({"protocol": "object", "masks": 1, "reference": ("a", "b")}, "--reference: 2 given for 1 runs"),
        ({"protocol": "object", "masks": 1, "threshold": 1.5}, "--threshold 1.5: expected a response in 0..1"),
        ({"protocol": "object", "masks": 1, "clicks": 0}, "--clicks 0"),
        ({"protocol": "object", "masks": 1, "label_dir": Path("maps")}, "--label-dir is for label maps"),
        ({"protocol": "sparse", "masks": 1}, "are for --protocol object"),
        ({"protocol": "sparse", "runs": 2}, "2 runs: --protocol sparse takes one"),
        ({"protocol": "object", "methods": ("unshaped",), "masks": 1}, "--unshaped-config"),
    ],
)
def test_options_that_do_not_fit_are_refused(trained, masks: Path, settings: dict, message: str):
    config = trained.base_dir / "config.yml"
    runs, count = settings.pop("runs", 1), settings.pop("masks", 0)
    with pytest.raises(UserError, match=message):
        Evaluate((config,) * runs, masks=(masks,) * count, **settings).main()


def test_reports_name_a_folder_that_cannot_be_written(fields: TrainedFields, masks: Path, tmp_path: Path):
    report = evaluate_object(fields, ObjectTask(masks, "0001"), ("2d",), seeds=(0,), stride=6)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(report, tmp_path / "file" / "below", "object")
