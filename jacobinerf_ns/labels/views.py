"""Views on a screen: what is kept of them, so that labels of an unmoved camera change without another field query."""

from collections.abc import Callable, Hashable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from jacobinerf_ns.labels.responses import LabelSnapshot
from jacobinerf_ns.labels.traces import Piece

KEPT_BYTES = 3 << 30
"""Memory of all kept views together. Vectors of 320x240 rays take 0.3 GB in `jacobinerf-lite`, their samples, which
only edits and the paper's responses need, 2 GB."""
DEVICE_SHARE = 4
"""One part in so many of a GPU's free memory is the most that kept views take there."""
KEPT_VIEWS = 8
"""Views that are kept: the large and the small frame of a few browser tabs."""


class ViewReport(NamedTuple):
    """What a frame on the screen shows."""

    snapshot: LabelSnapshot | None
    shares: dict[int, float]
    """Share (0..1) of the pixels that answer to a label, by its id, as its selection would be."""
    queried: int
    """Rays for which the field was asked; 0 where all were kept."""


@dataclass(eq=False)
class KeptView:
    """The pieces of one view that are rendered so far."""

    origins: Tensor
    directions: Tensor
    bounds: tuple[Tensor | None, Tensor | None]
    """Near and far of each ray, where a crop box sets them."""
    setting: Hashable
    """What else the picture depends on: the weights, a background colour."""
    pieces: dict[int, Piece] = field(default_factory=dict)
    """By position of their chunk of rays."""

    def shows(self, rays: RayBundle, setting: Hashable) -> bool:
        """Whether this is the view of these rays."""
        return (
            self.setting == setting
            and self.origins.shape == rays.origins.shape
            and torch.equal(self.directions, rays.directions)
            and torch.equal(self.origins, rays.origins)
            and all(
                ours is theirs or (ours is not None and theirs is not None and torch.equal(ours, theirs))
                for ours, theirs in zip(self.bounds, (rays.nears, rays.fars), strict=True)
            )
        )

    @property
    def nbytes(self) -> int:
        """Memory of the pieces."""
        return sum(piece.nbytes for piece in self.pieces.values())


class KeptViews:
    """The last views, within a budget of memory. A render that is interrupted leaves its pieces, and goes on there."""

    def __init__(self, budget: int = KEPT_BYTES) -> None:
        """`budget` in bytes."""
        self._budget = budget
        self._views: list[KeptView] = []

    def view(self, rays: RayBundle, setting: Hashable) -> KeptView:
        """The kept view of these rays, or a new, empty one; views of other weights are forgotten."""
        same = [view for view in self._views if view.setting == setting]
        found = next((view for view in same if view.shows(rays, setting)), None)
        if found is None:
            found = KeptView(rays.origins, rays.directions, (rays.nears, rays.fars), setting)
        self._views = [found, *(view for view in same if view is not found)][:KEPT_VIEWS]
        return found

    def keep(self, view: KeptView, index: int, piece: Piece) -> None:
        """Adds a piece; old views make room for it, then samples do, and what still has no place is not kept."""
        for kept in (piece.compact, piece.light):
            candidate = kept()
            if self._make_room(view, candidate.nbytes):
                view.pieces[index] = candidate
                return

    def _make_room(self, view: KeptView, size: int) -> bool:
        while sum(kept.nbytes for kept in self._views) + size > self._budget:
            if self._views[-1] is view:
                return False
            self._views.pop()
        return True


@dataclass(eq=False)
class Screen:
    """A viewer that frames are rendered for."""

    kept: KeptViews
    shows: Callable[[str], bool]
    """Whether an output is looked at: what costs another field query is made only then."""
    seen: Callable[[ViewReport], None]
    """Told of every frame, in the thread that renders it."""
    queried: int = 0
    """Rays for which the field was asked so far."""


SCREEN: ContextVar[Screen | None] = ContextVar("screen", default=None)
"""The screen that this thread renders for; none in commands and in evaluation."""


def _go_on() -> None:
    """Nobody asks this thread to stop."""


BETWEEN_CHUNKS: ContextVar[Callable[[], None]] = ContextVar("between_chunks", default=_go_on)
"""Called in this thread after each chunk of a view; raises where nobody waits for the view any more."""


def kept_bytes(device: torch.device) -> int:
    """Memory for kept views on a device, in bytes: never so much of a GPU that training would miss it."""
    if device.type == "cpu":
        return KEPT_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return min(KEPT_BYTES, free // DEVICE_SHARE)


def shares_of(found: Float[Tensor, "height width labels"], snapshot: LabelSnapshot) -> Mapping[int, float]:
    """Share of a view's pixels that each label would select: its response is the largest, and above the threshold."""
    best, position = found.flatten(0, 1).max(-1)
    chosen = position[best >= snapshot.config.threshold]
    counts = torch.bincount(chosen, minlength=len(snapshot.labels)).tolist()
    return {label.id: count / len(best) for label, count in zip(snapshot.labels, counts, strict=True)}
