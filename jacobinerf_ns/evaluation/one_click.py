"""One click on every object, and nothing tuned: IoU with the truth, in the clicked view and in others.

Clicks are those of a careful person: in the training view that shows most of the object, on its pixel farthest from the
outline. The mask is the viewer's selection of a label that is alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from jacobinerf_ns.annotations.schema import Annotations, Click, Label, ViewSettings
from jacobinerf_ns.core.propagation import COMMON_THRESHOLD, PropagationConfig
from jacobinerf_ns.datamanager import FeatureDataManager
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.index_maps import VOID_ID, read_label_map
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.labels.tracer import in_eval_mode
from jacobinerf_ns.labels.views import label_view
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.progress import track

LEAST_PIXELS = 60
"""Of an object in its own view, and in all held-out views together: what is smaller is not scored."""
STEPS = 100
"""Thresholds that are tried between 0 and 1; levels are multiples of their distance."""
Truth = Literal["instances", "semantics"]
Split = Literal["train", "eval"]
WAYS = {
    "common": f"{COMMON_THRESHOLD:g} for all",
    "own": "own threshold",
    "levels": "best level that is offered",
    "scene": "best single threshold of the scene",
    "each": "best threshold of each object",
}
"""Thresholds that are compared; the last three know the truth."""


class Case(NamedTuple):
    """An object, and where it is clicked."""

    name: str
    value: int
    """Its id in the label maps."""
    view: int
    pixel: tuple[int, int]
    """(row, col)."""


class Ious(NamedTuple):
    """IoU of a selection, or means of it."""

    clicked: float
    """In the clicked view."""
    pooled: float
    """Of the pixels of all held-out views together."""
    views: float
    """Mean over the held-out views that show the object."""


@dataclass
class Found:
    """What one run makes of all clicks."""

    cases: list[Case]
    natural: list[float]
    """Each object's own threshold."""
    levels: list[tuple[float, ...]]
    """All levels that are offered, from part to whole."""
    curves: list[list[Ious]]
    """[objects thresholds]: IoU at every threshold that is tried."""

    def best(self, thresholds: Sequence[float], place: int) -> Ious:
        """Return the best of some thresholds, as held-out views have it."""
        return max((self.at(place, threshold) for threshold in thresholds), key=lambda found: found.pooled)

    def at(self, place: int, threshold: float) -> Ious:
        """Return an object's IoU at a threshold."""
        return self.curves[place][round(threshold * STEPS)]

    def by(self, way: str) -> list[Ious]:
        """Return every object's IoU with the thresholds of one of `WAYS`."""
        places, tried = range(len(self.cases)), [step / STEPS for step in range(STEPS + 1)]
        if way == "own":
            return [self.at(place, self.natural[place]) for place in places]
        if way == "levels":
            return [self.best(self.levels[place], place) for place in places]
        if way == "each":
            return [self.best(tried, place) for place in places]
        scene = max(tried, key=lambda threshold: mean([self.at(place, threshold) for place in places]).pooled)
        threshold = COMMON_THRESHOLD if way == "common" else scene
        return [self.at(place, threshold) for place in places]

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        ways = {way: self.by(way) for way in WAYS}
        objects = [
            {
                **case._asdict(),
                "own_threshold": self.natural[place],
                "levels": self.levels[place],
                **{way: ious[place]._asdict() for way, ious in ways.items()},
            }
            for place, case in enumerate(self.cases)
        ]
        return {"mean": {way: mean(ious)._asdict() for way, ious in ways.items()}, "objects": objects}


def measure(
    pipeline: JacobiNeRFPipeline,
    objects: tuple[str, ...],
    truth: Truth,
    stride: int,
    description: str,
    connected: bool = True,
) -> Found:
    """Click every object, and score it at all thresholds; every view is rendered once for all objects.

    Args:
        pipeline: of a trained run.
        objects: names of the objects (or classes); none: all that cover `LEAST_PIXELS`.
        truth: label maps that the objects are of.
        stride: every stride-th pixel is scored, in both directions.
        description: of the progress bar.
        connected: select what hangs together with the click; otherwise all that responds.

    Raises:
        UserError: the capture has no such label maps, or no object of a name.
    """
    pipeline.eval()
    data = pipeline.datamanager
    seen, held_out = maps(data, "train", truth), maps(data, "eval", truth)
    ids = torch.cat([view.flatten() for view in held_out]).bincount(minlength=1)
    cases = [
        case
        for case in choose(objects, data, truth, seen)
        if objects or (case.value < len(ids) and ids[case.value] >= LEAST_PIXELS)
    ]
    snapshot = clicked(pipeline, cases, connected)
    shown = sorted({case.view for case in cases})
    views: list[tuple[Split, int]] = [*(("train", i) for i in shown), *(("eval", i) for i in range(len(held_out)))]
    counts = {}
    for split, view in track(views, description=description):
        ids = (seen if split == "train" else held_out)[view][stride // 2 :: stride, stride // 2 :: stride]
        counts[split, view] = count(responses(pipeline, split, view, snapshot, stride), ids, cases)
    there = torch.stack([counts["eval", view] for view in range(len(held_out))])
    curves = []
    for place, case in enumerate(cases):
        own, others = ious(counts["train", case.view][place]), there[:, place]
        each, visible = ious(others), others[:, 0, 0] > 0
        pooled, single = ious(others.sum(0)), each[visible].mean(0)
        columns = zip(own.tolist(), pooled.tolist(), single.tolist(), strict=True)
        curves.append([Ious(*values) for values in columns])
    plateaus = [snapshot.levels(place) for place in range(len(cases))]
    return Found(cases, snapshot.thresholds(), [one.levels for one in plateaus], curves)


def maps(data: FeatureDataManager, split: Split, truth: Truth) -> list[Int[Tensor, "height width"]]:
    """Return the label maps of a split, at the size that is rendered.

    Raises:
        UserError: there are none.
    """
    cameras = (data.train_dataset if split == "train" else data.eval_dataset).cameras
    paths = [getattr(frame, truth) for frame in data.frames(split)]
    if None in paths:
        raise UserError(f"the capture has no {truth}: there is nothing to measure against")
    sizes = torch.cat([cameras.height, cameras.width], dim=-1).tolist()
    return [read_label_map(path, (height, width)) for path, (height, width) in zip(paths, sizes, strict=True)]


def choose(
    objects: tuple[str, ...], data: FeatureDataManager, truth: Truth, seen: list[Int[Tensor, "height width"]]
) -> list[Case]:
    """Say where a careful person clicks on named objects, or on all that are large enough.

    Raises:
        UserError: no object has that name.
    """
    classes = json.loads((data.train_dataparser_outputs.image_filenames[0].parents[1] / "classes.json").read_text())
    names = {entry["name"]: entry["id"] for entry in classes["classes" if truth == "semantics" else "instances"]}
    unknown = [name for name in objects if name not in names]
    if unknown:
        raise UserError(f"no object {unknown[0]!r}, expected one of {', '.join(names)}")
    called = {value: name for name, value in names.items()}
    there = sorted({*torch.cat([view.unique() for view in seen]).tolist()} - {VOID_ID})
    cases = []
    for value in [names[name] for name in objects] if objects else there:
        sizes = [int((view == value).sum()) for view in seen]
        view = int(np.argmax(sizes))
        if objects or sizes[view] >= LEAST_PIXELS:
            pixel = centre_pixel((seen[view] == value).long())
            cases.append(Case(called.get(value, f"id {value}"), value, view, pixel))
    return cases


def clicked(pipeline: JacobiNeRFPipeline, cases: Sequence[Case], connected: bool = True) -> LabelSnapshot:
    """Return a label per object, with one click each. One prototype per label answers as if each label were alone."""
    data, seeds = pipeline.datamanager, []
    for number, case in enumerate(cases, start=1):
        camera, (row, col) = data.train_dataset.cameras[case.view], case.pixel
        seeds.append(
            Click(
                label=number,
                image=str(data.train_dataparser_outputs.image_filenames[case.view]),
                width=int(camera.width),
                height=int(camera.height),
                pixel=(col, row),
            )
        )
    labels = tuple(Label(id=number, name=f"object {number}", colour=(255, 0, 0)) for number in range(1, len(cases) + 1))
    view = ViewSettings(propagation=PropagationConfig(connected=connected))
    annotations = Annotations(labels=labels, seeds=tuple(seeds), view=view)
    with in_eval_mode(pipeline.model):
        snapshot = pipeline.label_maker().snapshot_of(annotations, Path(), needs_surface=False)
    assert snapshot is not None
    return snapshot


def responses(
    pipeline: JacobiNeRFPipeline, split: Split, view: int, snapshot: LabelSnapshot, stride: int
) -> Float[Tensor, "height width labels"]:
    """Return the connected responses of the scored pixels of a view: what a selection is made of."""
    data = pipeline.datamanager
    cameras = (data.train_dataset if split == "train" else data.eval_dataset).cameras
    rays = cameras[view : view + 1].to(pipeline.device).generate_rays(camera_indices=0, keep_shape=True)
    return label_view(pipeline.model, rays[stride // 2 :: stride, stride // 2 :: stride], snapshot).connected.cpu()


def count(
    found: Float[Tensor, "height width labels"], ids: Int[Tensor, "height width"], cases: Sequence[Case]
) -> Int[Tensor, "labels 2 levels"]:
    """Count the pixels that respond at least as each threshold says: of each object, and of all others."""
    grid = torch.arange(STEPS + 1) / STEPS
    step = torch.bucketize(found.double(), grid.double() - 1e-9, right=True) - 1
    rows = []
    for place, case in enumerate(cases):
        mine = ids == case.value
        parts = (torch.bincount(step[..., place][inside], minlength=STEPS + 1) for inside in (mine, ~mine))
        rows.append(torch.stack([part.flip(0).cumsum(0).flip(0) for part in parts]))
    return torch.stack(rows)


def ious(counts: Int[Tensor, "*views 2 levels"]) -> Float[Tensor, "*views levels"]:
    """Return intersection over union at every threshold. At the first, 0, every pixel is selected."""
    hits, strays = counts[..., 0, :].double(), counts[..., 1, :].double()
    return hits / (hits[..., :1] + strays).clamp(min=1)


def mean(found: Sequence[Ious]) -> Ious:
    """Return the means over objects."""
    return Ious(*(float(np.nanmean(column)) for column in zip(*found, strict=True)))


def centre_pixel(mask: Bool[Tensor, "height width"] | Int[Tensor, "height width"]) -> tuple[int, int]:
    """Return the pixel of a mask farthest from its outline and from the view's edge: where a person would click."""
    depth = torch.from_numpy(distance_transform_edt(np.pad(mask.numpy(), 1)))[1:-1, 1:-1]
    row, col = divmod(int(depth.argmax()), mask.shape[1])
    return row, col
