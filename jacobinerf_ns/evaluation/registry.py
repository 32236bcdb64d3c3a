"""The contenders of an evaluation, by name: ours in its variants, and real rivals, on the same seeds, scene and views.

A contender is fitted to labelled pixels once, and then scores the pixels of any view. A new one is a file
`rivals/NAME.py` with `fit(fields, exercise) -> Fitted`, and a line in `CONTENDERS`. Its code is imported when it is
fitted: the command line knows all names without loading torch.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal, NamedTuple

from tyro.extras import literal_type_from_choices

if TYPE_CHECKING:
    from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, TrainedFields


class Contender(NamedTuple):
    """What is known of a contender before it is fitted."""

    title: str
    """What it is called in tables."""
    about: str
    """For the help of the command line."""
    code: str
    """Its `fit`, as module:function below this package."""
    needs: Literal["", "the teacher", "an unshaped run"] = ""
    """Beside the shaped run."""
    draws_batches: bool = False
    """It draws training batches, so the run has to be opened with its photos."""
    weighs_labels: bool = False
    """It chooses between labels without a threshold, so that a label alone would be everywhere."""


CONTENDERS = {
    "2d": Contender("ours, 2D", "ours: responses of pixels", "ours:fit_2d"),
    "3d": Contender("ours, 3D", "ours: responses of samples", "ours:fit_3d"),
    "plus": Contender("ours, J-NeRF+", "ours, refined and smoothed over the scene", "ours:fit_plus"),
    "network": Contender(
        "ours, aggregator network", "ours, by a network, for dense", "rivals.aggregator:fit", weighs_labels=True
    ),
    "paper": Contender("the paper's decision", "ours, by the paper's decision", "ours:fit_paper", weighs_labels=True),
    "unshaped": Contender("unshaped field", "2d without shaping", "ours:fit_unshaped", "an unshaped run"),
    "unshaped-plus": Contender(
        "unshaped field, J-NeRF+", "plus without shaping", "ours:fit_unshaped_plus", "an unshaped run"
    ),
    "teacher": Contender("teacher, 2D nearest", "its features in 2D", "rivals.teacher:fit", "the teacher"),
    "dff": Contender(
        "DFF, distilled features",
        "its features distilled",
        "rivals.feature_field:fit",
        "the teacher",
        draws_batches=True,
    ),
    "semantic-nerf": Contender("Semantic-NeRF head", "a semantic head", "rivals.semantic_head:fit", weighs_labels=True),
    "probe": Contender("linear probe", "a linear classifier", "rivals.linear_probe:fit", weighs_labels=True),
}

if TYPE_CHECKING:
    Method = str
else:
    Method = literal_type_from_choices(CONTENDERS)
    """Name of a contender; the command line's choices."""


def fit(method: Method, fields: "TrainedFields", exercise: "Exercise") -> "Fitted":
    """Fit a contender to labelled pixels.

    Raises:
        UserError: it lacks what it needs.
    """
    return resolve_name(f"{__package__}.{CONTENDERS[method].code}")(fields, exercise)


def needs_unshaped_run(method: Method) -> bool:
    """Return whether a contender looks at a field that was trained without shaping."""
    return CONTENDERS[method].needs == "an unshaped run"


def draws_batches(method: Method) -> bool:
    """Return whether a contender draws training batches from the run's photos."""
    return CONTENDERS[method].draws_batches


def methods_help() -> str:
    """Return what the command line says of its contenders."""
    known = [f"{name} ({one.about}{one.needs and f'; needs {one.needs}'})" for name, one in CONTENDERS.items()]
    return f"Who competes, on the same scene and seeds: {', '.join(known)}."
