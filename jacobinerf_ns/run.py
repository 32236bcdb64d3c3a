"""A trained run: its capture, read from `config.yml` alone, and the run itself, opened with its last checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.eval_utils import eval_setup

from jacobinerf_ns.annotations.store import ANNOTATIONS_NAME
from jacobinerf_ns.errors import UserError, caught_outside
from jacobinerf_ns.pipeline import JacobiNeRFPipeline, JacobiNeRFPipelineConfig
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig
from jacobinerf_ns.training import quiet_nerfstudio


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


class Capture(NamedTuple):
    """The training images of a run, and where its annotations lie."""

    annotations: Path
    filenames: list[Path]
    sizes: list[tuple[int, int]]
    """(width, height) in pixels of each image, before any downscaling."""


def read_capture(config_path: Path) -> Capture:
    """Asks the dataparser of a run for its training images; no image is opened, and no model is built.

    Raises:
        UserError: the file is not a run's config.yml, or the capture is gone or damaged.
    """
    config = _read_config(config_path)
    datamanager = config.pipeline.datamanager
    parser_config = datamanager.dataparser
    # As nerfstudio's data manager does: --data on the command line goes before the parser's own.
    data = datamanager.data or config.data
    if data is not None:
        parser_config.data = Path(data)
    parser = parser_config.setup()
    if hasattr(parser, "downscale_factor"):
        parser.downscale_factor = 1
    with quiet_nerfstudio():
        try:
            outputs = parser.get_dataparser_outputs(split="train")
        except (AssertionError, OSError) as error:
            raise UserError(f"the capture of {config_path} cannot be read: {' '.join(str(error).split())}") from error
    widths, heights = outputs.cameras.width.flatten().tolist(), outputs.cameras.height.flatten().tolist()
    annotations = annotations_path(config.pipeline, config_path)
    return Capture(annotations, list(outputs.image_filenames), list(zip(widths, heights, strict=True)))


def _read_config(path: Path) -> Any:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give --load-config a run's config.yml") from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a config.yml that training wrote ({reason})") from error
    if not hasattr(config, "pipeline"):
        raise UserError(f"{path} is not a config.yml that training wrote: give --load-config the one of a run")
    return config
