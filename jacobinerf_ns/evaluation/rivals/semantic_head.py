"""A semantic head on the frozen geometry, trained with cross-entropy on the labelled pixels (Semantic-NeRF)."""

from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, Scene
from jacobinerf_ns.tasks.feature_field.training import train_semantic_head


def fit(scene: Scene, exercise: Exercise) -> Fitted:
    """Fit a head to the labelled pixels."""
    sight = scene.look(exercise.split, exercise.pixels)
    head = train_semantic_head(scene.shaped, sight.rays, exercise.positions, len(exercise.ids))
    return Fitted(lambda sight: head.rendered(sight.traced))
