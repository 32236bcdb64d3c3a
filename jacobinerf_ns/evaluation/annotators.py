"""The simulated annotator: which pixels a person would have labelled, drawn from the ground truth with a seed.

Sparse: one click per class in one view. Clicks: n per class there. Dense: that view labelled whole (paper, section 5).
Instances: one click per instance. The view is the training view with most classes (or instances): where a sensible
annotator would click.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.labels.truth import Truth

Protocol = Literal["sparse", "dense", "clicks", "instances"]


class LabelledPixels(NamedTuple):
    """Pixels of one training image with their true ids."""

    image: int
    """Position of the image in the training set."""
    rows: Int[Tensor, "pixels"]
    cols: Int[Tensor, "pixels"]
    ids: Int[Tensor, "pixels"]


@dataclass(frozen=True)
class Annotator:
    """What the simulated person does."""

    protocol: Protocol = "sparse"
    clicks: int = 1
    """Clicks per class, for `clicks`."""

    @property
    def truth(self) -> Truth:
        """Which label maps it looks at."""
        return "instances" if self.protocol == "instances" else "semantics"

    def label(self, maps: Sequence[Int[Tensor, "height width"]], seed: int) -> LabelledPixels:
        """Return the pixels it labels, from the truth of all training views. Void is never labelled."""
        place = view_with_most_ids(maps)
        truth = maps[place]
        if self.protocol == "dense":
            rows, cols = (truth != VOID_ID).nonzero(as_tuple=True)
        else:
            rows, cols = draw_pixels(truth, self.clicks if self.protocol == "clicks" else 1, seed)
        return LabelledPixels(place, rows, cols, truth[rows, cols])


def view_with_most_ids(maps: Sequence[Int[Tensor, "height width"]]) -> int:
    """Return the place of the view that shows most classes or instances; the first of equals."""
    counts = [len(view[view != VOID_ID].unique()) for view in maps]
    if max(counts) == 0:
        raise UserError("every label map of the training views is void: nothing can be labelled")
    return counts.index(max(counts))


def draw_pixels(
    truth: Int[Tensor, "height width"], count: int, seed: int
) -> tuple[Int[Tensor, "pixels"], Int[Tensor, "pixels"]]:
    """Draw (rows, cols) of `count` pixels of every id of a view, evenly, and fewer where an id has fewer."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for identity in truth[truth != VOID_ID].unique().tolist():
        pixels = (truth == identity).nonzero()
        drawn.append(pixels[torch.randperm(len(pixels), generator=generator)[:count]])
    rows, cols = torch.cat(drawn).unbind(-1)
    return rows, cols
