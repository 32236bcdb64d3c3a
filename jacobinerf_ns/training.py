"""Training from Python: one call, one progress bar. `ns-train` needs none of this."""

import copy
import random
from pathlib import Path

import numpy as np
import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jacobinerf_ns.compat.console import quiet_nerfstudio
from jacobinerf_ns.trainer import JacobiNeRFTrainer, JacobiNeRFTrainerConfig


def train(config: JacobiNeRFTrainerConfig, description: str, data: Path, output_dir: Path) -> JacobiNeRFTrainer:
    """Trains a method on a capture as `ns-train METHOD --data DATA --vis tensorboard` does, and returns the trainer.

    The run (config.yml, checkpoints) lies in `output_dir` as usual. `config` itself is left as it is.
    """
    config = copy.deepcopy(config)
    config.data = config.pipeline.datamanager.data = data
    config.output_dir, config.vis = output_dir, "tensorboard"
    config.logging.local_writer.enable = False
    config.viewer.quit_on_train_completion = True
    with quiet_nerfstudio():
        config.set_timestamp()
        config.save_config()
        seed = config.machine.seed
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (nerfstudio draws from the global generator)
        torch.manual_seed(seed)
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        _train_with_progress(trainer, description)
    return trainer


def _train_with_progress(trainer: JacobiNeRFTrainer, description: str) -> None:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps")]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(description, total=trainer.config.max_num_iterations)
        advance = TrainingCallback(
            where_to_run=[TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
            update_every_num_iters=1,
            func=lambda step: progress.advance(task),
        )
        trainer.callbacks.append(advance)
        trainer.train()
