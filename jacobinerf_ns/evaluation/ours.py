"""Ours in its variants: exactly what a user's annotation file with the same seeds would show."""

from jacobinerf_ns.annotations.schema import ViewSettings
from jacobinerf_ns.core.propagation import JNERF_PLUS, PAPER_PROPAGATION, PropagationConfig, decide_paper
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, LabelScores, TrainedFields, ViewPixels
from jacobinerf_ns.labels.responses import answers
from jacobinerf_ns.labels.traces import Piece


def fit_2d(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit responses of rendered Jacobians."""
    return _fit(fields, exercise, PropagationConfig())


def fit_3d(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit responses of samples, which are then rendered."""
    return _fit(fields, exercise, PropagationConfig(space="3d", prototypes="kmeans"))


def fit_plus(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit J-NeRF+."""
    return _fit(fields, exercise, JNERF_PLUS)


def fit_paper(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit what the released code does; it decides on whole views."""
    fitted = _fit(fields, exercise, PAPER_PROPAGATION)
    return fitted._replace(whole_view=lambda found: decide_paper(found).labels - 1)


def fit_unshaped(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit responses of rendered Jacobians of the field without shaping."""
    return _fit(fields, exercise, PropagationConfig(), unshaped=True)


def fit_unshaped_plus(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit J-NeRF+ on the field without shaping."""
    return _fit(fields, exercise, JNERF_PLUS, unshaped=True)


def _fit(fields: TrainedFields, exercise: Exercise, config: PropagationConfig, unshaped: bool = False) -> Fitted:
    annotations = exercise.annotations.model_copy(update={"view": ViewSettings(propagation=config)})
    maker = fields.unshaped_labels if unshaped else fields.labels
    snapshot = maker.snapshot_of(annotations, exercise.folder, needs_surface=False)
    assert snapshot is not None

    def scores(seen: ViewPixels) -> LabelScores:
        traced = seen.unshaped if unshaped else seen.shaped
        assert traced is not None
        found = answers(Piece(traced), snapshot)
        # One label is scored as the selection that a click makes, several by which of them a pixel resonates with most.
        return found.connected if snapshot.alone else found.responses

    return Fitted(scores, own_threshold=snapshot.thresholds()[0])
