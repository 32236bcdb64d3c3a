"""Settings of propagation that hold for one use of a run's annotations, in the place of the file's."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jacobinerf_ns.annotations.schema import ViewSettings
from jacobinerf_ns.core.propagation import PropagationConfig
from jacobinerf_ns.errors import UserError, plain_errors


def adjusted(config: PropagationConfig, given: Mapping[str, Any]) -> PropagationConfig:
    """Put settings in the place of a file's own.

    Args:
        config: the file's.
        given: settings by name; those that are None stay as the file has them.

    Raises:
        UserError: a setting is out of range, or does nothing with the decision that the file asks for.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    if "threshold" in wanted:
        # Who names a threshold means that one, and not what a slider made of another.
        wanted = {"strictness": 0.0, **wanted}
    if "void_below" in wanted and config.decision == "paper":
        raise UserError("void_below does nothing where the annotations ask for the decision 'paper': leave it out")
    with plain_errors():
        # As plain values: pydantic takes an object of the class as it is, and asks nothing of what is in it.
        return ViewSettings.model_validate({"propagation": {**asdict(config), **wanted}}).propagation
