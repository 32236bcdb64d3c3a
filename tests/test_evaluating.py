"""Simulated annotators, contenders and pooled scores, on the tiny room and on hand-made cases."""

import json
import random
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.annotations.schema import Annotations, Click, Label
from jacobinerf_ns.cli.evaluate import Evaluate
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import Annotator, draw_pixels
from jacobinerf_ns.evaluation.exercise import Fitted, TrainedFields, make_exercise
from jacobinerf_ns.evaluation.labels import Report, evaluate
from jacobinerf_ns.evaluation.registry import CONTENDERS
from jacobinerf_ns.evaluation.reports import class_table, picture_rows, table, write_report
from jacobinerf_ns.evaluation.rivals import feature_field
from jacobinerf_ns.files.index_maps import read_label_map
from jacobinerf_ns.labels.truth import read_truth
from jacobinerf_ns.run.opened import open_run

MAP = torch.tensor([[0, 1, 1, 2], [3, 3, 1, 2]]).repeat_interleave(4, 0).repeat_interleave(4, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("evaluating")
    config = tiny_config(tiny_capture(folder / "room"), folder / "out", steps=40)
    trainer = start(config)
    trainer.train()
    trainer.pipeline.eval()
    return trainer


@pytest.fixture
def fields(trained) -> TrainedFields:
    trained.pipeline.eval()
    return TrainedFields(trained.pipeline, trained.pipeline)


@pytest.mark.parametrize(
    ("annotator", "per_id"),
    [(Annotator("sparse"), 1), (Annotator("clicks", 3), 3), (Annotator("instances"), 1)],
)
def test_clicks_lie_where_the_truth_says_and_depend_on_the_seed(annotator, per_id):
    labelled = annotator.label([torch.zeros_like(MAP), MAP], seed=1)
    assert labelled.image == 1  # nothing is to be seen in the other
    assert torch.equal(MAP[labelled.rows, labelled.cols], labelled.ids)
    assert torch.equal(labelled.ids.bincount(), torch.tensor([0, per_id, per_id, per_id]))  # void is never clicked
    again, other = annotator.label([MAP, MAP], seed=1), annotator.label([MAP, MAP], seed=2)
    assert torch.equal(labelled.rows, again.rows)
    assert not torch.equal(labelled.rows, other.rows) or not torch.equal(labelled.cols, other.cols)


def test_dense_labels_everything_but_void():
    labelled = Annotator("dense").label([MAP], seed=0)
    assert len(labelled.ids) == int((MAP != 0).sum())


def test_a_class_smaller_than_the_clicks_gives_what_it_has():
    rows, cols = draw_pixels(torch.tensor([[5, 5, 6]]), 2, seed=0)
    assert sorted(torch.tensor([[5, 5, 6]])[rows, cols].tolist()) == [5, 5, 6]


def test_void_views_cannot_be_labelled():
    with pytest.raises(UserError, match="void"):
        Annotator().label([torch.zeros(3, 3).long()], seed=0)


def test_an_exercise_is_what_a_user_would_have_saved(fields, tmp_path):
    maps = read_truth(fields.shaped.datamanager.frames("train"))
    clicks = make_exercise(fields, Annotator().label(maps, 0), {1: "wall"}, as_mask=False, folder=tmp_path)
    for seed, identity in zip(clicks.annotations.seeds, clicks.labelled.ids.tolist(), strict=True):
        assert isinstance(seed, Click)
        assert int(maps[clicks.labelled.image][seed.pixel[1], seed.pixel[0]]) == seed.label == identity
    dense = make_exercise(fields, Annotator("dense").label(maps, 0), {1: "wall"}, as_mask=True, folder=tmp_path)
    place = dense.labelled.image
    saved = read_label_map(tmp_path / "labelled.png", (maps[place].shape[0], maps[place].shape[1]))
    assert torch.equal(saved, maps[place])


def test_every_method_is_fitted_and_scored_on_the_same_pixels(fields, monkeypatch):
    # Whether it is fitted and scored, not how well.
    quick = partial(feature_field.distil, steps=50, pool=4096)
    monkeypatch.setattr(feature_field, "distil", quick)
    methods = tuple(CONTENDERS)
    report = evaluate(fields, Annotator("sparse"), methods, seeds=(0, 1), stride=2, pictures=1)
    assert set(report.scores) == set(methods)
    for method in methods:
        assert len(report.scores[method]) == 2
        assert all(0.0 <= scores.miou <= 1.0 for scores in report.scores[method]), method
    assert report.psnr == pytest.approx(report.psnr_unshaped)  # the same field twice
    assert [s.miou for s in report.scores["2d"]] == [s.miou for s in report.scores["unshaped"]]
    Console().print(table(report), class_table(report))
    assert len(picture_rows(report)[0]) == 2 + 2 * len(methods)
    assert not json.dumps(report.as_dict(), allow_nan=False).startswith("nan")


def test_a_perfect_contender_scores_one_and_a_constant_one_what_it_must(fields, monkeypatch):
    truth = read_truth(fields.shaped.datamanager.frames("eval"))

    def perfect(fields, exercise) -> Fitted:
        def scores(seen):
            image, rows, cols = seen.pixels.unbind(-1)
            ids = torch.stack([truth[i][r, c] for i, r, c in zip(image, rows, cols, strict=True)])
            return (ids[:, None] == torch.tensor(exercise.ids)).float()

        return Fitted(scores)

    monkeypatch.setattr("jacobinerf_ns.evaluation.rivals.teacher.fit", perfect)
    monkeypatch.setattr(
        "jacobinerf_ns.evaluation.rivals.feature_field.fit",
        lambda fields, exercise: Fitted(lambda s: torch.ones(len(s.pixels), len(exercise.ids))),
    )
    report = evaluate(fields, Annotator("dense"), ("teacher", "dff"), seeds=(0, 1))
    assert report.mean("teacher", "miou_labelled") == pytest.approx(1.0, abs=0.05)  # classes unseen there cost a little
    assert len(report.scores["teacher"]) == 1  # dense has nothing to draw
    constant = report.scores["dff"][0]
    first = min(report.names)
    share = sum(int((t == first).sum()) for t in truth) / sum(int((t != 0).sum()) for t in truth)
    assert constant.total_accuracy == pytest.approx(share)
    assert constant.class_iou[first] == pytest.approx(share)


def test_unshaped_without_a_run_says_what_to_give(fields):
    alone = TrainedFields(fields.shaped, None)
    with pytest.raises(UserError, match="--unshaped-config"):
        evaluate(alone, Annotator(), ("unshaped",), seeds=(0,))


def test_command_writes_numbers_and_pictures(trained, tmp_path):
    config = trained.base_dir / "config.yml"
    report = Evaluate((config,), methods=("2d",), seeds=(0,), stride=3, pictures=1, output_dir=tmp_path).main()
    assert isinstance(report, Report)
    written = json.loads((tmp_path / "sparse.json").read_text())
    assert written["methods"]["2d"]["mean"]["miou"] == report.mean("2d", "miou")
    assert (tmp_path / "sparse.png").stat().st_size > 1000
    with pytest.raises(UserError, match="--unshaped-config"):
        Evaluate((config,), methods=("unshaped",)).main()
    with pytest.raises(UserError, match="stride 0"):
        Evaluate((config,), stride=0).main()


def test_features_are_distilled_from_all_photos_in_the_same_way_every_time(trained, tmp_path, monkeypatch):
    """A run that is opened to be looked at loads no photos, and DFF must not learn from one of them."""
    monkeypatch.setattr(feature_field, "distil", partial(feature_field.distil, steps=20, pool=2048))
    config, found = trained.base_dir / "config.yml", []
    for turn in ("first", "second"):
        random.seed(turn)
        folder = tmp_path / turn
        report = Evaluate((config,), methods=("dff",), seeds=(0,), stride=3, pictures=0, output_dir=folder).main()
        assert isinstance(report, Report)
        found.append(report.mean("dff", "total_accuracy"))
    assert found[0] == found[1]
    with pytest.raises(UserError, match="without its photos"):
        feature_field.distil(open_run(config).pipeline)


def test_reports_name_a_folder_that_cannot_be_written(fields, tmp_path):
    report = evaluate(fields, Annotator(), ("2d",), seeds=(0,), stride=6)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(report, tmp_path / "file" / "below", "sparse")


def test_own_labels_are_scored_by_name_for_ns_eval(fields):
    pipeline = fields.shaped
    data, model = pipeline.datamanager, pipeline.model
    assert pipeline._label_scores() == {}
    frame, maps = data.frames("train")[0], read_truth(data.frames("train"))
    names = data.train_dataparser_outputs.metadata["classes"]
    rows, cols = draw_pixels(maps[0], 1, seed=0)
    ids = maps[0][rows, cols].tolist()
    labels = tuple(
        Label(id=90 + i, name=f" {names[identity].upper()} ", colour=(1, 2, 3)) for i, identity in enumerate(ids)
    )
    seeds = tuple(
        Click(label=90 + i, image=frame.path.name, width=24, height=18, pixel=(int(c), int(r)))
        for i, (r, c) in enumerate(zip(rows, cols, strict=True))
    )
    clicked, maker = Annotations(labels=labels, seeds=seeds), pipeline.label_maker()
    model.label_source = lambda: maker.snapshot_of(clicked, Path(), needs_surface=False)
    try:
        averages = pipeline.get_average_eval_image_metrics()
    finally:
        model.label_source = None
        pipeline.eval()
    assert 0.0 < averages["miou"] <= averages["miou_labelled"] + 1e-12  # equal up to the order of a sum
    assert averages["miou_labelled"] <= 1.0
    assert averages["psnr"] > 0
