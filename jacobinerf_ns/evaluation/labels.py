"""Measuring propagation: an annotator is simulated, contenders are fitted, and held-out views are scored.

One confusion matrix per contender and annotator, pooled over all views: means of per-view scores reward views that lack
a class. Every contender sees the same pixels, of one rendering per view.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from jacobinerf_ns.core import metrics
from jacobinerf_ns.core.metrics import Scores
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import Annotator
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, TrainedFields, make_exercise
from jacobinerf_ns.evaluation.registry import Method, fit
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.labels.truth import read_truth

MEASURES = ("miou", "miou_labelled", "total_accuracy", "class_average_accuracy")


class ShownView(NamedTuple):
    """One held-out view for the picture sheet."""

    name: str
    photo: Float[Tensor, "height width 3"]
    rgb: Float[Tensor, "height width 3"]
    truth: Int[Tensor, "height width"]
    predicted: dict[Method, Int[Tensor, "height width"]]


@dataclass
class Report:
    """What an evaluation found."""

    annotator: Annotator
    view: str
    """File name of the labelled view."""
    names: dict[int, str]
    """Class names by id, or made up for instances."""
    scores: dict[Method, list[Scores]]
    """Per method, one entry per seed of the annotator."""
    psnr: float
    """Of the shaped field's rendering, mean over the held-out views, dB."""
    psnr_unshaped: float | None
    shown: list[ShownView]

    def mean(self, method: Method, measure: str) -> float:
        """Mean over seeds."""
        return statistics.mean(getattr(scores, measure) for scores in self.scores[method])

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what cannot be scored is null."""
        methods = {
            method: {
                **{measure: [getattr(s, measure) for s in per_seed] for measure in MEASURES},
                "mean": {measure: self.mean(method, measure) for measure in MEASURES},
                "class_iou": {
                    name: [_number(s.class_iou[identity]) for s in per_seed] for identity, name in self.names.items()
                },
            }
            for method, per_seed in self.scores.items()
        }
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
    """Fits every method to every seed's annotator, and scores them on the held-out views.

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
    names = _names(fields, annotator, [*maps, *truth])
    seeds = seeds[:1] if annotator.protocol == "dense" else seeds
    count = max(names) + 1
    with TemporaryDirectory() as folder:
        exercises = [
            make_exercise(fields, annotator.label(maps, s), names, annotator.protocol == "dense", Path(folder))
            for s in seeds
        ]
        fitted: dict[tuple[Method, int], Fitted] = {
            (method, i): fit(method, fields, exercise) for method in methods for i, exercise in enumerate(exercises)
        }
    tally = _Tally(fitted, exercises, count)
    places = {round(i * (len(truth) - 1) / max(pictures - 1, 1)) for i in range(pictures)}
    for i in track(range(len(truth)), description="Scoring held-out views"):
        tally.add_view(fields, i, truth[i], stride, held_out[i].path.name if i in places else None)
    labelled = [exercise.ids for exercise in exercises]
    return Report(
        annotator=annotator,
        view=train[exercises[0].labelled.image].path.name,
        names=names,
        scores={m: [metrics.scores(tally.confusion[m, i], ids) for i, ids in enumerate(labelled)] for m in methods},
        psnr=statistics.mean(tally.psnr),
        psnr_unshaped=statistics.mean(tally.psnr_plain) if fields.plain is not None else None,
        shown=tally.shown,
    )


class _Tally:
    """Confusion matrices and colours' errors, summed view by view."""

    def __init__(self, fitted: dict[tuple[Method, int], Fitted], exercises: Sequence[Exercise], count: int) -> None:
        self.fitted, self.count = fitted, count
        self.ids = [torch.tensor(exercise.ids) for exercise in exercises]
        self.confusion = {key: torch.zeros(count, count, dtype=torch.long) for key in fitted}
        self.psnr: list[float] = []
        self.psnr_plain: list[float] = []
        self.shown: list[ShownView] = []

    def add_view(
        self, fields: TrainedFields, image: int, truth: Int[Tensor, "height width"], stride: int, show: str | None
    ) -> None:
        """Renders a view once for everybody, and adds what each method makes of it."""
        rows, cols = (torch.arange(stride // 2, size, stride) for size in truth.shape)
        pixels = torch.cartesian_prod(torch.tensor([image]), rows, cols)
        size, chunk = (len(rows), len(cols)), fields.shaped.model.config.eval_num_rays_per_chunk
        found: dict[tuple[Method, int], list[Tensor]] = {key: [] for key in self.fitted}
        colours: list[Tensor] = []
        plain: list[Tensor] = []
        for part in pixels.split(chunk):
            seen = fields.look("eval", part)
            colours.append(seen.shaped.outputs["rgb"].cpu())
            if seen.plain is not None:
                plain.append(seen.plain.outputs["rgb"].cpu())
            for key, fitted in self.fitted.items():
                found[key].append(fitted.scores(seen).detach().cpu())
        seen = truth[rows[:, None], cols[None, :]]
        predicted = {key: self._decide(key, torch.cat(parts).view(*size, -1)) for key, parts in found.items()}
        for key, ids in predicted.items():
            self.confusion[key] += metrics.confusion_matrix(ids, seen, self.count, VOID_ID)
        photo = fields.shaped.datamanager.eval_dataset[image]["image"][..., :3][rows[:, None], cols[None, :]]
        rgb = torch.cat(colours).view(*size, 3)
        self.psnr.append(metrics.psnr(rgb, photo))
        if plain:
            self.psnr_plain.append(metrics.psnr(torch.cat(plain).view(*size, 3), photo))
        if show is not None:
            first: dict[Method, Tensor] = {method: ids for (method, i), ids in predicted.items() if i == 0}
            self.shown.append(ShownView(show, photo, rgb, seen, first))

    def _decide(
        self, key: tuple[Method, int], scores: Float[Tensor, "height width labels"]
    ) -> Int[Tensor, "height width"]:
        whole = self.fitted[key].whole_view
        return self.ids[key[1]][scores.argmax(-1) if whole is None else whole(scores)]


def _names(fields: TrainedFields, annotator: Annotator, maps: Sequence[Tensor]) -> dict[int, str]:
    """A name for every id that occurs, from the capture where it has names."""
    present = sorted({int(i) for view in maps for i in view.unique()} - {VOID_ID})
    if not present:
        raise UserError("the ground truth of this capture is void everywhere: nothing can be scored")
    if annotator.truth == "instances":
        return {identity: f"instance {identity}" for identity in present}
    known = fields.shaped.datamanager.train_dataparser_outputs.metadata.get("classes") or {}
    return {identity: known.get(identity, f"class {identity}") for identity in present}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
