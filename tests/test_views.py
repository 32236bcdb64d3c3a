"""Views on a screen: kept ones are shown again, by all that they depend on, in all the memory there is for them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.schema import Annotations, Click, Edit, Label, ViewSettings
from jacobinerf_ns.core.propagation import JNERF_PLUS, PAPER_PROPAGATION, PropagationConfig
from jacobinerf_ns.labels.tracer import Rows
from jacobinerf_ns.labels.traces import Piece
from jacobinerf_ns.labels.views import BETWEEN_CHUNKS, SCREEN, KeptViews, Screen, ViewReport
from jacobinerf_ns.pipeline import JacobiNeRFPipeline

LABELS = (Label(id=7, name="wall", colour=(255, 0, 0)), Label(id=9, name="chart", colour=(0, 255, 0)))
WIDTH, HEIGHT = 24, 18


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> JacobiNeRFPipeline:
    folder = tmp_path_factory.mktemp("views")
    trainer = start(tiny_config(tiny_capture(folder / "room"), folder / "out", steps=60))
    trainer.train()
    trainer.pipeline.eval()
    trainer.pipeline.model.config.eval_num_rays_per_chunk = 100
    return trainer.pipeline


class Audience:
    """A screen that remembers what it was told."""

    def __init__(self) -> None:
        self.output, self.reports = "resonance", list[ViewReport]()
        self.screen = Screen(KeptViews(), lambda name: name == self.output, self.reports.append)


@pytest.fixture
def audience() -> Iterator[Audience]:
    found = Audience()
    token = SCREEN.set(found.screen)
    yield found
    SCREEN.reset(token)


def look(pipeline: JacobiNeRFPipeline, camera: int = 0, box: OrientedBox | None = None) -> dict[str, torch.Tensor]:
    cameras = pipeline.datamanager.eval_dataset.cameras[camera : camera + 1]
    return pipeline.model.get_outputs_for_camera(cameras, obb_box=box)


def show(pipeline: JacobiNeRFPipeline, *edits: Edit, **settings) -> Annotations:
    image = pipeline.datamanager.train_dataparser_outputs.image_filenames[0].name
    seeds = tuple(
        Click(label=label, image=image, width=WIDTH, height=HEIGHT, pixel=pixel)
        for label, pixel in ((7, (3, 4)), (9, (18, 14)))
    )
    view = ViewSettings(propagation=PropagationConfig(**settings))
    annotations = Annotations(labels=LABELS, seeds=seeds, edits=edits, view=view)
    set_annotations(pipeline, annotations)
    return annotations


def set_annotations(pipeline: JacobiNeRFPipeline, annotations: Annotations) -> None:
    maker = pipeline.label_maker()
    pipeline.model.label_source = lambda: maker.snapshot_of(annotations, Path())


def without_screen(pipeline: JacobiNeRFPipeline) -> dict[str, torch.Tensor]:
    token = SCREEN.set(None)
    try:
        return look(pipeline)
    finally:
        SCREEN.reset(token)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threshold": 0.9},
        {"void_below": 0.6},
        {"space": "3d"},
        {"response": "raw"},
        {"response": "raw", "exact": True},
        {"response": "raw", "space": "3d"},
        {"refine": JNERF_PLUS.refine, "smooth": JNERF_PLUS.smooth},
        vars(PAPER_PROPAGATION),
    ],
)
def test_a_kept_view_shows_what_a_new_one_shows_without_asking_the_field(trained, audience: Audience, settings):
    show(trained, threshold=0.123, response="raw", exact=True)  # keeps samples too, which some settings need
    look(trained)
    assert audience.reports[-1].queried == WIDTH * HEIGHT
    show(trained, **settings)
    kept = look(trained)
    assert audience.reports[-1].queried == 0
    fresh = without_screen(trained)
    assert kept.keys() == fresh.keys()
    for name, value in fresh.items():
        assert torch.equal(kept[name], value), name


def test_colours_come_first_and_the_rest_in_one_order(trained):
    show(trained)
    names = list(without_screen(trained))
    assert names[0] == "rgb"
    trained.model.label_source = None
    assert [name for name in names if not name.startswith("mask_")] == list(without_screen(trained))


def test_the_field_is_asked_again_when_anything_in_front_of_it_changed(trained, audience: Audience):
    show(trained)
    whole = WIDTH * HEIGHT

    def queried(**arguments) -> int:
        look(trained, **arguments)
        return audience.reports[-1].queried

    assert [queried(), queried()] == [whole, 0]
    assert [queried(camera=1), queried(camera=1), queried()] == [whole, 0, 0]
    box = OrientedBox(torch.eye(3), torch.zeros(3), torch.ones(3))
    assert [queried(box=box), queried(box=box)] == [whole, 0]
    with background_color_override_context(torch.tensor([1.0, 0.0, 0.0])):
        assert [queried(box=box), queried(box=box)] == [whole, 0]
    trained.model.loads += 1  # as loading other weights does
    assert [queried(), queried()] == [whole, 0]
    trained.model.config.eval_num_rays_per_chunk = 99
    assert queried() == whole
    trained.model.config.eval_num_rays_per_chunk = 100


def test_an_interrupted_view_goes_on_where_it_was(trained, audience: Audience, monkeypatch: pytest.MonkeyPatch):
    show(trained)
    trace, calls = trained.model.trace, []

    def interrupted(rays: RayBundle):
        calls.append(len(rays))
        if len(calls) == 3:
            raise IOChangeException
        return trace(rays)

    trained.model.loads += 1
    trained.model.label_source()  # seeds, and the scene that levels are found in
    monkeypatch.setattr(trained.model, "trace", interrupted)
    with pytest.raises(IOChangeException):
        look(trained)
    look(trained)
    assert calls == [100, 100, 100, 100, 100, 32]
    assert audience.reports[-1].queried == WIDTH * HEIGHT - 200


def test_a_view_is_stopped_between_chunks_and_nothing_is_lost(trained, audience: Audience):
    show(trained)
    trained.model.loads += 1
    before, calls = len(audience.reports), []

    def stop_at_the_third() -> None:
        calls.append(True)
        if len(calls) == 3:
            raise IOChangeException

    token = BETWEEN_CHUNKS.set(stop_at_the_third)
    try:
        with pytest.raises(IOChangeException):
            look(trained)
        assert len(audience.reports) == before
        look(trained)
    finally:
        BETWEEN_CHUNKS.reset(token)
    assert len(calls) == 3 + 5
    assert audience.reports[-1].queried == WIDTH * HEIGHT - 300


def test_edits_are_made_only_for_those_who_look(trained, audience: Audience):
    show(trained, Edit(kind="recolour", label=7, colour=(255, 0, 0)))
    outputs = look(trained)
    assert torch.equal(outputs["edited"], outputs["rgb"])
    audience.output = "edited"
    shown = look(trained)
    assert audience.reports[-1].queried == WIDTH * HEIGHT  # now samples are needed
    assert not torch.equal(shown["edited"], shown["rgb"])
    assert torch.equal(shown["edited"], without_screen(trained)["edited"])
    show(trained, Edit(kind="recolour", label=7, colour=(0, 0, 255)))
    again = look(trained)
    assert audience.reports[-1].queried == 0
    assert not torch.equal(again["edited"], shown["edited"])


def test_shares_are_those_of_the_selections(trained, audience: Audience):
    annotations = show(trained, threshold=0.8)
    for label in annotations.labels:
        set_annotations(trained, changes.select(annotations, label.id))
        outputs = look(trained)
        assert audience.reports[-1].shares[label.id] == pytest.approx(outputs["selection"].float().mean().item())


def test_memory_stays_within_its_budget(trained):
    show(trained)
    rays = trained.datamanager.eval_dataset.cameras[0:1].generate_rays(camera_indices=0, keep_shape=True)
    piece = Piece(trained.model.trace(rays.flatten()[:100]))
    light, full = piece.light().nbytes, piece.compact().nbytes
    assert 0 < light < full
    kept = KeptViews(budget=2 * full + light)
    first, second, third = (kept.view(replace(rays, origins=rays.origins + shift), "weights") for shift in (0, 1, 2))
    for view in (first, second):
        kept.keep(view, 0, piece)
    assert [view.pieces[0].nbytes for view in (first, second)] == [full, full]
    kept.keep(third, 0, piece)  # the oldest makes room
    assert third.pieces[0].nbytes == full
    assert kept.view(rays, "weights") is not first
    for index in range(1, 9):
        kept.keep(third, index, piece)
    sizes = [part.nbytes for part in third.pieces.values()]
    assert sum(sizes) <= 2 * full + light
    assert light in sizes  # without its samples, there was still room
    assert len(sizes) < 9


def test_a_piece_without_samples_says_so_when_they_are_missed(trained):
    rays = trained.random_training_rays(5)
    piece = Piece(trained.model.trace(rays))
    light = piece.light()
    assert torch.equal(light.jacobians, piece.jacobians)
    assert torch.equal(light.points, piece.points)
    assert light.samples is None
    assert piece.samples is not None


def test_rows_of_all_chunks_are_kept_in_memory_that_is_taken_once():
    parts = [{"rgb": torch.rand(rays, 3), "depth": torch.rand(rays, 1)} for rays in (4, 4, 3)]
    rows, places = Rows(11), []
    for first, part in zip((0, 4, 8), parts, strict=True):
        rows.put(first, part)
        places.append({name: column.data_ptr() for name, column in rows.columns.items()})
    assert places[0] == places[1] == places[2]
    for name, column in rows.columns.items():
        assert torch.equal(column, torch.cat([part[name] for part in parts]))
