"""Labels on a trained field: what model, keeper and edits show, against slow ways to the same pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.utils.eval_utils import eval_setup
from scipy.spatial import KDTree
from tiny import start, tiny_capture, tiny_config
from torch import Tensor

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.rays import world_click
from jacobinerf_ns.annotations.schema import Annotations, Box, Click, Edit, Label, Seed, SpaceClick, ViewSettings
from jacobinerf_ns.annotations.store import AnnotationStore, read_annotations, write_annotations
from jacobinerf_ns.core.jacobian import NORM_EPS
from jacobinerf_ns.core.partition import Partition, leaves_at
from jacobinerf_ns.core.plateaus import find_plateaus
from jacobinerf_ns.core.propagation import JNERF_PLUS, PAPER_PROPAGATION, PropagationConfig, Prototypes
from jacobinerf_ns.core.segments import MergeTree
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.labels.keeper import POOL_RAYS
from jacobinerf_ns.labels.responses import answers, prototype_responses, responses
from jacobinerf_ns.labels.seed_cache import rays_around
from jacobinerf_ns.labels.snapshot import LabelSnapshot, LabelView
from jacobinerf_ns.labels.tracer import trace_all
from jacobinerf_ns.labels.traces import NEAR_POINTS, Piece, _nearest_of_all, nearest_points
from jacobinerf_ns.labels.views import label_view
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.run.opened import open_run

LABELS = (Label(id=7, name="Left wall", colour=(255, 0, 0)), Label(id=300, name="depth chart", colour=(0, 255, 0)))
WIDTH, HEIGHT = 24, 18


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[JacobiNeRFPipeline, Path]:
    folder = tmp_path_factory.mktemp("labels")
    config = tiny_config(tiny_capture(folder / "room"), folder / "out", steps=60)
    trainer = start(config)
    trainer.train()
    return trainer.pipeline, trainer.base_dir


@pytest.fixture
def pipeline(trained) -> JacobiNeRFPipeline:
    found = trained[0]
    found.eval()
    found.model.label_source = None
    return found


def image(pipeline: JacobiNeRFPipeline) -> str:
    return pipeline.datamanager.train_dataparser_outputs.image_filenames[0].name


def click(pipeline: JacobiNeRFPipeline, label: int, pixel: tuple[int, int], negative: bool = False) -> Click:
    return Click(label=label, image=image(pipeline), width=WIDTH, height=HEIGHT, pixel=pixel, negative=negative)


def show(pipeline: JacobiNeRFPipeline, seeds: list[Seed], edits: tuple[Edit, ...] = (), **settings) -> LabelSnapshot:
    """Makes the pipeline show labels with these seeds, and returns what it shows."""
    view = ViewSettings(propagation=PropagationConfig(**settings))
    annotations = Annotations(labels=LABELS, seeds=tuple(seeds), edits=edits, view=view)
    maker = pipeline.label_maker()
    pipeline.model.label_source = lambda: maker.snapshot_of(annotations, Path())
    snapshot = pipeline.model.label_source()
    assert snapshot is not None
    return snapshot


def numbers(pipeline: JacobiNeRFPipeline, rays: RayBundle) -> LabelView:
    """The labels that the pipeline shows, as numbers."""
    assert pipeline.model.label_source is not None
    snapshot = pipeline.model.label_source()
    assert snapshot is not None
    return label_view(pipeline.model, rays, snapshot)


def view(pipeline: JacobiNeRFPipeline):
    return pipeline.datamanager.eval_dataset.cameras[0:1].generate_rays(camera_indices=0, keep_shape=True)


def two_clicks(pipeline: JacobiNeRFPipeline) -> list[Seed]:
    return [click(pipeline, 7, (3, 4)), click(pipeline, 300, (18, 14))]


def test_every_output_is_there_from_the_first_frame_and_can_be_shown(pipeline):
    without = pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline))
    show(pipeline, two_clicks(pipeline))
    outputs = pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline))
    names = {"resonance", "selection", "selection_overlay", "rgb_selected", "labels", "labels_overlay"}
    assert names | {"label_confidence", "edited"} <= without.keys()
    assert outputs.keys() - without.keys() == {"mask_left_wall", "mask_id_300"}  # no name says depth but depths
    for name, value in outputs.items():
        assert value.shape[:2] == (HEIGHT, WIDTH), name
        assert value.shape[2] in (1, 3), name
        assert value.dtype in (torch.float32, torch.bool), name
        if "depth" not in name and value.is_floating_point():
            assert float(value.min()) >= -1e-6, name
            assert float(value.max()) <= 1 + 1e-5, name


def test_rgb_and_depth_are_untouched_by_labels(pipeline):
    before = pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline))
    show(pipeline, two_clicks(pipeline), edits=(Edit(kind="remove", label=7),))
    after = pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline))
    for name in ("rgb", "depth", "accumulation"):
        assert torch.equal(before[name], after[name])


def test_label_view_numbers_are_the_pictures(pipeline):
    snapshot = show(pipeline, two_clicks(pipeline), void_below=0.4)
    outputs = pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline))
    labels = numbers(pipeline, view(pipeline))
    for position, name in enumerate(snapshot.mask_names()):
        assert torch.equal(outputs[name][..., 0], labels.decision.labels == position + 1)
    assert torch.equal(outputs["label_confidence"][..., 0], labels.decision.confidence)
    assert torch.equal(outputs["resonance"][..., 0], labels.responses[..., 0])


def test_a_clicked_pixel_answers_fully_and_chunks_do_not_matter(pipeline):
    show(pipeline, two_clicks(pipeline))
    bundle = pipeline.datamanager.train_dataset.cameras[0:1].generate_rays(camera_indices=0, keep_shape=True)
    whole = numbers(pipeline, bundle).responses
    assert float(whole[4, 3, 0]) == pytest.approx(1.0, abs=1e-5)
    assert float(whole[14, 18, 1]) == pytest.approx(1.0, abs=1e-5)
    chunk, pipeline.model.config.eval_num_rays_per_chunk = pipeline.model.config.eval_num_rays_per_chunk, 50
    try:
        parts = numbers(pipeline, bundle).responses
    finally:
        pipeline.model.config.eval_num_rays_per_chunk = chunk
    assert torch.allclose(whole, parts, atol=1e-5)


def test_exact_response_equals_really_perturbed_weights_rendered_again(pipeline):
    """The paper's way: change the RGB layer of a copy of the model, render, compare."""
    snapshot = show(pipeline, two_clicks(pipeline), prototypes="mean", response="raw", exact=True, step=20.0)
    rays = view(pipeline).flatten()
    with torch.no_grad():
        traced = pipeline.model.trace(rays)
        found = prototype_responses(Piece(traced), snapshot.prototypes.vectors, snapshot.config)
        layer = pipeline.model.field.mlp_head.rgb_layer
        original, shaped = layer.weight.clone(), traced.trace.activations.shape[-1]
        for k, vector in enumerate(snapshot.prototypes.vectors):
            try:
                layer.weight[:, :shaped] += snapshot.config.step * vector.view(3, shaped)
                again = pipeline.model.trace(rays).outputs["rgb"]
            finally:
                layer.weight.copy_(original)
            expected = (again - traced.outputs["rgb"]).abs().mean(-1)
            assert float(expected.max()) > 1e-4  # something moved
            assert float((found[:, k] - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"space": "3d"},
        {"response": "raw"},
        {"response": "raw", "exact": True},
        {"space": "3d", "response": "raw"},
        {"prototypes": "kmeans"},
        {"refine": 3},
        {"smooth": 0.5},
        {"refine": 3, "smooth": 0.5, "space": "3d"},
        {"prototypes": "mean", "response": "raw", "exact": True, "decision": "paper"},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
def test_every_way_of_answering_prefers_the_clicked_label_at_its_click(pipeline, settings):
    show(pipeline, two_clicks(pipeline), **settings)
    bundle = pipeline.datamanager.train_dataset.cameras[0:1].generate_rays(camera_indices=0, keep_shape=True)
    labels = numbers(pipeline, bundle)
    found = labels.responses
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0 + 1e-5
    if settings.get("decision") != "paper":
        assert float(found[4, 3, 0]) >= float(found[4, 3].max()) - 1e-5


@pytest.mark.parametrize(("least", "speak"), [(0.0, True), (1.1, False)])
def test_labels_of_many_pixels_have_centres_that_vote_where_they_fit(pipeline, monkeypatch, least: float, speak: bool):
    monkeypatch.setattr("jacobinerf_ns.labels.keeper.CENTRES_FIT", least)
    where = vars(click(pipeline, 7, (0, 0)))
    place = {name: where[name] for name in ("image", "width", "height")}
    halves: list[Seed] = [
        Box(label=7, corner=(0, 0), opposite=(10, 17), **place),
        Box(label=300, corner=(12, 0), opposite=(23, 17), **place),
    ]
    plain = show(pipeline, halves)
    assert plain.centres is None
    rays = view(pipeline).flatten()
    with torch.no_grad():
        piece = Piece(pipeline.model.trace(rays))
    without = responses(piece, plain)
    snapshot = show(pipeline, halves, refine=3)
    assert (snapshot.centres is not None) == speak
    found = responses(piece, snapshot)
    assert torch.equal(found, without) == (not speak)
    assert float(found.max()) <= 1.0 + 1e-5


def test_many_labels_are_rendered_from_one_query_of_the_field(pipeline, monkeypatch):
    many = tuple(Label(id=i + 1, name=f"label {i}", colour=(i, i, i)) for i in range(20))
    seeds = tuple(click(pipeline, i + 1, (i, i % HEIGHT)) for i in range(20))
    snapshot = pipeline.label_maker().snapshot_of(Annotations(labels=many, seeds=seeds), Path())
    pipeline.model.label_source = lambda: snapshot
    calls = []
    forward = pipeline.model.field.forward
    monkeypatch.setattr(pipeline.model.field, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline))
    rays, chunk = WIDTH * HEIGHT, pipeline.model.config.eval_num_rays_per_chunk
    assert len(calls) == -(-rays // chunk)


def test_a_negative_click_takes_its_pixel_out(pipeline):
    bundle = pipeline.datamanager.train_dataset.cameras[0:1].generate_rays(camera_indices=0, keep_shape=True)
    show(pipeline, [click(pipeline, 7, (3, 4))])
    before = numbers(pipeline, bundle).responses
    show(pipeline, [click(pipeline, 7, (3, 4)), click(pipeline, 7, (10, 10), negative=True)])
    after = numbers(pipeline, bundle).responses
    assert float(before[10, 10, 0]) > 0
    assert float(after[10, 10, 0]) == 0.0
    assert float(after[4, 3, 0]) == pytest.approx(1.0, abs=1e-5)


def test_a_click_in_space_is_the_same_click(pipeline):
    rays = pipeline.datamanager.train_dataset.cameras[0:1].generate_rays(
        camera_indices=torch.zeros(1, 1).long(), coords=torch.tensor([[4.5, 3.5]])
    )
    in_image = show(pipeline, [click(pipeline, 7, (3, 4))])
    in_space = show(pipeline, [world_click(pipeline.world, rays.origins[0], rays.directions[0], 7)])
    cosine = F.cosine_similarity(in_image.prototypes.vectors, in_space.prototypes.vectors)
    assert float(cosine) > 1 - 1e-4


def test_seeds_in_the_sky_are_refused_in_one_line(pipeline, monkeypatch):
    away = SpaceClick(label=7, origin=(0.0, 0.0, 0.0), direction=(0.0, 0.0, 1.0))
    trace = pipeline.model.trace

    def empty(rays):
        traced = trace(rays)
        return traced._replace(outputs={**traced.outputs, "accumulation": torch.zeros(len(rays), 1)})

    monkeypatch.setattr(pipeline.model, "trace", empty)
    with pytest.raises(UserError, match=r"no seed of label 'Left wall' hits a surface \(1 tried"):
        show(pipeline, [away])


def test_seeds_are_rendered_once_until_seeds_or_weights_change(pipeline, tmp_path, monkeypatch):
    path = tmp_path / "annotations.json"
    annotations = Annotations(labels=LABELS, seeds=tuple(two_clicks(pipeline)))
    write_annotations(path, annotations)
    store = AnnotationStore(path)
    keeper = pipeline.keep_labels(store)
    traces = []
    trace = pipeline.model.trace
    monkeypatch.setattr(pipeline.model, "trace", lambda rays: traces.append(1) or trace(rays))
    first = keeper()
    traces.clear()
    lower = replace(annotations.view.propagation, threshold=0.3)
    store.change(annotations.model_copy(update={"view": ViewSettings(propagation=lower, opacity=0.1)}))
    second = keeper()
    assert traces == []  # a slider renders nothing anew
    assert second.config.threshold == 0.3
    assert second.prototypes is first.prototypes
    pipeline.model.loads += 1
    keeper()
    assert traces
    traces.clear()
    write_annotations(path, Annotations(labels=LABELS, seeds=(click(pipeline, 7, (1, 1)),)))
    assert len(keeper().prototypes.vectors) == 1  # another program changed the file
    assert len(traces) == 1


def test_a_further_click_costs_one_ray_and_an_undo_none(pipeline, tmp_path, monkeypatch):
    store = AnnotationStore(tmp_path / "annotations.json")
    store.change(Annotations(labels=LABELS, seeds=tuple(two_clicks(pipeline))))
    keeper, rays, trace = pipeline.keep_labels(store), [], pipeline.model.trace
    monkeypatch.setattr(pipeline.model, "trace", lambda bundle: rays.append(len(bundle)) or trace(bundle))
    first = keeper()
    store.change(lambda now: changes.add_seed(now, click(pipeline, 7, (20, 5))))
    both = keeper()
    store.undo()
    again = keeper()
    assert rays[0] == 2
    # The scene, which levels are found in, is looked at once.
    assert (sum(rays[1:-1]), rays[-1]) == (POOL_RAYS, 1)
    assert torch.equal(again.prototypes.vectors, first.prototypes.vectors)
    assert torch.equal(both.prototypes.vectors[:2], first.prototypes.vectors)
    # Those of a fresh start, which renders them all at once.
    more = changes.add_seed(store.snapshot()[1], click(pipeline, 7, (20, 5)))
    fresh = pipeline.label_maker().snapshot_of(more, Path())
    assert fresh is not None
    assert torch.allclose(fresh.prototypes.vectors, both.prototypes.vectors, atol=1e-6)


def test_marks_are_where_seeds_hit(pipeline):
    snapshot = show(pipeline, two_clicks(pipeline))
    cameras = pipeline.datamanager.train_dataset.cameras
    for mark, (row, col) in zip(snapshot.marks, ((4, 3), (14, 18)), strict=True):
        ray = cameras.generate_rays(camera_indices=torch.tensor([[0]]), coords=torch.tensor([[row + 0.5, col + 0.5]]))
        depth = pipeline.model.trace(ray).outputs["depth"][0]
        expected = ray.origins[0] + ray.directions[0] * depth
        assert mark.hit
        assert torch.allclose(torch.tensor(mark.point), expected, atol=1e-5)
    assert [mark.seed.label for mark in snapshot.marks] == [7, 300]


def test_rendering_goes_on_with_the_last_good_labels(pipeline, tmp_path):
    path = tmp_path / "annotations.json"
    write_annotations(path, Annotations(labels=LABELS, seeds=tuple(two_clicks(pipeline))))
    keeper = pipeline.keep_labels(AnnotationStore(path))
    good = keeper()
    stray = Click(label=7, image="nowhere.png", width=WIDTH, height=HEIGHT, pixel=(1, 1))
    write_annotations(path, Annotations(labels=LABELS, seeds=(stray,)))
    assert keeper() is good
    assert "nowhere.png" in keeper.problem
    with pytest.raises(UserError, match=r"nowhere\.png"):
        keeper.current()
    path.write_text("{ damaged")
    assert keeper() is not None
    assert "JSON" in keeper.problem


def test_a_run_finds_the_annotations_beside_its_config(trained):
    pipeline, folder = trained
    pipeline.eval()
    path = folder / "annotations.json"
    write_annotations(path, Annotations(labels=LABELS, seeds=tuple(two_clicks(pipeline))))
    try:
        run = open_run(folder / "config.yml")
        assert run.pipeline.labels is not None
        snapshot = run.pipeline.labels.current()
        assert snapshot is not None
        assert len(snapshot.labels) == 2
        assert run.folder == folder
        write_annotations(
            path, Annotations(labels=LABELS, seeds=(click(pipeline, 7, (1, 1)).model_copy(update={"image": "no.png"}),))
        )
        keeper = open_run(folder / "config.yml").pipeline.labels
        assert keeper is not None
        with pytest.raises(UserError, match=r"no\.png"):
            keeper.current()
        opened = eval_setup(folder / "config.yml")[1]
        assert isinstance(opened, JacobiNeRFPipeline)
        assert opened.labels is not None
        with pytest.raises(SystemExit) as stopped:  # ns-render: at the first frame, in one line
            opened.model.get_outputs_for_camera(opened.datamanager.eval_dataset.cameras[:1])
        assert stopped.value.code == 2
        opened.labels.refuses = False  # with a panel: there it can be mended
        opened.labels()
        assert "no.png" in str(opened.labels.problem)
    finally:
        path.unlink()
    with pytest.raises(UserError, match="no such file"):
        open_run(folder / "nothing.yml")


def test_rays_around_a_ray_are_its_pixels(pipeline):
    cameras = pipeline.datamanager.train_dataset.cameras
    rays = cameras[0:1].generate_rays(camera_indices=torch.zeros(1, 1).long(), coords=torch.tensor([[9.5, 12.5]]))
    around = rays_around(rays, 2)
    assert len(around) == 25
    assert torch.allclose(around.directions.norm(dim=-1), torch.ones(25))
    centre = F.cosine_similarity(around.directions, rays.directions)
    assert float(centre.max()) == pytest.approx(1.0, abs=1e-6)
    beside = cameras[0:1].generate_rays(camera_indices=torch.zeros(1, 1).long(), coords=torch.tensor([[9.5, 11.5]]))
    pixel = float((beside.directions - rays.directions).norm())
    farthest = float((around.directions - rays.directions).norm(dim=-1).max())
    assert 2.0 * pixel < farthest < 4.5 * pixel  # two pixels along both axes, about


def edited(pipeline: JacobiNeRFPipeline, *edits: Edit) -> torch.Tensor:
    show(pipeline, two_clicks(pipeline), edits=edits, threshold=0.5)
    return pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline))["edited"]


def test_without_edits_edited_is_the_rendering(pipeline):
    outputs = pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline))
    assert torch.equal(edited(pipeline), outputs["rgb"])


@pytest.mark.parametrize("kind", ["recolour", "remove", "extract"])
def test_an_edit_without_strength_changes_nothing(pipeline, kind):
    plain = pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline))["rgb"]
    assert torch.allclose(
        edited(pipeline, Edit(kind=kind, label=7, strength=0.0)), plain, atol=2e-2 if kind == "extract" else 1e-4
    )


def test_edits_never_touch_weights_and_do_not_wear(pipeline):
    before = {name: value.clone() for name, value in pipeline.model.state_dict().items()}
    once = edited(pipeline, Edit(kind="recolour", label=7))
    for _ in range(3):
        edited(pipeline, Edit(kind="remove", label=7), Edit(kind="recolour", label=300))
    assert torch.equal(edited(pipeline, Edit(kind="recolour", label=7)), once)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.model.state_dict().items())


def test_recolouring_pulls_the_label_towards_the_colour_and_leaves_the_rest(pipeline):
    plain = pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline))["rgb"]
    show(pipeline, two_clicks(pipeline), threshold=0.5)
    labels = numbers(pipeline, view(pipeline))
    red = edited(pipeline, Edit(kind="recolour", label=7, colour=(255, 0, 0)))
    change = (red - plain).mean(dim=(0, 1))
    assert float(change[0]) > 0 > float(change[2])
    far = labels.responses[..., 1] - labels.responses[..., 0] > 0.3
    near = labels.responses[..., 0] > 0.9
    if bool(far.any()):
        # Of what is near, some is black or red already.
        assert float((red - plain)[far].abs().mean()) < 0.2 * float((red - plain)[near].abs().mean(dim=-1).amax())


def test_boxes_vote_and_presets_are_known(pipeline):
    seeds: list[Seed] = [
        Box(label=7, image=image(pipeline), width=WIDTH, height=HEIGHT, corner=(0, 0), opposite=(7, 7)),
        Box(label=300, image=image(pipeline), width=WIDTH, height=HEIGHT, corner=(16, 10), opposite=(23, 17)),
    ]
    snapshot = show(pipeline, seeds)
    assert len(snapshot.prototypes.vectors) == 128
    assert JNERF_PLUS.refine > 0
    assert PAPER_PROPAGATION.decision == "paper"


def test_responses_without_prototypes_are_zero(pipeline):
    nothing = Prototypes(torch.zeros(0, 48), torch.zeros(0).long(), torch.zeros(0).bool(), torch.zeros(0))
    traced = pipeline.model.trace(view(pipeline).flatten())
    assert float(responses(Piece(traced), LabelSnapshot(LABELS, nothing)).abs().max()) == 0.0


def test_annotation_file_of_a_run_starts_empty(trained):
    assert read_annotations(trained[1] / "annotations.json") == Annotations()


def test_one_label_alone_is_not_refined_away(pipeline):
    alone: list[Seed] = [click(pipeline, 7, (3, 4))]
    plain = show(pipeline, alone).prototypes
    assert torch.equal(show(pipeline, alone, refine=JNERF_PLUS.refine).prototypes.vectors, plain.vectors)
    both = show(pipeline, two_clicks(pipeline)).prototypes
    assert not torch.equal(
        show(pipeline, two_clicks(pipeline), refine=JNERF_PLUS.refine).prototypes.vectors, both.vectors
    )


def halved(points: Tensor, one: Tensor, other: Tensor) -> Partition:
    """A scene of two segments: what is nearer to one point, and what is nearer to the other."""
    leaves = ((points - other).norm(dim=-1) < (points - one).norm(dim=-1)).long().numpy()
    none = np.zeros(0, dtype=np.int64)
    tree = MergeTree(2, none, none, np.zeros(0))
    return Partition(points.numpy(), leaves, np.array([[0, 1]]), 1.0, tree, np.zeros((2, 3)))


def test_where_segments_are_known_clicks_and_surfaces_say_what_their_segments_do(pipeline, monkeypatch):
    maker = pipeline.label_maker()
    with torch.no_grad():
        surface = maker._surface()
    points = torch.from_numpy(surface.tree.data).float()
    plain = show(pipeline, two_clicks(pipeline))
    scene = halved(points, *(torch.tensor(mark.point) for mark in plain.marks))
    parted = pipeline.label_maker()
    parted._partitions = lambda: [scene]
    monkeypatch.setattr(pipeline, "label_maker", lambda: parted)
    snapshot = show(pipeline, two_clicks(pipeline), refine=10, smooth=1.0)
    inside = torch.from_numpy(leaves_at(points.double().numpy(), scene)) == 0
    unit = F.normalize(surface.vectors, dim=-1, eps=NORM_EPS)
    means = torch.stack([unit[side].mean(0) for side in (inside, ~inside)])
    cosines = F.cosine_similarity(snapshot.prototypes.vectors, means, dim=-1)
    torch.testing.assert_close(cosines, torch.ones(2))
    assert not torch.allclose(F.cosine_similarity(plain.prototypes.vectors, means, dim=-1), torch.ones(2))
    assert snapshot.pool is not None
    meets = surface.vectors.norm(dim=-1) > 0.99  # what meets nothing answers to nothing
    for answered, side in zip(snapshot.pool.responses.T, (meets & inside, meets & ~inside), strict=True):
        torch.testing.assert_close(answered[side], torch.ones(int(side.sum())), atol=1e-5, rtol=0)
    # What somebody tells apart within a segment is not one.
    torn = show(pipeline, [click(pipeline, 7, (3, 4)), click(pipeline, 300, (4, 4))], refine=10, smooth=1.0)
    apart = show(pipeline, [click(pipeline, 7, (3, 4)), click(pipeline, 300, (4, 4))])
    torch.testing.assert_close(torn.prototypes.vectors, apart.prototypes.vectors)


def test_every_label_has_its_own_levels_and_a_size_among_them(pipeline):
    snapshot = show(pipeline, two_clicks(pipeline))
    rays = pipeline.random_training_rays(POOL_RAYS)
    with torch.no_grad():
        scene = trace_all(pipeline.model, rays, lambda traced: answers(Piece(traced), snapshot).connected)
    for position, label in enumerate(snapshot.labels):
        found = find_plateaus(scene[:, position])
        assert snapshot.levels(position) == found
        assert snapshot.thresholds()[position] == found.levels[found.natural]
        for grow in range(-9, 10):
            grown = replace(snapshot, labels=tuple(one.model_copy(update={"grow": grow}) for one in snapshot.labels))
            assert grown.thresholds()[position] == found.levels[found.used(grow)], label
    strict = replace(snapshot, config=replace(snapshot.config, strictness=-1.0))
    assert strict.thresholds() == [0.0, 0.0]


def test_a_selection_hangs_together_with_its_seeds_unless_that_is_not_wanted(pipeline):
    apart = show(pipeline, two_clicks(pipeline), connected=False)
    found = numbers(pipeline, view(pipeline))
    assert apart.connection is None
    assert torch.equal(found.connected, found.responses)
    whole = show(pipeline, two_clicks(pipeline))
    held = numbers(pipeline, view(pipeline))
    torch.testing.assert_close(held.responses, found.responses)
    assert (held.connected <= held.responses).all()
    assert whole.connection is not None
    # What nothing carries to is nowhere selected, however much it responds.
    cut = replace(whole, connection=whole.connection._replace(carried=torch.zeros_like(whole.connection.carried)))
    assert not label_view(pipeline.model, view(pipeline), cut).connected.any()


def test_a_threshold_that_is_named_is_the_natural_level_of_all_labels(pipeline):
    snapshot = show(pipeline, two_clicks(pipeline), threshold=0.33)
    assert snapshot.thresholds() == [0.33, 0.33]
    own = show(pipeline, two_clicks(pipeline))
    assert all({*own.levels(k).levels, 0.33} == {*snapshot.levels(k).levels} for k in range(2))


@pytest.mark.parametrize("strictness", [0.0, -0.5, 0.5])
def test_a_label_alone_is_its_selection_in_every_output(pipeline, strictness: float):
    """A second label that nobody has clicked yet changes nothing of that."""
    snapshot = show(pipeline, [click(pipeline, 7, (3, 4))], strictness=strictness)
    assert snapshot.alone
    shown, found = pipeline.model.get_outputs_for_camera_ray_bundle(view(pipeline)), numbers(pipeline, view(pipeline))
    selection = shown["selection"][..., 0]
    mine = found.connected[..., 0]
    assert torch.equal(selection, (mine >= snapshot.thresholds()[0]) & (mine > 0))
    assert torch.equal(selection, shown[snapshot.mask_names()[0]][..., 0])
    assert torch.equal(selection, found.decision.labels == 1)
    assert not show(pipeline, two_clicks(pipeline)).alone


def test_a_gpu_finds_the_points_that_the_tree_finds():
    generator = torch.Generator().manual_seed(0)
    known, places = torch.rand(50, 3, generator=generator), torch.rand(4, 7, 3, generator=generator)
    by_tree = nearest_points(KDTree(known.numpy()), places)
    assert torch.equal(_nearest_of_all(known, places, NEAR_POINTS), by_tree)
    few = nearest_points(KDTree(known[:3].numpy()), places)
    assert torch.equal(_nearest_of_all(known[:3], places, 3), few)
    missed = torch.full((2, 3), torch.nan)
    assert nearest_points(KDTree(known.numpy()), missed).shape == (2, NEAR_POINTS)
