"""How far a field's surfaces are from where they belong: depth of the held-out views against the capture's depth maps.

    python benchmarks/depth.py --runs before RUN/config.yml after OTHER/config.yml

Depth is along the optical axis, in metres: where rays meet surfaces (`core.distances`), which labels and `export` use
too. The `surfaces` teacher looks at the expected depth.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from jacobinerf_ns.errors import UserError, one_line_exit
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.run.opened import open_run

FAR_OFF = 0.3
"""Metres from which on a surface counts as misplaced."""


class DepthReport(NamedTuple):
    """Errors of one run over all held-out pixels whose depth is known."""

    median_cm: float
    far_off_percent: float
    """Pixels that are `FAR_OFF` or more from the truth."""
    psnr: float
    """Mean over the views, dB."""


@dataclass
class Depth:
    """Depth errors of runs of captures that have depth maps."""

    runs: dict[str, Path]
    """NAME config.yml of each run, in the order of the rows."""
    output: Path | None = None
    """JSON file for the numbers."""

    def main(self) -> None:
        """Measures, and prints a table."""
        with one_line_exit():
            found = {name: measure(open_run(config).pipeline, name) for name, config in self.runs.items()}
        table = Table(title="Depth of the held-out views")
        for heading in ("run", "median error (cm)", f"off by {FAR_OFF:g} m or more (%)", "PSNR (dB)"):
            table.add_column(heading)
        for name, report in found.items():
            table.add_row(name, *(f"{value:.{digits}f}" for value, digits in zip(report, (1, 1, 2), strict=True)))
        Console().print(table)
        if self.output is not None:
            named = {name: report._asdict() for name, report in found.items()}
            self.output.write_text(json.dumps(named, indent=1) + "\n")


@torch.no_grad()
def measure(pipeline: JacobiNeRFPipeline, description: str) -> DepthReport:
    """Render the held-out views of a run and compare.

    Raises:
        UserError: the capture has no depth maps.
    """
    pipeline.eval()
    outputs, data = pipeline.datamanager.eval_dataparser_outputs, pipeline.datamanager.eval_dataset
    paths = outputs.metadata.get("depth_filenames")
    if not paths:
        raise UserError("the capture has no depth maps (depth_file_path in transforms.json): nothing to compare with")
    errors, psnr = [], []
    for view in track(range(len(data)), description=description):
        camera = data.cameras[view : view + 1].to(pipeline.device)
        rendered = pipeline.model.get_outputs_for_camera(camera)
        norms = camera.generate_rays(camera_indices=0, keep_shape=True).metadata["directions_norm"]
        depth = (rendered["depth"] / norms / outputs.dataparser_scale)[..., 0].cpu()
        truth = read_depth(paths[view], outputs.metadata["depth_unit_scale_factor"], depth)
        errors.append((depth - truth).abs()[truth > 0])
        photo = data[view]["image"][..., :3].to(rendered["rgb"])
        psnr.append(float(-10 * (rendered["rgb"] - photo).square().mean().log10()))
    error = torch.cat(errors)
    far_off = float((error >= FAR_OFF).float().mean())
    return DepthReport(100 * float(error.median()), 100 * far_off, float(np.mean(psnr)))


def read_depth(path: Path, unit: float, like: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    """Return a depth map in metres, at the size of another; 0 where nothing is known."""
    with Image.open(path) as image:
        values = np.array(image.resize(like.shape[::-1], Image.Resampling.NEAREST), dtype=np.float32)
    return torch.from_numpy(values * unit)


if __name__ == "__main__":
    tyro.cli(Depth).main()
