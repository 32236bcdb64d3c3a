"""A line around what is selected, as tools for masks draw it. It needs neighbours: whole views have it, rays do not.

Letters:
    M  [height width]  what is selected
    r  pixels          radius of what is smoothed away, and width of the line
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

LINE_SHARE = 1 / 250
"""Width of the line as a share of a view's shorter side: a pixel at 264x198, which a page enlarges, four at 1080p."""
WHITE = 1.0


def line_width(height: int, width: int) -> int:
    """Return the width of the line in a view of this size, in pixels."""
    return max(1, round(LINE_SHARE * min(height, width)))


def outline(selected: Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Return the pixels of a line just outside of M, where they are neighbours of most of it.

    M is smoothed before: a pixel counts as most of the (2 r + 1)² around it do, so single pixels and frayed edges get
    no line of their own. Where M leaves the view there is no line.
    """
    radius = line_width(*selected.shape)
    smooth = _window(selected.float(), radius, F.avg_pool2d) > 0.5
    return (_window(smooth.float(), radius, F.max_pool2d) > 0) & ~smooth & ~selected


def draw_outline(
    picture: Float[Tensor, "height width 3"], selected: Bool[Tensor, "height width"]
) -> Float[Tensor, "height width 3"]:
    """Return a picture with a white line around what is selected."""
    return torch.where(outline(selected)[..., None], WHITE, picture)


def _window(values: Tensor, radius: int, pool: Callable[..., Tensor]) -> Tensor:
    padded = F.pad(values[None, None], (radius,) * 4, mode="replicate")
    return pool(padded, 2 * radius + 1, stride=1)[0, 0]
