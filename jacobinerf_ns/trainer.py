"""Training that survives: paths that mean the same everywhere, whole checkpoints, resumes that go on exactly."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from jacobinerf_ns.annotations.store import ANNOTATIONS_NAME
from jacobinerf_ns.compat import checkpoints
from jacobinerf_ns.compat.event_files import told_once
from jacobinerf_ns.compat.fair_lock import FairLock
from jacobinerf_ns.compat.launcher import only_the_first_saves, prepare_launcher
from jacobinerf_ns.compat.unusable_gpu import sign_of_gpu, torch_in_words
from jacobinerf_ns.core import gathering
from jacobinerf_ns.errors import UserError, one_line_exit, reason, visible
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.pipeline import JacobiNeRFPipeline, JacobiNeRFPipelineConfig

FULL_SIZE = ("jacobinerf", "jacobinerf-paper")
"""Methods that are made for a GPU: on a CPU they take days."""
_OF_A_RESUME = ("optimizers", "schedulers", "scalers", "proposal_sampler", "random")
"""What a checkpoint of ours holds beside the pipeline."""
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
_RELATIVE_BY_DESIGN = {"relative_model_dir", "relative_log_dir", "relative_log_filename"}


@dataclass
class JacobiNeRFTrainerConfig(TrainerConfig):
    """nerfstudio's trainer options; paths are made absolute, and without a GPU training runs on the CPU."""

    _target: type = field(default_factory=lambda: JacobiNeRFTrainer)
    """Class to build."""
    pipeline: JacobiNeRFPipelineConfig = field(default_factory=JacobiNeRFPipelineConfig)
    """Data and model."""

    def set_timestamp(self) -> None:
        """Settle device and paths too; `ns-train` calls this before it prints and saves the config."""
        super().set_timestamp()
        self.settle()

    def save_config(self) -> None:
        """Write the run's config.yml whole, or say in one line why it cannot be; `ns-train` does so before all else."""
        path = self.get_base_dir() / "config.yml"
        _say(f"Saving config to: {path}")
        with one_line_exit(), writing(path, overwrite=True) as temporary:
            temporary.write_text(yaml.dump(self), encoding="utf-8")

    def setup(self, **kwargs: Any) -> "JacobiNeRFTrainer":
        """Build the trainer."""
        self.settle()
        return super().setup(**kwargs)

    def settle(self) -> None:
        """Fall back to the CPU where there is no GPU, and make all paths absolute.

        config.yml is read from other working directories later. The default data folder of nerfstudio's parsers, `.`,
        is a path like any other.
        """
        if self.machine.device_type not in ("cpu", "mps") and not torch.cuda.is_available():
            with one_line_exit():
                _say(self._why_on_the_cpu())
            self.machine.device_type = "cpu"
        if self.machine.num_devices * self.machine.num_machines > 1:
            prepare_launcher(self.machine.device_type)
        make_paths_absolute(self)
        if self.pipeline.annotations is None:
            self.pipeline.annotations = self.get_base_dir().absolute() / ANNOTATIONS_NAME

    def _why_on_the_cpu(self) -> str:
        """Say why training is on the CPU, which nobody asked for.

        Raises:
            UserError: a GPU is there that torch cannot use, and the method takes days without one.
        """
        sign = sign_of_gpu()
        if sign is None:
            return "No GPU found: training on the CPU (jacobinerf-lite is made for it)."
        found = f"a GPU is there ({sign}), and {torch_in_words()} cannot use it"
        if self.method_name in FULL_SIZE:
            raise UserError(
                f"{found}: update its driver, or install a torch that was built for it; or train jacobinerf-lite; "
                f"{self.method_name} takes days on a CPU, and does so with --machine.device-type cpu"
            )
        return f"Training on the CPU: {found}. Update its driver, or install a torch that was built for it."


def make_paths_absolute(config: Any) -> None:
    """Make every `Path` in a config and the configs inside it absolute, in place."""
    for entry in fields(config):
        value = getattr(config, entry.name, None)
        if isinstance(value, Path) and entry.name not in _RELATIVE_BY_DESIGN:
            setattr(config, entry.name, Path(os.path.abspath(value.expanduser())))
        elif is_dataclass(value) and not isinstance(value, type):
            make_paths_absolute(value)


class JacobiNeRFTrainer(Trainer):
    """nerfstudio's trainer with whole checkpoints, exact resumes and a start from plain nerfacto."""

    config: JacobiNeRFTrainerConfig
    pipeline: JacobiNeRFPipeline

    def __init__(self, config: JacobiNeRFTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        super().__init__(config, local_rank, world_size)
        self.train_lock = FairLock()  # pyright: ignore[reportAttributeAccessIssue]

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build pipeline, optimisers and viewer; bad input ends in one line."""
        if gathering.rank() > 0:
            CONSOLE.quiet = True  # rank 0 says it all
        with one_line_exit(), self._disk_in_words():
            super().setup(test_mode)
        self.pipeline.model.log_every = self.config.logging.steps_per_log
        self._say_if_nothing_is_shaped()

    def train(self) -> None:
        """Run the training loop; bad input that only shows there ends in one line too."""
        outputs = self.pipeline.datamanager.train_dataparser_outputs
        with one_line_exit(), self._disk_in_words(), told_once(), only_the_first_saves(outputs):
            super().train()

    def _say_if_nothing_is_shaped(self) -> None:
        """Say that training ends before shaping begins: clicks would get what colours say, and nobody know why."""
        model, last = self.config.pipeline.model, self._start_step + self.config.max_num_iterations
        if model.shaping.active and last <= model.shaping_start_step and gathering.rank() == 0:
            _say(
                f"This training ends at step {last}, before shaping begins: give --max-num-iterations more than "
                f"{model.shaping_start_step}, or a smaller --pipeline.model.shaping-start-step"
            )

    @contextmanager
    def _disk_in_words(self) -> Iterator[None]:
        """Say in one line that the disk is full or read-only: nerfstudio writes logs and transforms by itself."""
        try:
            yield
        except OSError as error:
            if error.errno not in _OF_DISKS:
                raise
            raise UserError(
                f"{error.filename or self.base_dir} cannot be written ({reason(error)}): free some space; from a "
                f"checkpoint training goes on with --load-dir {self.checkpoint_dir}"
            ) from error

    def save_checkpoint(self, step: int) -> None:
        """Save model, optimisers and what makes a resume exact, whole or not at all; every process has to call it.

        The file is written outside `nerfstudio_models`, where nerfstudio parses every name, and then moved there: a run
        that is killed while saving leaves the last checkpoint as it was.
        """
        random = gathering.gather_objects(_random_state(self.device))
        if gathering.rank() > 0:
            return
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        target = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        temporary = self.base_dir / f".{target.name}.part"
        try:
            with temporary.open("wb") as file:
                torch.save({**self._state(step), "random": random[0], "random_of_others": random[1:]}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:  # torch turns the first into the second
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"the checkpoint {target} cannot be written ({reason(error)}): free some space, and go on from the "
                f"last one with --load-dir {self.checkpoint_dir}"
            ) from error
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != target:
                    other.unlink()

    def _state(self, step: int) -> dict[str, Any]:
        sampler = self.pipeline.model.proposal_sampler
        return {
            "step": step,
            "pipeline": checkpoints.unwrapped(self.pipeline.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            "proposal_sampler": {"step": sampler._step, "since_update": sampler._steps_since_update},
        }

    def _load_checkpoint(self) -> None:
        """Resumes a run of ours exactly, or starts from the weights of a plain nerfacto run with fresh optimisers."""
        path = self._checkpoint_path()
        if path is None:
            _say("No checkpoint given: training from scratch.")
            return
        loaded = checkpoints.read_checkpoint(path)
        step = loaded["step"]
        self._start_step = step + 1
        self.pipeline.load_pipeline(loaded["pipeline"], step)
        if checkpoints.is_nerfacto(checkpoints.model_state(loaded["pipeline"])):
            self._advance_schedules(step + 1)
            _say(f"Shaping the nerfacto run {path}: its weights at step {step}, fresh optimisers.")
            return
        missing = [key for key in _OF_A_RESUME if not isinstance(loaded.get(key), dict)]
        if missing:
            raise UserError(f"{path} has no {missing[0]} to go on with: use an earlier checkpoint of the run")
        self.optimizers.load_optimizers(loaded["optimizers"])
        if self.config.load_scheduler:
            self.optimizers.load_schedulers(loaded["schedulers"])
        if loaded["scalers"]:  # a run on a CPU has scaled no gradients, and torch refuses its empty state
            self.grad_scaler.load_state_dict(loaded["scalers"])
        sampler = self.pipeline.model.proposal_sampler
        sampler._step = loaded["proposal_sampler"]["step"]
        sampler._steps_since_update = loaded["proposal_sampler"]["since_update"]
        self._restore_random_state([loaded["random"], *loaded.get("random_of_others", [])], step)
        _say(f"Resuming {path} after step {step}.")

    def _checkpoint_path(self) -> Path | None:
        config = self.config
        if config.load_checkpoint is not None:
            return config.load_checkpoint
        if config.load_dir is None:
            return None
        if not config.load_dir.is_dir():
            raise UserError(f"no such folder: {config.load_dir}: give --load-dir a run's nerfstudio_models folder")
        if config.load_step is not None:
            return config.load_dir / f"step-{config.load_step:09d}.ckpt"
        return checkpoints.latest_checkpoint(config.load_dir)

    def _restore_random_state(self, states: list[dict[str, Any]], step: int) -> None:
        """Goes on with the generators of the process of our rank, or with new ones where the run had fewer processes.

        Were those of another rank taken, two processes would draw the same rays from then on.
        """
        rank = gathering.rank()
        if rank >= len(states):
            torch.manual_seed(self.config.machine.seed + rank + step)
            return
        torch.set_rng_state(states[rank]["cpu"])
        if states[rank]["devices"] and self.device.startswith("cuda"):
            torch.cuda.set_rng_state(states[rank]["devices"][0], self.device)

    def _advance_schedules(self, step: int) -> None:
        """Put fresh schedules where they would be after `step` steps: a trained field wants small learning rates."""
        for scheduler in self.optimizers.schedulers.values():
            scheduler.last_epoch = step
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_lr(), strict=True):
                group["lr"] = float(rate)


def _say(text: str) -> None:
    CONSOLE.print(visible(text), soft_wrap=True, markup=False)


def _random_state(device: str) -> dict[str, Any]:
    devices = [torch.cuda.get_rng_state(device)] if device.startswith("cuda") else []
    return {"cpu": torch.get_rng_state(), "devices": devices}
