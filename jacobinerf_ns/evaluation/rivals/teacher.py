"""The teacher's features of the photographs, by nearest prototype in 2D: it sees every photograph that it labels."""

from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, TrainedFields
from jacobinerf_ns.evaluation.rivals.nearest import fit_nearest


def fit(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit prototypes to the teacher's features of the labelled pixels."""
    vectors = fields.teacher_store(exercise.split).sample(exercise.pixels)
    return fit_nearest(vectors, exercise, lambda seen: fields.teacher_store(seen.split).sample(seen.pixels))
