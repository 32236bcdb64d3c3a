"""Options that all dataparsers have, within what can be: a scale of 0 would train to the end, and come to nothing."""

import math
from typing import Any

from jacobinerf_ns.errors import UserError

_SCALES = ("scale_factor", "scene_scale", "depth_unit_scale_factor")
_LEAST, _MOST = 1e-9, 1e9


def check_scales(config: Any) -> None:
    """Check the scales of a dataparser's config.

    Raises:
        UserError: one is not positive and finite.
    """
    for name in _SCALES:
        value = getattr(config, name)
        if not (math.isfinite(value) and _LEAST <= value <= _MOST):
            raise UserError(f"--{name.replace('_', '-')} {value:g}: expected a number of {_LEAST:g}..{_MOST:g}")


def check_splits(config: Any) -> None:
    """Check how nerfstudio's own parser is asked to split a capture.

    Raises:
        UserError: a share or an interval leaves no frame in a split.
    """
    if config.eval_mode == "fraction" and not 0 < config.train_split_fraction <= 1:
        raise UserError(f"--train-split-fraction {config.train_split_fraction:g}: expected more than 0, at most 1")
    if config.eval_mode == "interval" and config.eval_interval < 1:
        raise UserError(f"--eval-interval {config.eval_interval}: expected at least 1")
