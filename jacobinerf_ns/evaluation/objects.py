"""Measuring the selection of one object, as NVOS and SPIn-NeRF do: strokes or clicks in one view, masks in the others.

The object is one label, and its mask what that label selects: responses of at least the annotation threshold. Methods
that know no threshold (the paper's decision, classifiers) get the negative strokes as a second label.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import track
from torch import Tensor

from jacobinerf_ns.annotations.rasterise import find_image, spread
from jacobinerf_ns.annotations.rays import world_click
from jacobinerf_ns.annotations.schema import PALETTE, Annotations, Label
from jacobinerf_ns.core import metrics
from jacobinerf_ns.core.propagation import PropagationConfig
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import LabelledPixels, draw_pixels
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, TrainedFields, TrainOrEval
from jacobinerf_ns.evaluation.labels import ShownView
from jacobinerf_ns.evaluation.registry import CONTENDERS, Method, fit
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

    split: TrainOrEval
    frame: Frame
    mask: Bool[Tensor, "height width"] | None
    """At the size of the frame; none: nobody drew it."""


def object_views(fields: TrainedFields, masks: Path) -> list[ObjectView]:
    """All images of the capture, each once, with their masks.

    Raises:
        UserError: no such folder, no mask is named like an image, or one cannot be used.
    """
    data = fields.shaped.datamanager
    listed: dict[Path, tuple[TrainOrEval, Frame]] = {}
    splits: tuple[TrainOrEval, ...] = ("train", "eval")
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
    fields: TrainedFields,
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
    rays = fields.rays(view.split, torch.cat([image.expand(len(pixels), 1), pixels], dim=-1))
    clicks = [
        world_click(fields.shaped.world, origin, direction, identity, negative=not (two_labels or mine))
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


Key = tuple[Method, int]
"""A method, and which of the seeds of the clicks."""


class ObjectScores(NamedTuple):
    """How well masks agree, 0..1."""

    iou: float
    """Intersection over union, mean over the views that show the object."""
    iou_pooled: float
    """The same of all views' pixels together, those without the object too."""
    accuracy: float
    """Share of pixels that are right, mean over all views."""


OBJECT_MEASURES = ObjectScores._fields


@dataclass
class ObjectReport:
    """What an evaluation of one scene found."""

    task: ObjectTask
    reference: str
    views: list[str]
    """File names of the scored images."""
    held_out: int
    """How many of them were not trained on."""
    scores: dict[Method, list[ObjectScores]]
    """Per method, one entry per seed of the clicks."""
    per_view: dict[Method, list[list[float]]]
    """IoU of each view, per seed; NaN where the object is not to be seen."""
    shown: list[ShownView]

    def mean(self, method: Method, measure: str) -> float:
        """Mean over seeds."""
        return statistics.mean(getattr(scores, measure) for scores in self.scores[method])

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the IoU of views without the object is null."""
        methods = {
            method: {
                **{measure: [getattr(s, measure) for s in per_seed] for measure in OBJECT_MEASURES},
                "mean": {measure: self.mean(method, measure) for measure in OBJECT_MEASURES},
                "iou_per_view": [[None if math.isnan(v) else v for v in row] for row in self.per_view[method]],
            }
            for method, per_seed in self.scores.items()
        }
        return {
            "protocol": "object",
            "seeds": "scribbles" if self.task.scribbles else f"{self.task.clicks} clicks",
            "threshold": self.task.threshold,
            "reference": self.reference,
            "views": self.views,
            "held_out_views": self.held_out,
            "methods": methods,
        }


def evaluate_object(
    fields: TrainedFields,
    task: ObjectTask,
    methods: Sequence[Method],
    seeds: Sequence[int],
    stride: int = 1,
    pictures: int = 0,
) -> ObjectReport:
    """Fits every method to the marked reference view, and scores it on all other images that have a mask.

    Args:
        fields: what is scored, and the teacher.
        task: masks, and how the object is marked.
        methods: who competes.
        seeds: of the clicks; scribbles leave nothing to draw, and take the first only.
        stride: scores every stride-th pixel of every stride-th row, at their own centres; 1 is all.
        pictures: views to keep for a picture sheet, evenly spread.

    Raises:
        UserError: masks or scribbles cannot be used, the reference is unknown, or a method lacks what it needs.
    """
    views = object_views(fields, task.masks)
    reference = reference_view(views, task)
    scored = [view for view in views if view.mask is not None and view is not reference]
    drawn = [view.mask[stride // 2 :: stride, stride // 2 :: stride] for view in scored if view.mask is not None]
    if not any(bool(mask.any()) for mask in drawn):
        raise UserError(
            f"nothing to score: no image but {reference.frame.path.name}, the reference, has a mask of the object in "
            f"{task.masks} (every {stride}. pixel was looked at): add masks of other views"
        )
    marked = [mark(reference, task, seed) for seed in (seeds[:1] if task.scribbles else seeds)]
    fitted: dict[Key, Fitted] = {
        (m, i): fit(m, fields, make_object_exercise(fields, reference, *marks, CONTENDERS[m].weighs_labels))
        for m in methods
        for i, marks in enumerate(marked)
    }
    counts: dict[Key, list[Tensor]] = {key: [] for key in fitted}
    shown = []
    places = {round(i * (len(scored) - 1) / max(pictures - 1, 1)) for i in range(pictures)}
    for i, view in enumerate(track(scored, description="Scoring views")):
        seen = _look(fields, view, fitted, task.threshold, stride)
        for key, mask in seen.found.items():
            counts[key].append(metrics.confusion_matrix(mask.long(), seen.truth.long(), 2, void=None))
        if i in places:
            shown.append(_shown(fields, view, seen, stride))
    confusion = {key: torch.stack(parts) for key, parts in counts.items()}
    return ObjectReport(
        task=task,
        reference=reference.frame.path.name,
        views=[view.frame.path.name for view in scored],
        held_out=sum(view.split == "eval" for view in scored),
        scores={m: [object_scores(confusion[m, i]) for i in range(len(marked))] for m in methods},
        per_view={m: [_ious(confusion[m, i]).tolist() for i in range(len(marked))] for m in methods},
        shown=shown,
    )


def object_scores(confusion: Int[Tensor, "views 2 2"]) -> ObjectScores:
    """Scores from the (true, predicted) counts of views, position 1 being the object."""
    pooled = _ious(confusion.sum(0, keepdim=True))
    right = confusion.diagonal(dim1=1, dim2=2).sum(1).double() / confusion.sum((1, 2))
    return ObjectScores(float(_ious(confusion).nanmean()), float(pooled), float(right.mean()))


class _Seen(NamedTuple):
    """A view as everybody saw it."""

    truth: Bool[Tensor, "height width"]
    rgb: Float[Tensor, "height width 3"]
    found: dict[Key, Bool[Tensor, "height width"]]


def _look(fields: TrainedFields, view: ObjectView, fitted: dict[Key, Fitted], threshold: float, stride: int) -> _Seen:
    """Renders a view once for everybody."""
    assert view.mask is not None
    rows, cols = (torch.arange(stride // 2, size, stride) for size in view.frame.size)
    pixels = torch.cartesian_prod(torch.tensor([view.frame.index]), rows, cols)
    found: dict[Key, list[Tensor]] = {key: [] for key in fitted}
    colours: list[Tensor] = []
    for part in pixels.split(fields.shaped.model.config.eval_num_rays_per_chunk):
        seen = fields.look(view.split, part)
        colours.append(seen.shaped.outputs["rgb"].cpu())
        for key, contender in fitted.items():
            found[key].append(contender.scores(seen).detach().cpu())
    size = (len(rows), len(cols))
    masks = {key: _select(fitted[key], torch.cat(parts).view(*size, -1), threshold) for key, parts in found.items()}
    return _Seen(view.mask[rows[:, None], cols[None, :]], torch.cat(colours).view(*size, 3), masks)


def _select(
    fitted: Fitted, scores: Float[Tensor, "height width labels"], threshold: float
) -> Bool[Tensor, "height width"]:
    """The object's pixels: those that its label selects (`label_rendering.selected`), or that no other label gets."""
    if scores.shape[-1] > 1:
        return (scores.argmax(-1) if fitted.whole_view is None else fitted.whole_view(scores)) == 0
    mine = scores[..., 0]
    return (mine >= threshold) & (mine > 0)


def _shown(fields: TrainedFields, view: ObjectView, seen: _Seen, stride: int) -> ShownView:
    data = fields.shaped.datamanager
    dataset = data.train_dataset if view.split == "train" else data.eval_dataset
    photo = dataset[view.frame.index]["image"][stride // 2 :: stride, stride // 2 :: stride, :3]
    painted: dict[Method, Tensor] = {
        method: torch.where(mask, OBJECT, REST) for (method, i), mask in seen.found.items() if i == 0
    }
    return ShownView(view.frame.path.name, photo, seen.rgb, torch.where(seen.truth, OBJECT, REST), painted)


def _ious(confusion: Int[Tensor, "views 2 2"]) -> Float[Tensor, "views"]:
    """Of the object, per view; NaN where the truth has none."""
    counts = confusion.double()
    hits, truth, called = counts[:, 1, 1], counts[:, 1].sum(1), counts[:, :, 1].sum(1)
    return torch.where(truth > 0, hits / (truth + called - hits).clamp(min=1), torch.nan)
