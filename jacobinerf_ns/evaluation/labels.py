"""Measuring propagation: an annotator is simulated, contenders are fitted, and held-out views are scored.

One confusion matrix per contender and annotator, pooled over all views: means of per-view scores reward views that lack
a class. Every contender sees the same pixels, of one rendering per view.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from jacobinerf_ns.core import metrics
from jacobinerf_ns.core.metrics import Scores
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import Annotator
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, TrainedFields, make_exercise
from jacobinerf_ns.evaluation.registry import Method, fit
from jacobinerf_ns.evaluation.scoring import Key, MethodScores, ShownView, decide, evenly_spread, score_view
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.labels.truth import read_truth
from jacobinerf_ns.progress import track

MEASURES = {
    "miou": "mIoU",
    "miou_labelled": "mIoU, labelled",
    "total_accuracy": "accuracy",
    "class_average_accuracy": "class average",
}


@dataclass
class Report(MethodScores[Scores]):
    """What an evaluation found."""

    MEASURES: ClassVar[dict[str, str]] = MEASURES
    annotator: Annotator
    view: str
    """File name of the labelled view."""
    names: dict[int, str]
    """Class names by id, or made up for instances."""
    psnr: float
    """Of the shaped field's rendering, mean over the held-out views, dB."""
    psnr_unshaped: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON; what cannot be scored is null."""
        methods = {}
        for method, per_seed in self.scores.items():
            class_iou = {
                name: [_number(s.class_iou[identity]) for s in per_seed] for identity, name in self.names.items()
            }
            methods[method] = {**self.method_dict(method), "class_iou": class_iou}
        return {
            "protocol": self.annotator.protocol,
            "clicks": self.annotator.clicks,
            "labelled_view": self.view,
            "psnr": self.psnr,
            "psnr_unshaped": self.psnr_unshaped,
            "methods": methods,
        }


def evaluate(
    fields: TrainedFields,
    annotator: Annotator,
    methods: Sequence[Method],
    seeds: Sequence[int],
    stride: int = 1,
    pictures: int = 0,
) -> Report:
    """Fit every method to every seed's annotator, and score them on the held-out views.

    Args:
        fields: what is scored, and the teacher.
        annotator: protocol to simulate.
        methods: who competes.
        seeds: of the annotator; the dense protocol has nothing to draw and takes the first only.
        stride: scores every stride-th pixel of every stride-th row, at their own centres; 1 is all.
        pictures: held-out views to keep for a picture sheet, evenly spread.

    Raises:
        UserError: a view lacks ground truth, or a method lacks what it needs.
    """
    data = fields.shaped.datamanager
    train, held_out = data.frames("train"), data.frames("eval")
    maps, truth = read_truth(train, annotator.truth), read_truth(held_out, annotator.truth)
    names, dense = _names(fields, annotator, [*maps, *truth]), annotator.protocol == "dense"
    drawn = [annotator.label(maps, seed) for seed in (seeds[:1] if dense else seeds)]
    with TemporaryDirectory() as folder:
        exercises = [make_exercise(fields, labelled, names, dense, Path(folder)) for labelled in drawn]
        fitted = {(m, i): fit(m, fields, exercise) for m in methods for i, exercise in enumerate(exercises)}
    tally = _Tally(fields, fitted, exercises, max(names) + 1)
    places = evenly_spread(pictures, len(truth))
    for i, view in enumerate(track(truth, description="Scoring held-out views")):
        tally.add_view(i, view, stride, held_out[i].path.name if i in places else None)
    return Report(
        annotator=annotator,
        view=train[drawn[0].image].path.name,
        names=names,
        scores={m: [tally.scores((m, i)) for i in range(len(exercises))] for m in methods},
        psnr=statistics.mean(tally.psnr),
        psnr_unshaped=statistics.mean(tally.psnr_unshaped) if tally.psnr_unshaped else None,
        shown=tally.shown,
    )


class _Tally:
    """Confusion matrices and colours' errors, summed view by view."""

    def __init__(
        self, fields: TrainedFields, fitted: Mapping[Key, Fitted], exercises: Sequence[Exercise], count: int
    ) -> None:
        self.fields, self.fitted, self.exercises, self.count = fields, fitted, exercises, count
        self.confusion = {key: torch.zeros(count, count, dtype=torch.long) for key in fitted}
        self.psnr: list[float] = []
        self.psnr_unshaped: list[float] = []
        self.shown: list[ShownView] = []

    def add_view(self, image: int, truth: Int[Tensor, "height width"], stride: int, show: str | None) -> None:
        """Add what each method makes of a view; under the name `show` it is kept for the picture sheet."""
        size = (truth.shape[0], truth.shape[1])
        scored = score_view(self.fields, self.fitted, "eval", image, size, stride)
        seen, photo = scored.of(truth), scored.of(self.fields.photo("eval", image))
        predicted: dict[Key, Tensor] = {}
        for key, scores in scored.scores.items():
            ids = torch.tensor(self.exercises[key[1]].ids)
            predicted[key] = ids[decide(self.fitted[key], scores)]
            self.confusion[key] += metrics.confusion_matrix(predicted[key], seen, self.count, VOID_ID)
        self.psnr.append(metrics.psnr(scored.rgb, photo))
        if scored.rgb_unshaped is not None:
            self.psnr_unshaped.append(metrics.psnr(scored.rgb_unshaped, photo))
        if show is not None:
            first: dict[Method, Tensor] = {method: ids for (method, i), ids in predicted.items() if i == 0}
            self.shown.append(ShownView(show, photo, scored.rgb, seen, first))

    def scores(self, key: Key) -> Scores:
        """Return the scores of all views together."""
        return metrics.scores(self.confusion[key], self.exercises[key[1]].ids)


def _names(fields: TrainedFields, annotator: Annotator, maps: Sequence[Tensor]) -> dict[int, str]:
    """Return a name for every id that occurs, from the capture where it has names."""
    present = sorted({int(i) for view in maps for i in view.unique()} - {VOID_ID})
    if not present:
        raise UserError("the ground truth of this capture is void everywhere: nothing can be scored")
    if annotator.truth == "instances":
        return {identity: f"instance {identity}" for identity in present}
    known = fields.shaped.datamanager.train_dataparser_outputs.metadata.get("classes") or {}
    return {identity: known.get(identity, f"class {identity}") for identity in present}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
