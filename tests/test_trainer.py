"""Runs that are interrupted, resumed, started from nerfacto, or given a checkpoint that does not fit."""

import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import yaml
from nerfstudio.configs.method_configs import method_configs
from tiny import SHAPING_START, start, tiny_capture, tiny_config

from jacobinerf_ns.compat import checkpoints, unusable_gpu
from jacobinerf_ns.config import jacobinerf, jacobinerf_lite, jacobinerf_paper
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.trainer import JacobiNeRFTrainer, JacobiNeRFTrainerConfig


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_capture(tmp_path_factory.mktemp("room") / "capture")


@pytest.fixture(scope="module")
def finished(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> JacobiNeRFTrainer:
    trainer = start(tiny_config(capture, tmp_path_factory.mktemp("straight"), steps=12))
    trainer.train()
    return trainer


def states_equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_resumed_run_equals_a_straight_one(capture: Path, finished: JacobiNeRFTrainer, tmp_path: Path):
    first = start(tiny_config(capture, tmp_path, steps=7))
    first.train()
    config = tiny_config(capture, tmp_path / "resumed", steps=5)
    config.load_dir = first.checkpoint_dir
    second = start(config)
    assert second._start_step == 7
    # A different state of the generators than the first run left: the checkpoint's must win.
    second.train()
    straight, resumed = finished.pipeline.model.state_dict(), second.pipeline.model.state_dict()
    assert float(straight["pair_threshold"]) != pytest.approx(0.8)  # shaping went on, and its threshold has moved
    assert states_equal(straight, resumed)
    for name, optimizer in finished.optimizers.optimizers.items():
        rates = [trainer.optimizers.optimizers[name].param_groups[0]["lr"] for trainer in (finished, second)]
        assert rates[0] == rates[1] == optimizer.param_groups[0]["lr"]


def test_gradients_are_scaled_afresh_after_a_run_that_scaled_none(
    capture: Path, finished: JacobiNeRFTrainer, tmp_path: Path
):
    """A run on a CPU, resumed on a GPU; a scaler of torch's for CPUs stands for that of a GPU."""
    trainer: Any = start(tiny_config(capture, tmp_path))
    trainer.config.load_dir = finished.checkpoint_dir
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    trainer._load_checkpoint()
    assert trainer._start_step == 12
    assert trainer.grad_scaler.get_scale() == 64.0
    trainer.train_iteration(12)
    trainer.grad_scaler.update(8.0)
    trainer.save_checkpoint(12)
    trainer.config.load_dir, trainer.grad_scaler = trainer.checkpoint_dir, torch.amp.GradScaler("cpu")
    trainer._load_checkpoint()
    assert trainer.grad_scaler.get_scale() == 8.0
    trainer.grad_scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer._load_checkpoint()  # and back to the CPU


def test_checkpoints_load_with_weights_only_and_hold_plain_numbers(finished: JacobiNeRFTrainer):
    path = checkpoints.latest_checkpoint(finished.checkpoint_dir)
    loaded = torch.load(path, weights_only=True)
    assert loaded["step"] == 11
    assert all(type(group["lr"]) is float for o in loaded["optimizers"].values() for group in o["param_groups"])
    assert [file.name for file in finished.checkpoint_dir.iterdir()] == [path.name]


def test_a_run_killed_while_saving_keeps_its_last_checkpoint(
    finished: JacobiNeRFTrainer, monkeypatch: pytest.MonkeyPatch
):
    before = sorted(file.name for file in finished.checkpoint_dir.iterdir())

    def half_write(state: object, file: IO[bytes]) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half_write)
    with pytest.raises(KeyboardInterrupt):
        finished.save_checkpoint(99)
    assert sorted(file.name for file in finished.checkpoint_dir.iterdir()) == before


def test_config_yml_has_absolute_paths_and_the_device_that_is_there(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(capture.parent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny_config(Path(capture.name), Path(os.path.relpath(tmp_path)))
    config.machine.device_type = type(config.machine)().device_type
    config.set_timestamp()
    config.save_config()
    saved = yaml.load((tmp_path / capture.name / "jacobinerf-lite/run/config.yml").read_text(), Loader=yaml.Loader)
    assert saved.machine.device_type == "cpu"
    assert saved.pipeline.datamanager.data == capture
    assert saved.output_dir == tmp_path
    assert saved.pipeline.datamanager.cache_dir == tmp_path / "cache"
    assert str(saved.relative_model_dir) == "nerfstudio_models"


@pytest.mark.parametrize("method", ["jacobinerf", "jacobinerf-paper"])
def test_full_size_is_refused_where_torch_cannot_use_the_gpu(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = deepcopy({"jacobinerf": jacobinerf, "jacobinerf-paper": jacobinerf_paper}[method].config)
    with pytest.raises(SystemExit) as stop:
        config.set_timestamp()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: a GPU is there (CUDA_VISIBLE_DEVICES is 0), and torch ")
    assert "--machine.device-type cpu" in said
    config.machine.device_type = "cpu"
    config.set_timestamp()  # asked for
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config.machine.device_type = "cuda"
    config.set_timestamp()  # hidden: there is none to wait for
    assert config.machine.device_type == "cpu"


def test_the_lite_method_says_that_torch_cannot_use_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = deepcopy(jacobinerf_lite.config)
    config.set_timestamp()
    assert config.machine.device_type == "cpu"
    said = " ".join(capsys.readouterr().out.split())
    assert "Training on the CPU: a GPU is there (CUDA_VISIBLE_DEVICES is 0), and torch " in said


def test_a_gpu_shows_by_its_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(unusable_gpu, "DRIVER_FOLDER", tmp_path / "gpus")
    assert unusable_gpu.sign_of_gpu() is None
    program = tmp_path / "nvidia-smi"
    for answer, sign in (("exit 9", None), ("echo 'GPU 0: a card'", "nvidia-smi lists it")):
        program.write_text(f"#!/bin/sh\n{answer}\n")
        program.chmod(0o755)
        assert unusable_gpu.sign_of_gpu() == sign
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    assert unusable_gpu.sign_of_gpu() == f"{tmp_path / 'gpus'} has it"
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert unusable_gpu.sign_of_gpu() is None


def nerfacto_checkpoint(capture: Path, folder: Path, **changes: object) -> Path:
    """A plain nerfacto run of nerfstudio's own method and trainer, with the tiny model's sizes."""
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
    from nerfstudio.models.nerfacto import NerfactoModelConfig

    ours = tiny_config(capture, folder).pipeline.model
    stock = {name: getattr(ours, name) for name in vars(NerfactoModelConfig()) if name != "_target"}
    config: Any = deepcopy(method_configs["nerfacto"])
    config.pipeline.model = NerfactoModelConfig(**{**stock, "implementation": "torch", **changes})
    config.pipeline.datamanager = VanillaDataManagerConfig(
        dataparser=NerfstudioDataParserConfig(data=capture), train_num_rays_per_batch=64
    )
    config.output_dir, config.experiment_name, config.timestamp, config.vis = folder, "room", "run", "tensorboard"
    config.machine.device_type, config.max_num_iterations = "cpu", 6
    config.logging.local_writer.enable = False
    config.viewer.quit_on_train_completion = True
    from unittest import mock

    from jacobinerf_ns.compat.lpips import LazyLpips

    with mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", LazyLpips):
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
    trainer.train()
    return next(trainer.checkpoint_dir.glob("*.ckpt"))


@pytest.fixture(scope="module")
def nerfacto(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nerfacto_checkpoint(capture, tmp_path_factory.mktemp("nerfacto"))


def test_shaping_starts_from_a_plain_nerfacto_run(capture: Path, nerfacto: Path, tmp_path: Path):
    config = tiny_config(capture, tmp_path, steps=2)
    config.load_checkpoint = nerfacto
    trainer = start(config)
    assert trainer._start_step == 6 > SHAPING_START
    loaded = checkpoints.read_checkpoint(nerfacto)["pipeline"]
    model = trainer.pipeline.model
    rgb_layer, hidden = model.field.mlp_head.rgb_layer.weight, config.pipeline.model.hidden_dim_color
    assert torch.equal(rgb_layer[:, :hidden], loaded["_model.field.mlp_head.layers.2.weight"])
    assert rgb_layer.shape[1] == hidden + 8  # colours begin as nerfacto's, whatever the fresh branch says
    assert not rgb_layer[:, hidden:].any()
    trunk = dict(model.field.mlp_head.trunk.named_parameters())
    assert torch.equal(trunk["layers.1.weight"], loaded["_model.field.mlp_head.layers.1.weight"])
    group = trainer.optimizers.optimizers["fields"].param_groups[0]
    decayed = config.optimizers["fields"]["scheduler"]
    assert group["lr"] == pytest.approx(1e-2 * (decayed.lr_final / 1e-2) ** (6 / decayed.max_steps))
    assert not trainer.optimizers.optimizers["fields"].state  # fresh
    trainer.train()
    assert float(model.pair_threshold) != 0.8
    assert int(model.first_shaping_step) == 6  # decay counts from here, not from the configured start


def test_a_nerfacto_field_renders_the_same_as_ours_with_its_weights(capture: Path, nerfacto: Path, tmp_path: Path):
    config = tiny_config(capture, tmp_path)
    config.load_checkpoint = nerfacto
    model = start(config).pipeline.model.eval()
    state = {k.removeprefix("_model.field."): v for k, v in checkpoints.read_checkpoint(nerfacto)["pipeline"].items()}
    from nerfstudio.fields.nerfacto_field import NerfactoField

    c = config.pipeline.model
    stock = NerfactoField(
        model.scene_box.aabb,
        num_images=4,
        num_levels=c.num_levels,
        log2_hashmap_size=c.log2_hashmap_size,
        max_res=c.max_res,
        hidden_dim=c.hidden_dim,
        hidden_dim_color=c.hidden_dim_color,
        appearance_embedding_dim=0,
        average_init_density=c.average_init_density,
        spatial_distortion=model.field.spatial_distortion,
        implementation="torch",
    ).eval()
    stock.load_state_dict({key: value for key, value in state.items() if key in stock.state_dict()})
    cameras = start(tiny_config(capture, tmp_path / "again")).pipeline.datamanager.train_dataset.cameras
    bundle = model.collider(cameras.generate_rays(camera_indices=0, keep_shape=False)[:50])
    samples, *_ = model.proposal_sampler(bundle, density_fns=model.density_fns)
    with torch.no_grad():
        for key, value in stock(samples).items():
            assert torch.allclose(value, model.field(samples)[key], atol=1e-6), key


def test_a_tcnn_checkpoint_is_refused_with_advice():
    state = {"field.mlp_head.tcnn_encoding.params": torch.zeros(3)}
    assert checkpoints.is_nerfacto(state)
    with pytest.raises(UserError, match="implementation torch"):
        checkpoints.from_nerfacto(state, {})


def test_a_torch_checkpoint_for_a_tcnn_model_is_refused_with_advice():
    state = {"field.mlp_head.layers.0.weight": torch.zeros(3)}
    with pytest.raises(UserError, match="add --pipeline"):
        checkpoints.from_nerfacto(state, {"field.mlp_base.model.params": torch.zeros(3)})


def test_missing_extra_and_differently_shaped_parameters_are_errors():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(UserError, match=r"lacks 1 parameters \(first: b\)"):
        checkpoints.check_fits({"a": torch.zeros(2)}, expected)
    with pytest.raises(UserError, match=r"has not, 1 parameters \(first: c\)"):
        checkpoints.check_fits({**expected, "c": torch.zeros(1)}, expected)
    with pytest.raises(UserError, match=r"b has shape \(4,\), this model's has \(3,\)"):
        checkpoints.check_fits({**expected, "b": torch.zeros(4)}, expected)
    checkpoints.check_fits(dict(expected), expected)


@pytest.mark.parametrize(("steps", "ends_early"), [(SHAPING_START, True), (SHAPING_START + 1, False)])
def test_a_training_that_ends_before_shaping_begins_says_so(
    capture: Path, tmp_path: Path, steps: int, ends_early: bool, capsys: pytest.CaptureFixture
):
    start(tiny_config(capture, tmp_path, steps=steps))
    said = " ".join(capsys.readouterr().out.split())
    assert (f"ends at step {SHAPING_START}, before shaping begins: give --max-num-iterations" in said) is ends_early


def exit_line(config: JacobiNeRFTrainerConfig, capsys: pytest.CaptureFixture) -> str:
    """Sets a trainer up that must fail, and returns the one line that it fails with."""
    with pytest.raises(SystemExit) as stop:
        start(config)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_bad_input_ends_in_one_line_and_exit_code_2(
    capture: Path, finished: JacobiNeRFTrainer, tmp_path: Path, capsys: pytest.CaptureFixture
):
    config = tiny_config(capture, tmp_path)
    config.load_dir = finished.checkpoint_dir
    config.pipeline.model = replace(config.pipeline.model, hidden_dim_color=24)
    assert "this model's has" in exit_line(config, capsys)
    config = tiny_config(tmp_path / "nowhere", tmp_path / "outputs")
    assert "no such data folder" in exit_line(config, capsys)
    config = tiny_config(capture, tmp_path)
    config.load_dir = tmp_path / "nowhere"
    assert "no such folder" in exit_line(config, capsys)
    (tmp_path / "empty").mkdir()
    config.load_dir = tmp_path / "empty"
    assert "no step-*.ckpt" in exit_line(config, capsys)
    (tmp_path / "empty" / "step-000000003.ckpt").write_bytes(b"not a checkpoint")
    assert "cannot be read as a checkpoint" in exit_line(config, capsys)
    config = tiny_config(capture, tmp_path)
    config.pipeline.datamanager.extractor = OracleConfig(noise=-1.0)
    assert "noise" in exit_line(config, capsys)
