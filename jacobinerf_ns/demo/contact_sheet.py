"""The demo's contact sheet: things of the room, each from one click, in views that nobody clicked in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from jacobinerf_ns.annotations import changes
from jacobinerf_ns.annotations.notes import Notes
from jacobinerf_ns.annotations.schema import Annotations, Edit
from jacobinerf_ns.evaluation.one_click import Case, choose, maps
from jacobinerf_ns.files.pictures import Tile, write_sheet
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.run.opened import Run

EDITS = {
    "chair green": ("taken away", Edit(kind="remove", label=1)),
    "sofa": ("cut out", Edit(kind="extract", label=1)),
    "lamp orange": ("recoloured", Edit(kind="recolour", label=1, colour=(200, 40, 160))),
}
"""Things that are clicked, and what is done to each."""
PICTURE_WIDTH = 192
"""Pixels of the rendered views."""


def click_things(run: Run) -> tuple[Notes, list[Case]]:
    """Click each thing once, where a careful person would; the notes have a label of its name for each."""
    data, notes = run.pipeline.datamanager, run.annotations
    cases = choose(tuple(EDITS), data, "instances", maps(data, "train", "instances"))
    for case in cases:
        photo = data.train_dataparser_outputs.image_filenames[case.view].name
        notes = notes.click(case.name, photo, case.pixel[::-1])
    return notes, cases


def write_contact_sheet(path: Path, run: Run, notes: Notes, cases: Sequence[Case]) -> None:
    """Write a row per thing: the click, the thing in a held-out view, the same without shaping, and an edit of it.

    "Without shaping" is what the colour trunk of the same field answers, which shaping of the entity branch leaves
    alone.
    """
    pipeline = run.pipeline
    held_out = maps(pipeline.datamanager, "eval", "instances")
    rows = []
    for case in cases:
        other = max(range(len(held_out)), key=lambda view: int((held_out[view] == case.value).sum()))
        camera = _camera(pipeline, other)
        alone = replace(notes, annotations=_only(notes, case.name))
        with pipeline.model.answering_by("trunk"):
            before = render_with(pipeline, camera, pipeline.label_maker().snapshot_of(alone.annotations, run.folder))
        done, edit = EDITS[case.name]
        label = alone.annotations.labels[0].id
        edited = changes.add_edit(alone.annotations, edit.model_copy(update={"label": label}))
        shown = render_with(pipeline, camera, run.fit(edited).snapshot)
        photo = pipeline.datamanager.train_dataset[case.view]["image"][..., :3]
        rows.append(
            [
                Tile(photo, f"one click: {case.name}", case.pixel),
                Tile(shown["selection_overlay"], "a view that nobody clicked in"),
                Tile(before["selection_overlay"], "the same click, unshaped"),
                Tile(shown["edited"], done),
            ]
        )
    write_sheet(path, rows)


def _only(notes: Notes, name: str) -> Annotations:
    annotations = notes.annotations
    for label in annotations.labels:
        if label.name != name:
            annotations = changes.remove_label(annotations, label.id)
    return annotations


def _camera(pipeline: JacobiNeRFPipeline, view: int) -> Cameras:
    camera = pipeline.datamanager.eval_dataset.cameras[view : view + 1].to(pipeline.device)
    camera.rescale_output_resolution(PICTURE_WIDTH / int(camera.width))
    return camera


@torch.no_grad()
def render_with(
    pipeline: JacobiNeRFPipeline, camera: Cameras, snapshot: LabelSnapshot | None
) -> dict[str, Float[Tensor, "height width channels"]]:
    """Return all outputs of a view with these labels; what the pipeline shows stays as it is."""
    model = pipeline.model
    before, model.label_source = model.label_source, lambda: snapshot
    try:
        return model.get_outputs_for_camera(camera)
    finally:
        model.label_source = before
