"""One click on each of a few objects, at the default threshold: IoU with the truth, in the clicked view and elsewhere.

    python benchmarks/one_click.py --runs shaped RUN/config.yml unshaped OTHER/config.yml --objects chair lamp

Clicks are those of a careful person: in the training view that shows most of the object, on its pixel farthest from
the outline. All runs get the same clicks. The mask is the viewer's selection.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Int
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from jacobinerf_ns.annotations.schema import Annotations, Click, Label
from jacobinerf_ns.datamanager import FeatureDataManager
from jacobinerf_ns.demo.contact_sheet import centre_pixel
from jacobinerf_ns.errors import UserError, one_line_exit
from jacobinerf_ns.files.index_maps import read_label_map
from jacobinerf_ns.labels.outputs import selected
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.labels.views import label_view
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.run.opened import open_run

DEFAULT_OBJECTS = ("door", "chair green", "sofa", "table wooden", "lamp white")


class Case(NamedTuple):
    """An object, and where it is clicked."""

    name: str
    value: int
    """Its id in the label maps."""
    view: int
    pixel: tuple[int, int]
    """(row, col)."""


@dataclass
class OneClick:
    """IoU of one click per object, for several runs of one capture."""

    runs: dict[str, Path]
    """NAME config.yml of each run, in the order of the columns."""
    objects: tuple[str, ...] = DEFAULT_OBJECTS
    """Names of the objects (or classes)."""
    truth: Literal["instances", "semantics"] = "instances"
    """Label maps that the names are of."""
    output: Path | None = None
    """JSON file for the numbers."""
    found: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    def main(self) -> None:
        """Measures, and prints a table."""
        with one_line_exit():
            for name, config in self.runs.items():
                self.found[name] = measure(open_run(config).pipeline, self.objects, self.truth, name)
        table = Table(title="IoU of one click: clicked view / mean of the held-out views that show it")
        for heading in ("object", *self.found):
            table.add_column(heading)
        for name in (*self.objects, "mean"):
            table.add_row(name, *(f"{one[name][0]:.2f} / {one[name][1]:.2f}" for one in self.found.values()))
        Console().print(table)
        if self.output is not None:
            self.output.write_text(json.dumps(self.found, indent=1) + "\n")


def measure(
    pipeline: JacobiNeRFPipeline, objects: tuple[str, ...], truth: Literal["instances", "semantics"], description: str
) -> dict[str, tuple[float, float]]:
    """(IoU in the clicked view, mean IoU in held-out views) of each object, and their mean."""
    pipeline.eval()
    seen, held_out = maps(pipeline.datamanager, "train", truth), maps(pipeline.datamanager, "eval", truth)
    found = {}
    for case in track([choose(name, pipeline.datamanager, truth, seen) for name in objects], description=description):
        click(pipeline, case)
        here = iou(mask(pipeline, "train", case.view), seen[case.view] == case.value)
        shown = [view for view, ids in enumerate(held_out) if bool((ids == case.value).any())]
        there = [iou(mask(pipeline, "eval", view), held_out[view] == case.value) for view in shown]
        found[case.name] = (here, float(np.mean(there)))
    found["mean"] = tuple(float(np.mean([pair[side] for pair in found.values()])) for side in (0, 1))
    return found


def maps(data: FeatureDataManager, split: Literal["train", "eval"], truth: str) -> list[Int[Tensor, "height width"]]:
    """The label maps of a split, at the size that is rendered."""
    cameras = (data.train_dataset if split == "train" else data.eval_dataset).cameras
    paths = [getattr(frame, truth) for frame in data.frames(split)]
    if None in paths:
        raise UserError(f"the capture has no {truth}: there is nothing to measure against")
    sizes = torch.cat([cameras.height, cameras.width], dim=-1).tolist()
    return [read_label_map(path, (height, width)) for path, (height, width) in zip(paths, sizes, strict=True)]


def choose(name: str, data: FeatureDataManager, truth: str, seen: list[Int[Tensor, "height width"]]) -> Case:
    """Where a careful person clicks. Errors: `UserError`, no such name."""
    classes = json.loads((data.train_dataparser_outputs.image_filenames[0].parents[1] / "classes.json").read_text())
    names = {entry["name"]: entry["id"] for entry in classes["classes" if truth == "semantics" else "instances"]}
    if name not in names:
        raise UserError(f"no object {name!r}, expected one of {', '.join(names)}")
    value = names[name]
    view = max(range(len(seen)), key=lambda index: int((seen[index] == value).sum()))
    return Case(name, value, view, centre_pixel((seen[view] == value).long()))


def click(pipeline: JacobiNeRFPipeline, case: Case) -> None:
    """Shows a label with one click."""
    camera, (row, col) = pipeline.datamanager.train_dataset.cameras[case.view], case.pixel
    seed = Click(
        label=1,
        image=pipeline.datamanager.train_dataparser_outputs.image_filenames[case.view].name,
        width=int(camera.width),
        height=int(camera.height),
        pixel=(col, row),
    )
    annotations = Annotations(labels=(Label(id=1, name="clicked", colour=(255, 0, 0)),), seeds=(seed,))
    maker = pipeline.label_maker()
    pipeline.model.label_source = lambda: maker.snapshot_of(annotations, Path(), needs_surface=False)


def current_labels(pipeline: JacobiNeRFPipeline) -> LabelSnapshot:
    """The labels that the pipeline shows."""
    snapshot = None if pipeline.model.label_source is None else pipeline.model.label_source()
    assert snapshot is not None
    return snapshot


def mask(pipeline: JacobiNeRFPipeline, split: Literal["train", "eval"], view: int) -> Bool[Tensor, "height width"]:
    """The viewer's selection in a view of a split."""
    data = pipeline.datamanager
    cameras = (data.train_dataset if split == "train" else data.eval_dataset).cameras
    rays = cameras[view : view + 1].to(pipeline.device).generate_rays(camera_indices=0, keep_shape=True)
    snapshot = current_labels(pipeline)
    found = label_view(pipeline.model, rays, snapshot)
    return selected(found.responses, found.decision, snapshot)[..., 0].cpu()


def iou(found: Bool[Tensor, "height width"], truth: Bool[Tensor, "height width"]) -> float:
    """Intersection over union of two masks."""
    return float((found & truth).sum() / (found | truth).sum().clamp(min=1))


if __name__ == "__main__":
    tyro.cli(OneClick).main()
