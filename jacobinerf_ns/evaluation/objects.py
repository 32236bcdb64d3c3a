"""Measuring the selection of one object, as NVOS and SPIn-NeRF do: strokes or clicks in one view, masks in the others.

The object is one label, and its mask what that label selects: responses of at least its threshold, which is found in
the scene for every method alike, or given. Methods that know no threshold (the paper's decision, classifiers) get the
negative strokes as a second label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jacobinerf_ns.annotations.rasterise import spread
from jacobinerf_ns.annotations.rays import world_click
from jacobinerf_ns.annotations.schema import PALETTE, Annotations, Label
from jacobinerf_ns.core import metrics
from jacobinerf_ns.core.plateaus import find_plateaus
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import LabelledPixels, draw_pixels
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, TrainedFields, TrainOrEval
from jacobinerf_ns.evaluation.registry import CONTENDERS, Method, fit
from jacobinerf_ns.evaluation.scoring import (
    Key,
    MethodScores,
    ScoredView,
    ShownView,
    decide,
    evenly_spread,
    score_view,
)
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.files.masks import find_scribbles, mask_at, scribbles_at
from jacobinerf_ns.files.names import files_below, find_image, match_by_name
from jacobinerf_ns.labels.keeper import POOL_RAYS
from jacobinerf_ns.pipeline import MASK_SEEDS
from jacobinerf_ns.progress import track

OBJECT, REST = 1, 2
"""Ids of the two labels, and of pixels in pictures."""
Marks = tuple[Int[Tensor, "pixels 2"], Int[Tensor, "others 2"]]
"""Pixels of the object, and pixels beside it."""


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
    threshold: float | Literal["own"] = "own"
    """Response (0..1) from which on a pixel is the object's; `own`: found in the scene, as a click's is."""


class ObjectView(NamedTuple):
    """An image of the capture, and the object in it."""

    split: TrainOrEval
    frame: Frame
    mask: Bool[Tensor, "height width"] | None
    """At the size of the frame; none: nobody drew it."""


def object_views(fields: TrainedFields, masks: Path) -> list[ObjectView]:
    """Return all images of the capture, each once, with their masks.

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
    """Write marked pixels down as a user's clicks in space: the view may be one that is held out.

    Args:
        fields: whose view it is.
        view: that was marked.
        positive: (row, col) on the object.
        negative: (row, col) beside it.
        two_labels: make a label of the negative ones.

    Raises:
        UserError: there are no negative ones to make a label of.
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
    """Return the view that is marked.

    Raises:
        UserError: it is unknown, or nothing says what the object is in it.
    """
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


def mark(view: ObjectView, task: ObjectTask, seed: int) -> Marks:
    """Return (row, col) of the pixels that are said to be the object's, and not to be; strokes may miss the object.

    Raises:
        UserError: there is nothing to draw clicks from, or scribbles cannot be used.
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


class ObjectScores(NamedTuple):
    """How well masks agree, 0..1."""

    iou: float
    """Intersection over union, mean over the views that show the object."""
    iou_pooled: float
    """The same of all views' pixels together, those without the object too."""
    accuracy: float
    """Share of pixels that are right, mean over all views."""


OBJECT_MEASURES = {"iou": "IoU", "iou_pooled": "IoU, pooled", "accuracy": "accuracy"}


@dataclass
class ObjectReport(MethodScores[ObjectScores]):
    """What an evaluation of one capture found."""

    MEASURES: ClassVar[dict[str, str]] = OBJECT_MEASURES
    task: ObjectTask
    reference: str
    views: list[str]
    """File names of the scored images."""
    held_out: int
    """How many of them were not trained on."""
    per_view: dict[Method, list[list[float]]]
    """IoU of each view, per seed; NaN where the object is not to be seen."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON; the IoU of views without the object is null."""
        methods = {}
        for method in self.scores:
            per_view = [[None if math.isnan(v) else v for v in row] for row in self.per_view[method]]
            methods[method] = {**self.method_dict(method), "iou_per_view": per_view}
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
    """Fit every method to the marked reference view, and score it on all other images that have a mask.

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
    scored = _scored_views(views, reference, task, stride)
    fitted = _fit(fields, reference, task, methods, seeds)
    thresholds = _thresholds(fields, fitted, task)
    counts: dict[Key, list[Tensor]] = {key: [] for key in fitted}
    shown, places = [], evenly_spread(pictures, len(scored))
    for i, view in enumerate(track(scored, description="Scoring views")):
        seen = score_view(fields, fitted, view.split, view.frame.index, view.frame.size, stride)
        truth = seen.of(view.mask)
        masks = {key: _select(fitted[key], scores, thresholds[key]) for key, scores in seen.scores.items()}
        for key, mask in masks.items():
            counts[key].append(metrics.confusion_matrix(mask.long(), truth.long(), 2, void=None))
        if i in places:
            shown.append(_shown(fields, view, seen, truth, masks))
    confusion = {key: torch.stack(parts) for key, parts in counts.items()}
    return ObjectReport(
        task=task,
        reference=reference.frame.path.name,
        views=[view.frame.path.name for view in scored],
        held_out=sum(view.split == "eval" for view in scored),
        scores={m: [object_scores(counts) for counts in _of(m, confusion)] for m in methods},
        per_view={m: [_ious(counts).tolist() for counts in _of(m, confusion)] for m in methods},
        shown=shown,
    )


def object_scores(confusion: Int[Tensor, "views 2 2"]) -> ObjectScores:
    """Return the scores of (true, predicted) counts of views, position 1 being the object."""
    pooled = _ious(confusion.sum(0, keepdim=True))
    right = confusion.diagonal(dim1=1, dim2=2).sum(1).double() / confusion.sum((1, 2))
    return ObjectScores(float(_ious(confusion).nanmean()), float(pooled), float(right.mean()))


class _MaskedView(NamedTuple):
    """An image of the capture in which the object is known."""

    split: TrainOrEval
    frame: Frame
    mask: Bool[Tensor, "height width"]


def _scored_views(
    views: Sequence[ObjectView], reference: ObjectView, task: ObjectTask, stride: int
) -> list[_MaskedView]:
    """Return all views but the reference that have a mask.

    Raises:
        UserError: none of the pixels that are scored shows the object.
    """
    scored = [
        _MaskedView(view.split, view.frame, view.mask)
        for view in views
        if view.mask is not None and view is not reference
    ]
    if not any(bool(view.mask[stride // 2 :: stride, stride // 2 :: stride].any()) for view in scored):
        raise UserError(
            f"nothing to score: no image but {reference.frame.path.name}, the reference, has a mask of the object in "
            f"{task.masks} (every {stride}. pixel was looked at): add masks of other views"
        )
    return scored


def _fit(
    fields: TrainedFields, reference: ObjectView, task: ObjectTask, methods: Sequence[Method], seeds: Sequence[int]
) -> dict[Key, Fitted]:
    marked = [mark(reference, task, seed) for seed in (seeds[:1] if task.scribbles else seeds)]
    return {
        (m, i): fit(m, fields, make_object_exercise(fields, reference, *marks, CONTENDERS[m].weighs_labels))
        for m in methods
        for i, marks in enumerate(marked)
    }


def _of(method: Method, confusion: dict[Key, Tensor]) -> list[Tensor]:
    return [counts for (name, _), counts in confusion.items() if name == method]


def _thresholds(fields: TrainedFields, fitted: dict[Key, Fitted], task: ObjectTask) -> dict[Key, float]:
    """Return every contender's threshold, by its scores of random training pixels where it has none of its own."""
    if task.threshold != "own":
        return dict.fromkeys(fitted, task.threshold)
    found = {key: one.own_threshold for key, one in fitted.items()}
    asked = {key: fitted[key].scores for key, threshold in found.items() if threshold is None}
    parts: dict[Key, list[Tensor]] = {key: [] for key in asked}
    for seen in fields.looks_around(POOL_RAYS) if asked else ():
        for key, scores in asked.items():
            parts[key].append(scores(seen)[:, 0].detach().cpu())
    own = {key: find_plateaus(torch.cat(scores)) for key, scores in parts.items()}
    return {key: own[key].levels[own[key].natural] if known is None else known for key, known in found.items()}


def _select(
    fitted: Fitted, scores: Float[Tensor, "height width labels"], threshold: float
) -> Bool[Tensor, "height width"]:
    """Return the object's pixels: those that its label selects, or that no other label gets where there are several."""
    if scores.shape[-1] > 1:
        return decide(fitted, scores) == 0
    mine = scores[..., 0]
    return (mine >= threshold) & (mine > 0)


def _shown(
    fields: TrainedFields,
    view: _MaskedView,
    seen: ScoredView,
    truth: Bool[Tensor, "height width"],
    masks: dict[Key, Bool[Tensor, "height width"]],
) -> ShownView:
    photo = seen.of(fields.photo(view.split, view.frame.index))
    painted: dict[Method, Tensor] = {m: torch.where(mask, OBJECT, REST) for (m, i), mask in masks.items() if i == 0}
    return ShownView(view.frame.path.name, photo, seen.rgb, torch.where(truth, OBJECT, REST), painted)


def _ious(confusion: Int[Tensor, "views 2 2"]) -> Float[Tensor, "views"]:
    """Return the object's IoU of each view; NaN where the truth has none."""
    counts = confusion.double()
    hits, truth, called = counts[:, 1, 1], counts[:, 1].sum(1), counts[:, :, 1].sum(1)
    return torch.where(truth > 0, hits / (truth + called - hits).clamp(min=1), torch.nan)
