"""Masks as polygons that hold exactly the same pixels, for tools that read no masks."""

import cv2
import numpy as np
from jaxtyping import Bool, Float

_FINER = 2


def outlines(mask: Bool[np.ndarray, "height width"]) -> list[Float[np.ndarray, "points 2"]]:
    """Return the polygons of a mask's 8-connected components, as (x, y) from the image's corner in pixels.

    The outline is traced on a grid of half pixels, so it runs a quarter of a pixel off the pixels' edges: no pixel's
    centre changes sides, and filling it gives the mask back. COCO's polygons know no holes; a hole is joined to its
    outline by a line there and back, which encloses nothing under any filling rule.
    """
    fine = mask.astype(np.uint8).repeat(_FINER, axis=0).repeat(_FINER, axis=1)
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if hierarchy is None:
        return []
    rings = [(contour[:, 0].astype(np.float64) + 0.5) / _FINER for contour in contours]
    polygons = []
    for index, (_, _, hole, parent) in enumerate(hierarchy[0].tolist()):
        if parent >= 0:
            continue
        parts = [_closed(rings[index])] if hole >= 0 else [rings[index]]
        while hole >= 0:
            parts += [_closed(rings[hole]), rings[index][:1]]
            hole = hierarchy[0][hole][0]
        polygons.append(np.concatenate(parts))
    return polygons


def _closed(ring: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "points_and_one 2"]:
    return np.concatenate([ring, ring[:1]])
