"""What a run's capture holds, read from the run's `config.yml` without building its model."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jacobinerf_ns.compat.console import quiet_nerfstudio
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.run import annotations_path


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
