"""Scores of a run's own labels on the held-out views, where the capture has ground truth: `ns-eval` shows them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Int
from rich.progress import track
from torch import Tensor

from jacobinerf_ns.core import metrics
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.labels.snapshot import LabelSnapshot


def scored_ids(snapshot: LabelSnapshot, classes: Mapping[int, str]) -> list[int]:
    """Return the class of each label, by its name; `VOID_ID` for labels that are no class."""
    ids = {name.strip().lower(): identity for identity, name in classes.items()}
    return [ids.get(label.name.strip().lower(), VOID_ID) for label in snapshot.labels]


def annotated_scores(
    known: Sequence[int],
    truth: Sequence[Int[Tensor, "height width"]],
    predicted: Callable[[int], Int[Tensor, "height width"]],
) -> dict[str, float]:
    """Score labels against the ground truth of views, pooled.

    One confusion matrix over all views: an average of per-view scores, which is what nerfstudio takes of other metrics,
    would reward views without a class.

    Args:
        known: class of each label (`scored_ids`).
        truth: label maps of the views.
        predicted: decided labels of a view, by its place among them.
    """
    lookup = torch.tensor([VOID_ID, *known])
    count = max(*(int(view.max()) for view in truth), *known) + 1
    confusion = torch.zeros(count, count, dtype=torch.long)
    for place, view in enumerate(track(truth, description="Scoring labels")):
        confusion += metrics.confusion_matrix(lookup[predicted(place).cpu()], view, count, VOID_ID)
    found = metrics.scores(confusion, sorted({identity for identity in known if identity != VOID_ID}))
    return {
        "miou": found.miou,
        "miou_labelled": found.miou_labelled,
        "total_accuracy": found.total_accuracy,
        "class_average_accuracy": found.class_average_accuracy,
    }
