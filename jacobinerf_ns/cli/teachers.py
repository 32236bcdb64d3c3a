"""Teachers that commands on a trained run can be given at their end, and the run's own, which is the default."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from jacobinerf_ns.features.clip import ClipConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig

if TYPE_CHECKING:
    from jacobinerf_ns.features.words import TextTeacher
    from jacobinerf_ns.run.opened import Run


@dataclass
class OwnTeacher:
    """The teacher that the run was trained with."""


Speaker = tyro.conf.OmitSubcommandPrefixes[
    Annotated[OwnTeacher, tyro.conf.subcommand("own", prefix_name=False)]
    | Annotated[ClipConfig, tyro.conf.subcommand("clip", prefix_name=False)]
    | Annotated[PrecomputedConfig, tyro.conf.subcommand("precomputed", prefix_name=False)]
    | Annotated[OracleConfig, tyro.conf.subcommand("oracle", prefix_name=False)]
]
"""Teachers that may know words."""


def set_up(teacher: object, run: "Run") -> "TextTeacher | None":
    """Return the teacher on the run's device; None where it is the run's own.

    Raises:
        UserError: it knows no words, or cannot be had.
    """
    from jacobinerf_ns.features.words import text_teacher

    if isinstance(teacher, OwnTeacher):
        return None
    assert isinstance(teacher, ClipConfig | PrecomputedConfig | OracleConfig)
    return text_teacher(teacher.setup(device=run.pipeline.model.device))
