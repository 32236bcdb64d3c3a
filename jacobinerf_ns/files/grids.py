"""One picture at two sizes: which pixel of the one lies under the centre of a pixel of the other.

A copy leaves out what does not fill a pixel at the far edge: 1999 rows become 499 rows of 4, and 3 are left over. Where
one whole factor explains both sides, pixels are that factor apart, and not the slightly larger quotient of the sizes:
cameras are rescaled by exactly the factor. All arithmetic is in whole numbers, so that no centre on a border depends on
rounding. Sizes and pixels name their axes in the same order, whichever that is.
"""

import numpy as np
from jaxtyping import Int, Shaped

Size = tuple[int, int]
"""Pixels along both axes."""

ASPECT_TOLERANCE = 0.02
"""Largest relative difference of aspect ratios at which two sizes still count as one image, scaled."""


def pixels_under(pixels: Int[np.ndarray, "pixels 2"], size: Size, other: Size) -> Int[np.ndarray, "pixels 2"]:
    """Return the pixels of a picture of size `other` that the centres of pixels of its copy of `size` fall into."""
    shrink, grow = _whole_factor(size, other), _whole_factor(other, size)
    if shrink or grow:
        up, down = np.array([grow or 1]), np.array([shrink or 1])
    else:
        up, down = np.array(other), np.array(size)
    return np.minimum((2 * pixels + 1) * up // (2 * down), np.array(other) - 1)


def resample(values: Shaped[np.ndarray, "rows columns"], size: Size) -> Shaped[np.ndarray, "height width"]:
    """Return a picture at `size` (height, width): each pixel gets the value that its centre lies in."""
    (height, width), found = size, (values.shape[0], values.shape[1])
    steps = np.arange(max(size))
    pixels = np.stack([steps.clip(max=height - 1), steps.clip(max=width - 1)], axis=1)
    rows, columns = pixels_under(pixels, size, found).T
    return values[rows[:height, None], columns[None, :width]]


def is_scaled(size: Size, other: Size) -> bool:
    """Return whether two sizes may be those of one image: by a whole factor between them, or by their aspect ratios."""
    if _whole_factor(size, other) or _whole_factor(other, size):
        return True
    return abs(other[0] * size[1] / (other[1] * size[0]) - 1.0) <= ASPECT_TOLERANCE


def _whole_factor(large: Size, small: Size) -> int | None:
    """Return the k with `large` // k = `small` on both sides, if there is one."""
    factor = min(large[0] // small[0], large[1] // small[1])
    return factor if factor and (large[0] // factor, large[1] // factor) == tuple(small) else None
