"""The teacher's features distilled into a 3D field of their own (DFF), then nearest prototypes."""

from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, TrainedFields, ViewPixels
from jacobinerf_ns.evaluation.rivals.nearest import fit_nearest
from jacobinerf_ns.tasks.feature_field.training import distil


def fit(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit prototypes to the distilled features of the labelled pixels; a run is distilled once for all exercises."""
    feature_field = fields.once(distil)

    def look(seen: ViewPixels) -> Float[Tensor, "rays features"]:
        return feature_field.rendered(seen.shaped)

    return fit_nearest(look(fields.look(exercise.split, exercise.pixels)), exercise, look)
