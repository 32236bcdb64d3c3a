"""Run lengths of masks, as COCO counts them: down the columns, starting with the pixels outside."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

_FIRST, _LAST = 48, 111
"""Codes of the 64 letters that carry six bits each."""

_MAX_BITS = 60
"""Of a run; a longer one is damage."""


def mask_of_runs(counts: object, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Return the mask of COCO's `counts`, given as a list or as the compressed string.

    pycocotools takes runs that do not fill the image as they come, and what is left of the mask is whatever lay in
    memory; so this checks before it expands.

    Raises:
        ValueError: the counts are damaged, or do not fill the image.
    """
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, Sequence) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("counts are no list of whole numbers and no compressed string of them")
    if sum(runs) != height * width:
        raise ValueError(f"counts hold {sum(runs)} pixels, the image {height * width}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _decompressed(text: str) -> list[int]:
    """Return the run lengths of the string: five bits per letter, lowest first, the sixth says that more follow.

    From the fourth run on, what stands there is the difference to the run before the last.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        code = ord(letter) - _FIRST
        if not 0 <= code <= _LAST - _FIRST or shift > _MAX_BITS:
            raise ValueError(f"counts are no run lengths from letter {letter!r} on")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("counts end within a number")
    return runs
