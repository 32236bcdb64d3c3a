"""Opening a trained run from its `config.yml`, for every command of ours."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.eval_utils import eval_setup

from jacobinerf_ns.annotations.store import ANNOTATIONS_NAME
from jacobinerf_ns.compat.console import quiet_nerfstudio
from jacobinerf_ns.errors import UserError, caught_outside
from jacobinerf_ns.pipeline import JacobiNeRFPipeline, JacobiNeRFPipelineConfig
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig


@dataclass(frozen=True)
class Run:
    """A trained run, ready to render."""

    config: JacobiNeRFTrainerConfig
    pipeline: JacobiNeRFPipeline
    folder: Path
    """Where config.yml lies; what people make for this run is kept here."""
    step: int
    """Training step of the checkpoint."""


def annotations_path(pipeline: JacobiNeRFPipelineConfig, config_path: Path) -> Path:
    """A run's own annotation file; runs that are older than annotations do not name one."""
    return getattr(pipeline, "annotations", None) or config_path.absolute().parent / ANNOTATIONS_NAME


def open_run(
    config_path: Path,
    annotations: Path | None = None,
    test_mode: Literal["test", "val", "inference"] = "test",
    change: Callable[[JacobiNeRFTrainerConfig], None] | None = None,
) -> Run:
    """Builds the pipeline of a run and loads its last checkpoint.

    Args:
        config_path: the run's config.yml.
        annotations: annotation file to use; none is the run's own.
        test_mode: nerfstudio's: `test` loads the data, `inference` only what is needed to render.
        change: changes the config before anything is built.

    Raises:
        UserError: no such file, not a run of this package, or no checkpoint.
    """
    config_path = config_path.absolute()
    if not config_path.is_file():
        raise UserError(f"no such file: {config_path}: give --load-config the config.yml that training wrote")

    def prepare(config: TrainerConfig) -> TrainerConfig:
        if not isinstance(config, JacobiNeRFTrainerConfig):
            raise UserError(f"{config_path} is a run of {config.method_name}: expected a jacobinerf run")
        config.pipeline.annotations = annotations or annotations_path(config.pipeline, config_path)
        if change is not None:
            change(config)
        return config

    with quiet_nerfstudio(), caught_outside():
        try:
            config, pipeline, _, step = eval_setup(config_path, test_mode=test_mode, update_config_callback=prepare)
        except (yaml.YAMLError, FileNotFoundError) as error:
            raise UserError(f"{config_path} cannot be opened: {error}") from error
    assert isinstance(config, JacobiNeRFTrainerConfig)
    assert isinstance(pipeline, JacobiNeRFPipeline)
    return Run(config, pipeline, config_path.parent, step)
