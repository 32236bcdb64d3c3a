"""Measuring the selection of one object, as NVOS and SPIn-NeRF do: strokes or clicks in one view, masks in the others.

The object is one label, and its mask what that label selects: responses of at least the annotation threshold. Methods
that know no threshold (the paper's decision, classifiers) get the negative strokes as a second label.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import track
from torch import Tensor

from jacobinerf_ns.core import metrics
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.exercise import Fitted, Scene
from jacobinerf_ns.evaluation.labels import Shown
from jacobinerf_ns.evaluation.object_views import (
    OBJECT,
    REST,
    ObjectTask,
    ObjectView,
    make_object_exercise,
    mark,
    object_views,
    reference_view,
)
from jacobinerf_ns.evaluation.registry import CONTENDERS, Method, fit

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
    shown: list[Shown]

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
    scene: Scene, task: ObjectTask, methods: Sequence[Method], seeds: Sequence[int], stride: int = 1, pictures: int = 0
) -> ObjectReport:
    """Fits every method to the marked reference view, and scores it on all other images that have a mask.

    Args:
        scene: fields and teacher.
        task: masks, and how the object is marked.
        methods: who competes.
        seeds: of the clicks; scribbles leave nothing to draw, and take the first only.
        stride: scores every stride-th pixel of every stride-th row, at their own centres; 1 is all.
        pictures: views to keep for a picture sheet, evenly spread.

    Raises:
        UserError: masks or scribbles cannot be used, the reference is unknown, or a method lacks what it needs.
    """
    views = object_views(scene, task.masks)
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
        (m, i): fit(m, scene, make_object_exercise(scene, reference, *marks, CONTENDERS[m].weighs_labels))
        for m in methods
        for i, marks in enumerate(marked)
    }
    counts: dict[Key, list[Tensor]] = {key: [] for key in fitted}
    shown = []
    places = {round(i * (len(scored) - 1) / max(pictures - 1, 1)) for i in range(pictures)}
    for i, view in enumerate(track(scored, description="Scoring views")):
        seen = _look(scene, view, fitted, task.threshold, stride)
        for key, mask in seen.found.items():
            counts[key].append(metrics.confusion_matrix(mask.long(), seen.truth.long(), 2, void=None))
        if i in places:
            shown.append(_shown(scene, view, seen, stride))
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


def _look(scene: Scene, view: ObjectView, fitted: dict[Key, Fitted], threshold: float, stride: int) -> _Seen:
    """Renders a view once for everybody."""
    assert view.mask is not None
    rows, cols = (torch.arange(stride // 2, size, stride) for size in view.frame.size)
    pixels = torch.cartesian_prod(torch.tensor([view.frame.index]), rows, cols)
    found: dict[Key, list[Tensor]] = {key: [] for key in fitted}
    colours: list[Tensor] = []
    for part in pixels.split(scene.shaped.model.config.eval_num_rays_per_chunk):
        sight = scene.look(view.split, part)
        colours.append(sight.traced.outputs["rgb"].cpu())
        for key, contender in fitted.items():
            found[key].append(contender.scores(sight).detach().cpu())
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


def _shown(scene: Scene, view: ObjectView, seen: _Seen, stride: int) -> Shown:
    data = scene.shaped.datamanager
    dataset = data.train_dataset if view.split == "train" else data.eval_dataset
    photo = dataset[view.frame.index]["image"][stride // 2 :: stride, stride // 2 :: stride, :3]
    painted: dict[Method, Tensor] = {
        method: torch.where(mask, OBJECT, REST) for (method, i), mask in seen.found.items() if i == 0
    }
    return Shown(view.frame.path.name, photo, seen.rgb, torch.where(seen.truth, OBJECT, REST), painted)


def _ious(confusion: Int[Tensor, "views 2 2"]) -> Float[Tensor, "views"]:
    """Of the object, per view; NaN where the truth has none."""
    counts = confusion.double()
    hits, truth, called = counts[:, 1, 1], counts[:, 1].sum(1), counts[:, :, 1].sum(1)
    return torch.where(truth > 0, hits / (truth + called - hits).clamp(min=1), torch.nan)
