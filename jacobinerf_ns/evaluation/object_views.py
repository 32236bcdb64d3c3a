"""The task of selecting one object: its masks in the views of a capture, and how a simulated person marks it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jacobinerf_ns.annotations.rasterise import find_image, spread
from jacobinerf_ns.annotations.rays import world_click
from jacobinerf_ns.annotations.schema import PALETTE, Annotations, Label
from jacobinerf_ns.core.propagation import PropagationConfig
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import LabelledPixels, draw_pixels
from jacobinerf_ns.evaluation.exercise import Exercise, Scene, Split
from jacobinerf_ns.evaluation.registry import CONTENDERS
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.files.masks import find_scribbles, mask_at, scribbles_at
from jacobinerf_ns.files.names import files_below, match_by_name
from jacobinerf_ns.pipeline import MASK_SEEDS

OBJECT, REST = 1, 2
"""Ids of the two labels, and of pixels in pictures."""


@dataclass(frozen=True)
class ObjectTask:
    """What is given of an object, and how it is marked."""

    masks: Path
    """Folder of masks, named like the capture's images."""
    reference: str | None = None
    """Name of the image that is marked; by default the training image that shows most of the object."""
    scribbles: tuple[Path, ...] = ()
    """Pictures of strokes in the reference, or folders of them; none: clicks are drawn from its mask."""
    clicks: int = 3
    """Pixels of the object that are clicked, where there are no scribbles."""
    threshold: float = PropagationConfig().threshold
    """Response (0..1) from which on a pixel is the object's."""


class ObjectView(NamedTuple):
    """An image of the capture, and the object in it."""

    split: Split
    frame: Frame
    mask: Bool[Tensor, "height width"] | None
    """At the size of the frame; none: nobody drew it."""


def object_views(scene: Scene, masks: Path) -> list[ObjectView]:
    """All images of the capture, each once, with their masks.

    Raises:
        UserError: no such folder, no mask is named like an image, or one cannot be used.
    """
    data = scene.shaped.datamanager
    listed: dict[Path, tuple[Split, Frame]] = {}
    splits: tuple[Split, ...] = ("train", "eval")
    for split in splits:
        for frame in data.frames(split):
            listed.setdefault(frame.path, (split, frame))
    files = files_below(masks)
    found = match_by_name(list(listed), files, masks)
    if not any(found):
        example = f"{files[0].name} is not" if files else "it is empty"
        raise UserError(
            f"no mask in {masks} is named like an image of the capture: {example}, expected names like "
            f"{next(iter(listed)).stem}.png"
        )
    return [
        ObjectView(split, frame, None if path is None else mask_at(path, frame.size))
        for (split, frame), path in zip(listed.values(), found, strict=True)
    ]


def make_object_exercise(
    scene: Scene,
    view: ObjectView,
    positive: Int[Tensor, "pixels 2"],
    negative: Int[Tensor, "others 2"],
    two_labels: bool,
) -> Exercise:
    """Marked pixels (row, col) as a user's clicks on the object, in space: the view may be one that is held out.

    `two_labels` makes a label of the negative ones. Errors: `UserError` where there are none to make it of.
    """
    if two_labels and not len(negative):
        weighing = [name for name, one in CONTENDERS.items() if one.weighs_labels]
        raise UserError(
            f"methods {', '.join(weighing)} choose between labels, and need negative scribbles beside the object: "
            "give --scribbles with 'neg' in a name, or leave them out"
        )
    image = torch.tensor([view.frame.index])
    of_object = torch.arange(len(positive) + len(negative)) < len(positive)
    pixels = torch.cat([positive, negative])
    ids = torch.where(of_object, OBJECT, REST) if two_labels else torch.full((len(pixels),), OBJECT)
    names = {OBJECT: "object", REST: "rest"} if two_labels else {OBJECT: "object"}
    rays = scene.rays(view.split, torch.cat([image.expand(len(pixels), 1), pixels], dim=-1))
    clicks = [
        world_click(scene.shaped.world, origin, direction, identity, negative=not (two_labels or mine))
        for origin, direction, identity, mine in zip(
            rays.origins.double(), rays.directions.double(), ids.tolist(), of_object.tolist(), strict=True
        )
    ]
    labels = tuple(Label(id=identity, name=name, colour=PALETTE[i]) for i, (identity, name) in enumerate(names.items()))
    return Exercise(
        labelled=LabelledPixels(view.frame.index, pixels[:, 0], pixels[:, 1], ids),
        ids=list(names),
        positions=ids - OBJECT,
        annotations=Annotations(labels=labels, seeds=tuple(clicks)),
        folder=Path(),
        split=view.split,
        positive=None if two_labels else of_object,
    )


def reference_view(views: Sequence[ObjectView], task: ObjectTask) -> ObjectView:
    """The view that is marked. Errors: `UserError`, it is unknown, or nothing says what the object is in it."""
    if task.reference is not None:
        view = views[find_image(task.reference, [view.frame.path for view in views], "images of the capture")]
        if view.mask is None and not task.scribbles:
            raise UserError(f"the reference {task.reference} has no mask in {task.masks}: add it, or give --scribbles")
        return view
    if task.scribbles:
        raise UserError("--scribbles need --reference, the name of the image that they were drawn in")
    trained = [view for view in views if view.split == "train" and view.mask is not None and bool(view.mask.any())]
    if not trained:
        raise UserError(f"no training image has a mask of the object in {task.masks}: add one, or give --reference")
    return max(trained, key=lambda view: 0.0 if view.mask is None else float(view.mask.float().mean()))


def mark(view: ObjectView, task: ObjectTask, seed: int) -> tuple[Int[Tensor, "pixels 2"], Int[Tensor, "others 2"]]:
    """(row, col) of the pixels that are said to be the object's, and not to be; strokes may miss the object.

    Errors: `UserError`, there is nothing to draw clicks from, or scribbles cannot be used.
    """
    if not task.scribbles:
        assert view.mask is not None
        if not view.mask.any():
            raise UserError(
                f"the mask of {view.frame.path.name} in {task.masks} is empty: nothing can be clicked there, "
                "choose another --reference"
            )
        return torch.stack(draw_pixels(view.mask.long(), task.clicks, seed), dim=-1), torch.zeros(0, 2).long()
    positive, negative = (scribbles_at(paths, view.frame.size) for paths in find_scribbles(task.scribbles))
    if not positive.any():
        raise UserError(f"the positive scribbles in {task.scribbles[0]} are empty: expected white strokes on black")
    drawn = [torch.from_numpy(spread(part.nonzero().numpy(), MASK_SEEDS)) for part in (positive, negative & ~positive)]
    return drawn[0], drawn[1]
