"""What all evaluations share: one rendering of a view for every contender, and scores by method and draw.

Each view is rendered once, whoever competes. A method is scored once per seed of the simulated annotator.
"""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.evaluation.exercise import Fitted, TrainedFields, TrainOrEval
from jacobinerf_ns.evaluation.registry import Method

Key = tuple[Method, int]
"""A method, and which of the annotator's seeds."""
S = TypeVar("S")


class ShownView(NamedTuple):
    """One scored view for the picture sheet."""

    name: str
    photo: Float[Tensor, "height width 3"]
    rgb: Float[Tensor, "height width 3"]
    truth: Int[Tensor, "height width"]
    predicted: dict[Method, Int[Tensor, "height width"]]


@dataclass
class MethodScores(ABC, Generic[S]):
    """Scores of an evaluation."""

    MEASURES: ClassVar[dict[str, str]]
    """Fields of a score, and what they are called in tables."""
    scores: dict[Method, list[S]]
    """Per method, one entry per seed of the annotator."""
    shown: list[ShownView]

    def values(self, method: Method, measure: str) -> list[float]:
        """Return a measure, one number per seed."""
        return [getattr(scores, measure) for scores in self.scores[method]]

    def mean(self, method: Method, measure: str) -> float:
        """Return a measure's mean over seeds."""
        return statistics.mean(self.values(method, measure))

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON; what cannot be scored is null."""

    def method_dict(self, method: Method) -> dict[str, Any]:
        """Return all measures of a method, and their means, for JSON."""
        measures = {measure: self.values(method, measure) for measure in self.MEASURES}
        return {**measures, "mean": {measure: self.mean(method, measure) for measure in self.MEASURES}}


class ScoredView(NamedTuple):
    """What the fields and all contenders make of every stride-th pixel of a view."""

    rows: Int[Tensor, "height"]
    cols: Int[Tensor, "width"]
    rgb: Float[Tensor, "height width 3"]
    rgb_unshaped: Float[Tensor, "height width 3"] | None
    scores: dict[Key, Float[Tensor, "height width labels"]]

    def of(self, picture: Tensor) -> Tensor:
        """Return the scored pixels of a picture of the whole view."""
        return picture[self.rows[:, None], self.cols[None, :]]


def score_view(
    fields: TrainedFields,
    fitted: Mapping[Key, Fitted],
    split: TrainOrEval,
    image: int,
    size: tuple[int, int],
    stride: int,
) -> ScoredView:
    """Render a view once, and let all contenders score its pixels.

    Args:
        fields: what is rendered.
        fitted: who competes.
        split: that the image is of.
        image: its place there.
        size: its (height, width).
        stride: scores every stride-th pixel of every stride-th row, at their own centres; 1 is all.
    """
    rows, cols = (torch.arange(stride // 2, side, stride) for side in size)
    pixels = torch.cartesian_prod(torch.tensor([image]), rows, cols)
    found: dict[Key, list[Tensor]] = {key: [] for key in fitted}
    colours: list[Tensor] = []
    unshaped: list[Tensor] = []
    for part in pixels.split(fields.shaped.model.rays_at_once):
        seen = fields.look(split, part)
        colours.append(seen.shaped.outputs["rgb"].cpu())
        if seen.unshaped is not None:
            unshaped.append(seen.unshaped.outputs["rgb"].cpu())
        for key, contender in fitted.items():
            found[key].append(contender.scores(seen).detach().cpu())

    def whole(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).view(len(rows), len(cols), -1)

    scores = {key: whole(parts) for key, parts in found.items()}
    return ScoredView(rows, cols, whole(colours), whole(unshaped) if unshaped else None, scores)


def decide(fitted: Fitted, scores: Float[Tensor, "height width labels"]) -> Int[Tensor, "height width"]:
    """Return the label of each pixel of a view, by position."""
    return scores.argmax(-1) if fitted.whole_view is None else fitted.whole_view(scores)


def evenly_spread(count: int, total: int) -> set[int]:
    """Return `count` of the numbers 0..total−1, the first and the last among them; fewer where there are fewer."""
    return {round(i * (total - 1) / max(count - 1, 1)) for i in range(count)}
