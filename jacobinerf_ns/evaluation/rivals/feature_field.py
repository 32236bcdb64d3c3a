"""The teacher's features distilled into a 3D field of their own (DFF), then nearest prototypes."""

from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, Scene, Sight
from jacobinerf_ns.evaluation.rivals.nearest import fit_nearest
from jacobinerf_ns.tasks.feature_field.training import distil


def fit(scene: Scene, exercise: Exercise) -> Fitted:
    """Fit prototypes to the distilled features of the labelled pixels; a run is distilled once for all exercises."""
    feature_field = scene.once(distil)

    def look(sight: Sight) -> Float[Tensor, "rays features"]:
        return feature_field.rendered(sight.traced)

    return fit_nearest(look(scene.look(exercise.split, exercise.pixels)), exercise, look)
