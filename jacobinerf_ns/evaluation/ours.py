"""Ours in its variants: exactly what a user's annotation file with the same seeds would show."""

from jacobinerf_ns.annotations.schema import ViewSettings
from jacobinerf_ns.core.propagation import JNERF_PLUS, PAPER, PropagationConfig, decide_paper
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, Scene, Scores, Sight
from jacobinerf_ns.labels.keeper import FixedAnnotations, LabelKeeper
from jacobinerf_ns.labels.responses import LabelSnapshot, responses
from jacobinerf_ns.labels.traces import Piece


def fit_2d(scene: Scene, exercise: Exercise) -> Fitted:
    """Fit responses of rendered Jacobians."""
    return _fit(scene, exercise, PropagationConfig())


def fit_3d(scene: Scene, exercise: Exercise) -> Fitted:
    """Fit responses of samples, which are then rendered."""
    return _fit(scene, exercise, PropagationConfig(space="3d", prototypes="kmeans"))


def fit_plus(scene: Scene, exercise: Exercise) -> Fitted:
    """Fit J-NeRF+."""
    return _fit(scene, exercise, JNERF_PLUS)


def fit_paper(scene: Scene, exercise: Exercise) -> Fitted:
    """Fit what the released code does; it decides on whole views."""
    fitted = _fit(scene, exercise, PAPER)
    return fitted._replace(whole_view=lambda found: decide_paper(found).labels - 1)


def fit_unshaped(scene: Scene, exercise: Exercise) -> Fitted:
    """Fit responses of rendered Jacobians of the field without shaping."""
    return _fit(scene, exercise, PropagationConfig(), unshaped=True)


def fit_unshaped_plus(scene: Scene, exercise: Exercise) -> Fitted:
    """Fit J-NeRF+ on the field without shaping."""
    return _fit(scene, exercise, JNERF_PLUS, unshaped=True)


def _fit(scene: Scene, exercise: Exercise, config: PropagationConfig, unshaped: bool = False) -> Fitted:
    snapshot = _snapshot(scene.plain_keeper if unshaped else scene.keeper, exercise, config)

    def scores(sight: Sight) -> Scores:
        traced = sight.plain if unshaped else sight.traced
        assert traced is not None
        return responses(Piece(traced), snapshot)

    return Fitted(scores)


def _snapshot(keeper: LabelKeeper, exercise: Exercise, config: PropagationConfig) -> LabelSnapshot:
    annotations = exercise.annotations.model_copy(update={"view": ViewSettings(propagation=config)})
    keeper.store = FixedAnnotations(annotations, exercise.folder)
    keeper.needs_surface = False
    snapshot = keeper.current()
    assert snapshot is not None
    return snapshot
