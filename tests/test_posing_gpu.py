"""Every door on a GPU that is none (`posing_gpu`): no operation mixes devices, and nothing waits for the GPU unasked.

The same tests run on a real GPU where there is one.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from posing_gpu import CUDA, HostReads, MixedDevices, posing_gpu, uncompiled
from tiny import SHAPING_START, start, tiny_capture, tiny_config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from jacobinerf_ns import shaping
from jacobinerf_ns.annotations.schema import Annotations, Click, Edit, Label, ViewSettings
from jacobinerf_ns.annotations.store import write_annotations
from jacobinerf_ns.core.propagation import JNERF_PLUS, PAPER_PROPAGATION, PropagationConfig
from jacobinerf_ns.evaluation import registry
from jacobinerf_ns.evaluation.annotators import Annotator
from jacobinerf_ns.evaluation.exercise import TrainedFields
from jacobinerf_ns.evaluation.labels import evaluate
from jacobinerf_ns.evaluation.objects import ObjectTask, evaluate_object
from jacobinerf_ns.evaluation.rivals import aggregator, feature_field, semantic_head
from jacobinerf_ns.evaluation.shaping_quality import evaluate_one_click
from jacobinerf_ns.hash_grid import grid
from jacobinerf_ns.labels import edits, keeper, memory
from jacobinerf_ns.labels.memory import ChunkSize
from jacobinerf_ns.labels.truth import read_truth
from jacobinerf_ns.labels.views import SCREEN, KeptViews, Screen, ViewReport, render_view
from jacobinerf_ns.run.opened import Run, open_run
from jacobinerf_ns.shaping import PairRule
from jacobinerf_ns.tasks import queries
from jacobinerf_ns.tasks.feature_field.field import FeatureField
from jacobinerf_ns.tasks.parts.export import export_parts
from jacobinerf_ns.tasks.settings import ExportSettings
from jacobinerf_ns.tasks.transfer import transfer as transfers
from jacobinerf_ns.tasks.transfer.side import Side
from jacobinerf_ns.tasks.transfer.transfer import TransferSettings, transfer

WIDTH, HEIGHT = 24, 18
CHUNK = 200
CHUNKS = 3
"""Of one view."""
READS_OF_A_CHUNK, READS_OF_A_VIEW = 3, 3
"""How many prototypes vote is found out in each chunk; at the end come the labels' shares."""
READS_OF_A_LOOK = 4
"""Of an edit, at each look behind what was removed."""
LABELS = (Label(id=7, name="wall", colour=(255, 0, 0)), Label(id=9, name="chart", colour=(0, 255, 0)))
SETTINGS = {
    "nearest": PropagationConfig(),
    "3d": PropagationConfig(space="3d"),
    "raw": PropagationConfig(response="raw"),
    "exact": PropagationConfig(response="raw", exact=True),
    "raw, 3d": PropagationConfig(response="raw", space="3d"),
    "plus": JNERF_PLUS,
    "void": PropagationConfig(void_below=0.6),
    "paper": PAPER_PROPAGATION,
}
EDITS = (
    Edit(kind="recolour", label=7, colour=(255, 0, 0)),
    Edit(kind="remove", label=7),
    Edit(kind="extract", label=9),
)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("posing")
    trainer = start(tiny_config(tiny_capture(folder / "room"), folder / "out", steps=40))
    trainer.train()
    return trainer.base_dir / "config.yml"


def no_gpu() -> bool:
    return not torch.cuda.is_available()


REAL = pytest.param("real", marks=[pytest.mark.gpu, pytest.mark.skipif(no_gpu(), reason="there is no GPU here")])


@pytest.fixture(params=["posing", REAL])
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """A GPU for the length of a test."""
    with posing_gpu() if request.param == "posing" else nullcontext():
        yield request.param


@pytest.fixture(scope="module")
def opened(config_path: Path) -> Callable[[str], Run]:
    """The run, opened once on each GPU, with photos."""
    runs: dict[str, Run] = {}

    def on(gpu: str) -> Run:
        if gpu not in runs:
            runs[gpu] = open_run(config_path, load_photos=True)
        return runs[gpu]

    return on


@pytest.fixture
def run(opened: Callable[[str], Run], gpu: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = opened(gpu)
    assert run.pipeline.model.device.type == "cuda"
    run.pipeline.eval()
    run.pipeline.model.config.eval_num_rays_per_chunk = CHUNK
    monkeypatch.setattr(keeper, "POOL_RAYS", 400)
    return run


def annotated(run: Run, config: PropagationConfig, *edits: Edit) -> Annotations:
    image = run.photos("train")[0].name
    seeds = tuple(
        Click(label=label, image=image, width=WIDTH, height=HEIGHT, pixel=pixel)
        for label, pixel in ((7, (3, 4)), (9, (18, 14)))
    )
    return Annotations(labels=LABELS, seeds=seeds, edits=edits, view=ViewSettings(propagation=config))


def view(run: Run) -> Any:
    camera = run.pipeline.datamanager.eval_dataset.cameras[0:1].to(run.pipeline.model.device)
    return camera.generate_rays(camera_indices=0, keep_shape=True)


def annotate(run: Run, config: PropagationConfig, *edits: Edit) -> None:
    """Let the run's own labels be those, as if they had been clicked."""
    write_annotations(run.annotations_file, annotated(run, config, *edits))


@pytest.mark.parametrize("name", SETTINGS)
def test_views(run: Run, name: str):
    snapshot = run.pipeline.label_maker().snapshot_of(annotated(run, SETTINGS[name]), Path())
    rays = view(run)
    with HostReads() as reads:
        shown = render_view(run.pipeline.model, rays, snapshot)
    assert all(output.device.type == "cuda" for output in shown.values())

    assert len(reads.found) == CHUNKS * READS_OF_A_CHUNK + READS_OF_A_VIEW, reads.by_place()


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.kind)
def test_edits(run: Run, edit: Edit):
    snapshot = run.pipeline.label_maker().snapshot_of(annotated(run, PropagationConfig(threshold=0.3), edit), Path())
    rays = view(run)
    with HostReads() as reads:
        shown = render_view(run.pipeline.model, rays, snapshot)
    assert not np.allclose(shown["edited"].cpu().numpy(), shown["rgb"].cpu().numpy())
    most = CHUNKS * (READS_OF_A_CHUNK + (1 + edits.LAYERS) * READS_OF_A_LOOK) + READS_OF_A_VIEW
    assert len(reads.found) <= most, reads.by_place()


def test_a_chunk_is_as_large_as_the_memory_that_is_free(run: Run, monkeypatch: pytest.MonkeyPatch):
    model = run.pipeline.model
    snapshot = run.pipeline.label_maker().snapshot_of(annotated(run, PropagationConfig()), Path())
    monkeypatch.setattr(model.config, "eval_num_rays_per_chunk", 1 << 15)
    monkeypatch.setattr(model, "_chunk_size", ChunkSize())
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * 300 * model.bytes_per_ray)
    traced: list[int] = []
    monkeypatch.setattr(model, "trace", lambda rays, trace=model.trace: (traced.append(len(rays)), trace(rays))[1])
    render_view(model, view(run), snapshot)
    assert traced == [256, WIDTH * HEIGHT - 256]


def test_kept_views(run: Run):
    reports: list[ViewReport] = []
    screen = Screen(KeptViews(), lambda name: True, reports.append)
    token, maker = SCREEN.set(screen), run.pipeline.label_maker()
    rays, model = view(run), run.pipeline.model
    try:
        for config in (PAPER_PROPAGATION, PropagationConfig(), JNERF_PLUS):
            render_view(model, rays, maker.snapshot_of(annotated(run, config), Path()))
    finally:
        SCREEN.reset(token)
    assert [report.queried for report in reports] == [WIDTH * HEIGHT, 0, 0]
    assert set(reports[-1].shares) == {7, 9}


@pytest.mark.parametrize("config", [PropagationConfig(threshold=0.3), PAPER_PROPAGATION], ids=["nearest", "paper"])
def test_export(run: Run, config: PropagationConfig, tmp_path: Path):
    pytest.importorskip("open3d", exc_type=ImportError)
    annotate(run, config)
    found = export_parts(run, ["all"], tmp_path, ExportSettings(num_points=50))
    assert found["points"] > 0


def test_every_contender(run: Run, monkeypatch: pytest.MonkeyPatch):
    few = partial(feature_field.distil, steps=2, pool=128)
    monkeypatch.setattr(feature_field, "distil", few)
    monkeypatch.setattr(aggregator, "train_aggregator", partial(aggregator.train_aggregator, steps=2))
    monkeypatch.setattr(semantic_head, "train_semantic_head", partial(semantic_head.train_semantic_head, steps=2))
    fields = TrainedFields(run.pipeline, run.pipeline)
    report = evaluate(fields, Annotator("sparse"), tuple(registry.CONTENDERS), seeds=(0,), stride=6)
    assert set(report.scores) == set(registry.CONTENDERS)


def test_one_object(run: Run, tmp_path: Path):
    data = run.pipeline.datamanager
    for frame, truth in zip(data.frames("train"), read_truth(data.frames("train")), strict=True):
        mask = (truth == truth[HEIGHT // 2, WIDTH // 2]).numpy()
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{frame.path.stem}.png")
    fields = TrainedFields(run.pipeline, None)
    report = evaluate_object(fields, ObjectTask(tmp_path, clicks=2), ("2d", "teacher"), seeds=(0,), stride=3)
    assert 0.0 <= report.mean("2d", "iou") <= 1.0


def test_scores_of_shaping_itself(run: Run):
    assert evaluate_one_click(run.pipeline, (0,)).psnr > 0


def test_scores_of_the_runs_own_labels(run: Run):
    annotate(run, PropagationConfig())
    assert "miou" in run.pipeline._label_scores()


@pytest.fixture
def feature_field_of_run(run: Run) -> FeatureField:
    found = FeatureField(run.pipeline.model.field, dims=8)
    torch.nn.init.normal_(found.encoding.hash_table)
    return found.to(run.pipeline.model.device).requires_grad_(False)


def test_queries(run: Run, feature_field_of_run: FeatureField):
    model, photos = run.pipeline.model, run.photos()
    query = queries.query_of_photo(model, feature_field_of_run, photos, photos[0].name, (2, 3, 6, 7))
    similarity = queries.view_similarity(model, feature_field_of_run, photos[1].camera, query.cpu())
    assert similarity.shape == (HEIGHT, WIDTH)
    assert np.isfinite(similarity.numpy()).all()


@pytest.mark.parametrize("distilled", [False, True])
def test_transfer(run: Run, feature_field_of_run: FeatureField, monkeypatch: pytest.MonkeyPatch, distilled: bool):
    monkeypatch.setattr(transfers, "LOOKED_AT", 300)
    source, target = Side(run), Side(run)
    if distilled:
        monkeypatch.setattr(Side, "_feature_field", feature_field_of_run)
    found = transfer(source, target, annotated(run, PropagationConfig()), Path(), TransferSettings())
    assert {part.label.id for part in found.found} == {7, 9}


def test_the_front_door(run: Run):
    labels = run.fit(annotated(run, PropagationConfig()), refine=3, smooth=0.3)
    seen = labels.render(run.photos()[0].name)
    assert seen.ids.shape == (HEIGHT, WIDTH)
    assert isinstance(seen.overlay(), np.ndarray)


class Step(NamedTuple):
    losses: dict[str, Tensor]
    reads: HostReads


def step(run: Run, shaped: bool, pairs: PairRule = "soft") -> Step:
    """The model's part of a training step, on a batch that is there."""
    pipeline, model = run.pipeline, run.pipeline.model
    rays, batch = pipeline.datamanager.next_train(SHAPING_START)
    rays, batch["image"] = rays.to(model.device), batch["image"].to(model.device)
    batch["features"] = torch.rand(64, 5).to(model.device)
    model.step, model.log_every = SHAPING_START if shaped else 0, 0
    model.config.shaping.pairs = pairs
    pipeline.train()
    with HostReads() as reads:
        outputs = model(rays)
        metrics = model.get_metrics_dict(outputs, batch)
        losses = model.get_loss_dict(outputs, batch, metrics)
        torch.stack(list(losses.values())).sum().backward()
    model.zero_grad()
    return Step(losses, reads)


@pytest.mark.parametrize("pairs", ["soft", "threshold"])
def test_a_shaped_step_waits_for_nothing_that_a_plain_one_does_not_wait_for(run: Run, pairs: PairRule):
    step(run, shaped=True)  # what is asked once per training
    plain, shaped = step(run, shaped=False), step(run, shaped=True, pairs=pairs)
    assert shaped.losses.keys() - plain.losses.keys() == {"mig_loss", "norm_loss"}
    assert shaped.reads.by_place() == plain.reads.by_place()


@pytest.mark.parametrize("function", ["cosines", "soft loss"])
def test_gradients_in_closed_form_stay_on_the_gpu_and_wait_for_nothing(gpu: str, function: str):
    vectors = torch.rand(6, 4, device="cuda")
    context = SimpleNamespace(needs_input_grad=(True, False), saved_tensors=())
    context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
    with HostReads() as reads:
        if function == "cosines":
            gradient = shaping._Cosines.forward(context, vectors)
            found = backward_of(shaping._Cosines)(context, gradient)
        else:
            cosines = shaping.cosine_matrix(vectors)
            loss = shaping._SoftMig.forward(context, cosines, shaping.soft_pairs(cosines, 0.1), 0.15, 0.5)
            found = backward_of(shaping._SoftMig)(context, loss)[0]
    assert found.device.type == "cuda"
    assert reads.found == []


def backward_of(function: type) -> Callable[..., Any]:
    """The formula itself, without the check that it is asked for once."""
    return vars(function)["backward"].__func__.__wrapped__


@pytest.mark.parametrize(("shaped", "pairs"), [(False, "soft"), (True, "soft"), (True, "threshold")])
def test_a_training_step_without_any_values(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, shaped: bool, pairs: PairRule
):
    """Fake tensors of a GPU have shapes and devices alone: whatever the host would read of them raises."""
    pipeline = open_run(config_path, load_photos=True).pipeline
    rays, batch = pipeline.datamanager.next_train(SHAPING_START)
    monkeypatch.setattr(grid, "readiness", lambda *_: grid.Readiness(None, None))
    monkeypatch.setattr(torch, "compile", uncompiled)
    model = pipeline.train().model
    model.step, model.log_every = SHAPING_START if shaped else 0, 0
    model.config.shaping.pairs = pairs
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in model.modules():
            for name, own in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(mode.from_tensor(own.detach()).to("cuda"), own.requires_grad))
            for name, own in module.named_buffers(recurse=False):
                module._buffers[name] = mode.from_tensor(own).to("cuda")
        batch = {"image": torch.rand(64, 3, device="cuda"), "features": torch.rand(64, 5, device="cuda")}
        outputs = model(rays.to("cuda"))
        losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
        total = torch.stack(list(losses.values())).sum()
        # PyTorch's engine asks the driver about the device of gradients, of fake ones too.
        if torch.cuda.is_available():
            total.backward()
    assert total.device.type == "cuda"
    assert ("mig_loss" in losses) == shaped


def test_what_poses_as_a_gpu_refuses_what_a_gpu_refuses():
    own = torch.arange(6.0).view(2, 3)
    with posing_gpu():
        there = own.to(CUDA)
        assert (there + 1).device == (there * own.sum()).device == torch.zeros(2, device=CUDA).device == CUDA
        refused = (
            lambda: there + own,
            lambda: own.add_(there),
            lambda: own.sum().add_(there.sum()),
            lambda: own[there.argmax(0)],
            lambda: there.index_put_((torch.tensor([0]),), own[:1]),
            lambda: torch.rand(2, device=CUDA, generator=torch.Generator()),
        )
        for operation in refused:
            with pytest.raises(MixedDevices):
                operation()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(there)


@pytest.mark.parametrize(
    ("waits", "times"),
    [
        (lambda there: there.cpu(), 1),
        (lambda there: there.tolist(), 1),
        (lambda there: bool(there.any()), 1),
        (lambda there: there.nonzero(), 1),
        (lambda there: there.unique(), 1),
        (lambda there: there[there > 1], 1),
        (lambda there: there.masked_fill(there > 1, 0.0) + there.sum(), 0),
        (lambda there: there[torch.tensor([1, 0])], 0),
    ],
)
def test_what_the_host_waits_for_is_counted(gpu: str, waits: Callable[[Tensor], object], times: int):
    there = torch.arange(6.0).view(2, 3).to(CUDA)
    with HostReads() as reads:
        waits(there)
    assert len(reads.found) == times
