"""Thresholds that find themselves: levels at which what a label selects of a scene hardly changes.

Letters (those of `propagation.py` apart):
    θ  threshold: what responds at least so much is selected
    n  [levels]    levels of one label, from part to whole: θ falls
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.core.propagation import COMMON_THRESHOLD

REACH = 0.12
"""Half of the width of response over which a level has to be stable."""
GRID = np.linspace(0.05, 0.95, 91)
"""Thresholds that are tried."""


class Plateaus(NamedTuple):
    """The levels that a label can be selected at."""

    levels: tuple[float, ...]
    """Their thresholds θ (0..1), from part to whole: each selects what the one before does, and more. At least one."""
    natural: int
    """Position of the one that a person most likely means."""

    def used(self, grow: int) -> int:
        """Return the position of the level so many steps larger than the natural one, or the last there is."""
        return min(max(self.natural + grow, 0), len(self.levels) - 1)

    def around(self, threshold: float) -> "Plateaus":
        """Return the same with a threshold that somebody chose as the natural level."""
        levels = sorted({*self.levels, threshold}, reverse=True)
        return Plateaus(tuple(levels), levels.index(threshold))

    def grown(self, grow: int, steps: int) -> int | None:
        """Return the `grow` of the level so many steps from that of `grow`; None where there is no such level."""
        position = self.used(grow) + steps
        return position - self.natural if 0 <= position < len(self.levels) else None


def moved(threshold: float, strictness: float) -> float:
    """Move a threshold by a share (−1..1) of its way: to 0, where all is selected, or to 1."""
    return threshold + strictness * (threshold if strictness < 0 else 1.0 - threshold)


def find_plateaus(responses: Float[Tensor, "pixels"]) -> Plateaus:
    """Return the levels of one label from its responses at random pixels of the scene."""
    found = np.sort(responses.double().numpy())

    def odds(threshold: np.ndarray) -> np.ndarray:
        inside = len(found) - np.searchsorted(found, threshold, "left")
        return np.log((inside + 1.0) / (len(found) - inside + 1.0))

    slope = odds(np.maximum(GRID - REACH, 0.0)) - odds(np.minimum(GRID + REACH, 1.0))
    if not len(found) or not slope.any():
        return Plateaus((COMMON_THRESHOLD,), 0)
    return Plateaus((float(GRID[slope.argmin()]),), 0)
