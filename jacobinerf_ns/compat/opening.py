"""Checkpoints of runs that are opened: by us, and by the `ns-*` commands, whose own loader trusts them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import Pipeline
from nerfstudio.utils.rich_utils import CONSOLE

from jacobinerf_ns.compat.checkpoints import latest_checkpoint, read_checkpoint
from jacobinerf_ns.errors import one_line_exit, visible


def load_checkpoint(config: TrainerConfig, pipeline: Pipeline) -> tuple[Path, int]:
    """Load the checkpoint that a config names, or the run's last, and return its file and its training step.

    Raises:
        UserError: there is none, it is damaged or holds code, or it does not fit the model.
    """
    folder = config.load_dir or config.get_checkpoint_dir()
    path = latest_checkpoint(folder) if config.load_step is None else folder / f"step-{config.load_step:09d}.ckpt"
    loaded = read_checkpoint(path)
    pipeline.load_pipeline(loaded["pipeline"], loaded["step"])
    return path, loaded["step"]


def check_what_is_opened(ours: type[Pipeline]) -> None:
    """Let nerfstudio's commands load checkpoints of our pipelines as we do; a pipeline calls it when it is set up.

    nerfstudio looks its loader up after that, and by name.
    """
    from nerfstudio.utils import eval_utils  # not above: it imports all methods, and ours while they import this

    if not isinstance(eval_utils.eval_load_checkpoint, partial):
        replaced = partial(_load, eval_utils.eval_load_checkpoint, ours)
        eval_utils.eval_load_checkpoint = cast(Any, replaced)


def _load(
    nerfstudios: Callable[..., tuple[Path, int]], ours: type[Pipeline], config: TrainerConfig, pipeline: Pipeline
) -> tuple[Path, int]:
    if not isinstance(pipeline, ours):
        return nerfstudios(config, pipeline)
    with one_line_exit():
        path, step = load_checkpoint(config, pipeline)
    CONSOLE.print(visible(f"Loaded the checkpoint {path}"), soft_wrap=True, markup=False)
    return path, step
