"""The demo's contact sheet: what resonates with clicks, shaped and unshaped."""

from pathlib import Path

import torch
from jaxtyping import Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from jacobinerf_ns.core.jacobian import cosine_response
from jacobinerf_ns.evaluation.annotators import view_with_most_ids
from jacobinerf_ns.evaluation.shaping_quality import RenderedView, render_jacobians
from jacobinerf_ns.files.pictures import Tile, heat_map, write_sheet
from jacobinerf_ns.labels.truth import read_truth
from jacobinerf_ns.pipeline import JacobiNeRFPipeline

CLICKED_THINGS = ("chair", "cushion", "lamp")
"""Classes whose largest visible member is clicked for the contact sheet."""


def write_contact_sheet(path: Path, pipeline: JacobiNeRFPipeline) -> None:
    """Write a row per click: photograph, rendering, resonance unshaped and shaped, and in a view nobody clicked in."""
    data, model = pipeline.datamanager, pipeline.model
    frames = data.frames("train")
    classes = read_truth(frames)
    place = view_with_most_ids(classes)
    names = data.train_dataparser_outputs.metadata["classes"]
    wanted = [label for label, name in names.items() if name in CLICKED_THINGS]
    camera = data.train_dataset.cameras[place : place + 1]
    photo = data.train_dataset[place]["image"][..., :3]
    after = render_jacobians(model, camera)
    with model.answering_by("trunk"):
        before = render_jacobians(model, camera)
    other = len(data.eval_dataset) // 2
    other_photo = data.eval_dataset[other]["image"][..., :3]
    elsewhere = render_jacobians(model, data.eval_dataset.cameras[other : other + 1])
    rows = []
    for label in wanted:
        row, col = centre_pixel(classes[place] == label)
        resonance = [
            heat_map(_resonance(view, clicked, (row, col)))
            for view, clicked in ((before, before), (after, after), (elsewhere, after))
        ]
        rows.append(
            [
                Tile(photo, f"photo, click on: {names[label]}", (row, col)),
                Tile(after.rgb, "rendering"),
                Tile(resonance[0], "resonance, unshaped", (row, col)),
                Tile(resonance[1], "resonance, shaped", (row, col)),
                Tile(other_photo, "a held-out photo"),
                Tile(resonance[2], "its resonance, shaped"),
            ]
        )
    write_sheet(path, rows)


def _resonance(view: RenderedView, clicked: RenderedView, pixel: tuple[int, int]) -> Tensor:
    direction = clicked.jacobians[pixel[0], pixel[1]][None]
    return cosine_response(view.jacobians.flatten(0, 1), direction).view(view.rgb.shape[:2])


def centre_pixel(mask: Int[Tensor, "height width"]) -> tuple[int, int]:
    """Return the pixel of a mask farthest from its outline: where a person would click."""
    depth = torch.from_numpy(distance_transform_edt(mask.numpy()))
    row, col = divmod(int(depth.argmax()), mask.shape[1])
    return row, col
