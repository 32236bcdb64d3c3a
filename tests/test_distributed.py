"""Two processes that train together: one loss, one threshold, one set of files; and one process, as it ever was."""

import random
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.scripts import train
from tiny import SHAPING_START, start, tiny_capture, tiny_config
from torch import Tensor, nn
from torch.multiprocessing import ProcessExitedException
from torch.nn.parallel import DistributedDataParallel

from jacobinerf_ns import shaping
from jacobinerf_ns.compat import checkpoints
from jacobinerf_ns.core import gathering
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.trainer import JacobiNeRFTrainer, JacobiNeRFTrainerConfig

PROCESSES = 2
RULES: tuple[shaping.PairRule, ...] = ("soft", "threshold")
STEPS, STEPS_BEFORE_RESUME = 8, 6
TOLERANCE = 1e-5
CAMERAS = "camera_optimizer.pose_adjustment"


def toy(rule: shaping.PairRule, rows: slice) -> dict[str, Tensor]:
    """Loss, gradient and moved threshold where the Jacobians are those of a linear layer, from some of 48 rows."""
    generator = torch.Generator().manual_seed(0)
    inputs, features = torch.rand(48, 5, generator=generator), torch.rand(48, 4, generator=generator) - 0.3
    layer: nn.Module = nn.Linear(5, 6)
    nn.init.normal_(layer.get_parameter("weight"), generator=generator)
    nn.init.zeros_(layer.get_parameter("bias"))
    shared = DistributedDataParallel(layer) if gathering.world_size() > 1 else layer
    jacobians = gathering.gather_rows(shared(inputs[rows]))
    teacher = gathering.gather_rows(features[rows])
    config = shaping.ShapingConfig(pairs=rule)
    terms, threshold = shaping.shaping_terms(jacobians, teacher, torch.tensor(0.8), config)
    loss = terms.mig + terms.norm
    loss.backward()
    gradients = {
        f"gradient of {name}": value.grad for name, value in layer.named_parameters() if value.grad is not None
    }
    return {"loss": loss.detach(), "threshold": threshold, **gradients}


def step_of(pipeline: JacobiNeRFPipeline, batch: dict[str, Tensor], rows: slice) -> dict[str, dict[str, Tensor]]:
    """Losses and gradients of the whole model on some rays of a batch, for both pair rules; the model is left as is."""
    model, found = pipeline.model, {}
    pipeline.train()
    model.step = SHAPING_START
    samplers: tuple[Any, ...] = (model.proposal_sampler.initial_sampler, model.proposal_sampler.pdf_sampler)
    before = deepcopy(model.state_dict())
    mine = {key: value[rows] for key, value in batch.items()}
    for sampler in samplers:  # the processes draw different random offsets along their rays
        sampler.train_stratified = False
    for rule in RULES:
        model.config.shaping.pairs = rule
        outputs = pipeline._model(pipeline.datamanager.train_ray_generator(mine["indices"]))
        losses = model.get_loss_dict(outputs, mine, model.get_metrics_dict(outputs, mine))
        model.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        shared = {name: losses[name].detach() for name in ("mig_loss", "norm_loss")}
        found[rule] = {**shared, "threshold": model.pair_threshold.clone(), **gradients}
    model.zero_grad()
    model.load_state_dict(before)
    for sampler in samplers:
        sampler.train_stratified = True
    return found


def two_config(capture: Path, folder: Path, steps: int) -> JacobiNeRFTrainerConfig:
    """The tiny method with what the full one has besides: camera poses and appearances that are learnt."""
    config = tiny_config(capture, folder, steps)
    config.pipeline.model.camera_optimizer = CameraOptimizerConfig(mode="SO3xR3")
    config.pipeline.model.use_appearance_embedding = True
    # Random backgrounds are drawn anew by each process: their losses differ, as those of other rays do.
    config.pipeline.model.background_color = "last_sample"
    return config


def at(config: JacobiNeRFTrainerConfig, folder: Path, steps: int, load_dir: Path | None = None):
    """A config like another one, for another run."""
    config = deepcopy(config)
    config.output_dir, config.max_num_iterations, config.load_dir = folder, steps, load_dir
    config.pipeline.annotations = None
    return config


def trained(config: JacobiNeRFTrainerConfig, rank: int) -> JacobiNeRFTrainer:
    """What nerfstudio's `train_loop` does, and the trainer."""
    seed = config.machine.seed + rank
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (as nerfstudio does)
    torch.manual_seed(seed)
    trainer = config.setup(local_rank=rank, world_size=PROCESSES)
    trainer.setup()
    trainer.train()
    return trainer


def turns(folder: Path, rank: int) -> list[str]:
    """What each process finds in a file that rank 0 alone makes."""
    with gathering.rank_zero_first():
        if rank == 0:
            time.sleep(0.2)
            (folder / "features").write_text("made once")
        found = (folder / "features").read_text()
    return gathering.gather_objects(found)


def process(local_rank: int, world_size: int, config: JacobiNeRFTrainerConfig, global_rank: int) -> None:
    """What each of two processes does; called by nerfstudio's launcher, with a report for the test as its result."""
    written: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            written.append(str(arguments[0]))

    sys.addaudithook(watch)
    folder, rank = config.output_dir, global_rank
    assert (dist.get_backend(), dist.get_world_size(), dist.get_rank()) == ("gloo", PROCESSES, local_rank)
    report: dict[str, Any] = {"toy": {rule: toy(rule, slice(rank * 24, rank * 24 + 24)) for rule in RULES}}
    report["turns"] = turns(folder, rank)
    batch = torch.load(folder / "batch.pt")
    half = len(batch["indices"]) // PROCESSES
    straight = trained(config, rank)
    first = trained(at(config, folder / "first", STEPS_BEFORE_RESUME), rank)
    left = STEPS - STEPS_BEFORE_RESUME
    resumed = trained(at(config, folder / "second", left, load_dir=first.checkpoint_dir), rank)
    from_one = trained(at(config, folder / "third", 1, load_dir=folder / "one"), rank)
    report |= {
        "written": [path for path in written if str(folder) in path],
        "weights": straight.pipeline.model.state_dict(),
        "resumed": resumed.pipeline.model.state_dict(),
        "from one": from_one.pipeline.model.state_dict(),
        "steps": [trainer.step for trainer in (straight, resumed, from_one)],
        "indices": [t.pipeline.datamanager.next_train(0)[1]["indices"] for t in (straight, from_one)],
    }
    setup = at(config, folder / "fourth", 1, load_dir=folder / "one").setup(local_rank=rank, world_size=PROCESSES)
    setup.setup()
    report["step"] = step_of(setup.pipeline, batch, slice(rank * half, rank * half + half))
    torch.save(report, folder / f"report-{rank}.pt")


def relative_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-12))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of one process that is shaped, and what two processes made, part of it from that run's checkpoint."""
    folder = tmp_path_factory.mktemp("two")
    capture = tiny_capture(folder / "capture")
    one = start(two_config(capture, folder / "single", STEPS_BEFORE_RESUME))
    one.train()
    torch.save(one.pipeline.datamanager.next_train(SHAPING_START)[1], folder / "batch.pt")
    (folder / "one").symlink_to(one.checkpoint_dir)
    config = two_config(capture, folder, STEPS)
    config.machine.num_devices = PROCESSES
    config.set_timestamp()
    config.save_config()
    train.launch(process, config.machine.num_devices, device_type=config.machine.device_type, config=config)
    reports = [torch.load(folder / f"report-{rank}.pt") for rank in range(PROCESSES)]
    loaded = start(at(two_config(capture, folder, 1), folder / "loaded", 1, load_dir=folder / "one"))
    step = step_of(loaded.pipeline, torch.load(folder / "batch.pt"), slice(None))
    return {"capture": capture, "config": config, "reports": reports, "step": step}


@pytest.mark.parametrize("rule", RULES)
def test_the_gathered_loss_and_its_gradient_are_those_of_one_process(runs: dict[str, Any], rule: shaping.PairRule):
    expected = toy(rule, slice(None))
    assert expected["gradient of weight"].norm() > 0.01
    for report in runs["reports"]:
        found = report["toy"][rule]
        assert found.keys() == expected.keys()
        assert max(relative_difference(found[key], expected[key]) for key in expected) <= TOLERANCE


@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_the_whole_model_is_that_of_one_process_on_the_same_rays(
    runs: dict[str, Any], rule: shaping.PairRule
):
    expected = runs["step"][rule]
    assert min(expected[name].norm() for name in ("field.mlp_head.trunk.layers.0.weight", CAMERAS)) > 0
    for report in runs["reports"]:
        found = report["step"][rule]
        assert found["threshold"] == expected["threshold"]
        assert found.keys() >= expected.keys()
        differences = {key: relative_difference(found[key], expected[key]) for key in expected}
        assert max(differences.values()) <= TOLERANCE, differences


def test_two_processes_have_one_model_and_other_rays(runs: dict[str, Any]):
    one, other = runs["reports"]
    for name in ("weights", "resumed", "from one"):
        assert all(torch.equal(one[name][key], other[name][key]) for key in one[name]), name
    assert float(one["weights"]["pair_threshold"]) != pytest.approx(shaping.THRESHOLD_START)
    for mine, theirs in zip(one["indices"], other["indices"], strict=True):
        assert not torch.equal(mine, theirs)


def test_only_rank_zero_writes(runs: dict[str, Any]):
    assert any(path.endswith("dataparser_transforms.json") for path in runs["reports"][0]["written"])
    assert runs["reports"][1]["written"] == []


def test_a_run_resumed_in_two_processes_equals_a_straight_one(runs: dict[str, Any]):
    for report in runs["reports"]:
        assert report["steps"] == [STEPS - 1, STEPS - 1, STEPS_BEFORE_RESUME]
        assert all(torch.equal(report["resumed"][key], value) for key, value in report["weights"].items())


def test_one_process_loads_and_resumes_the_checkpoint_of_two(runs: dict[str, Any], tmp_path: Path):
    folder = runs["config"].get_checkpoint_dir()
    saved = torch.load(checkpoints.latest_checkpoint(folder), weights_only=True)
    assert not [key for key in saved["pipeline"] if "module." in key]
    config = two_config(runs["capture"], tmp_path, 1)
    config.load_dir = folder
    resumed = start(config)
    state = resumed.pipeline.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in runs["reports"][0]["weights"].items())
    resumed.train()
    assert resumed.step == STEPS


@pytest.mark.parametrize(("code", "expected"), [(2, SystemExit), (1, ProcessExitedException)])
def test_bad_input_ends_the_command_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, expected: type[BaseException]
):
    def launch_that_fails(*, config: JacobiNeRFTrainerConfig, **_: object) -> None:
        raise ProcessExitedException("process 0", 0, 0, code)

    monkeypatch.setattr(train, "launch", launch_that_fails)
    config = tiny_config(tmp_path, tmp_path)
    config.machine.num_devices = PROCESSES
    with pytest.raises(expected) as caught:
        train.main(config)
    assert not isinstance(caught.value, SystemExit) or caught.value.code == code


def test_one_process_calls_nothing_of_distributed(
    runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a distributed call in a single process")

    for name in ("all_gather", "all_gather_object", "all_reduce", "broadcast", "barrier", "new_group"):
        monkeypatch.setattr(dist, name, forbidden)
    rows = torch.rand(3, 2, requires_grad=True)
    assert gathering.gather_rows(rows) is rows
    assert gathering.gather_objects("mine") == ["mine"]
    assert (gathering.world_size(), gathering.rank()) == (1, 0)
    trainer = start(tiny_config(runs["capture"], tmp_path, steps=SHAPING_START + 1))
    trainer.train()
    assert trainer.pipeline._model is trainer.pipeline.model


def test_rank_zero_makes_what_the_others_read(runs: dict[str, Any]):
    assert [report["turns"] for report in runs["reports"]] == [["made once", "made once"]] * PROCESSES
