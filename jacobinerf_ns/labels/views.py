"""Whole views: the field's own outputs and those of all labels, from as few field queries as there can be.

What a screen has shown is kept, so that labels of an unmoved camera change without another query.
"""

from collections.abc import Callable, Hashable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components import renderers
from torch import Tensor

from jacobinerf_ns.labels.edits import edited_colour
from jacobinerf_ns.labels.memory import free_bytes
from jacobinerf_ns.labels.outputs import nothing_to_show, outlined, pictures
from jacobinerf_ns.labels.responses import answers, needs_samples, relevancies
from jacobinerf_ns.labels.snapshot import Answers, LabelSnapshot, LabelView
from jacobinerf_ns.labels.tracer import Rows, Tracer, trace_all
from jacobinerf_ns.labels.traces import Piece, Traced

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

    def __init__(self, budget: int = KEPT_BYTES, device: torch.device | None = None) -> None:
        """Keep at most `budget` bytes, and of a `device` no more than a part of what is free there."""
        self._budget, self._device = budget, device
        self._views: list[KeptView] = []

    def view(self, rays: RayBundle, setting: Hashable) -> KeptView:
        """Return the kept view of these rays, or a new, empty one; views of other weights are forgotten."""
        same = [view for view in self._views if view.setting == setting]
        found = next((view for view in same if view.shows(rays, setting)), None)
        if found is None:
            found = KeptView(rays.origins, rays.directions, (rays.nears, rays.fars), setting)
        self._views = [found, *(view for view in same if view is not found)][:KEPT_VIEWS]
        return found

    def keep(self, view: KeptView, index: int, piece: Piece) -> None:
        """Add a piece; old views make room for it, then samples do, and what still has no place is not kept."""
        for kept in (piece.compact, piece.light):
            candidate = kept()
            if self._make_room(view, candidate.nbytes):
                view.pieces[index] = candidate
                return

    def _make_room(self, view: KeptView, size: int) -> bool:
        held = sum(kept.nbytes for kept in self._views)
        # Asked whenever something is kept: training may have begun since, and taken what was free.
        allowed = self._budget if self._device is None else min(self._budget, kept_bytes(self._device, held))
        while held + size > allowed:
            if self._views[-1] is view:
                return False
            held -= self._views.pop().nbytes
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


def kept_bytes(device: torch.device, held: int = 0) -> int:
    """Memory for kept views on a device, in bytes: never so much of a GPU that training would miss it.

    Args:
        device: where they are.
        held: bytes of those that are kept already, which are not free and could be.
    """
    free = free_bytes(device)
    return KEPT_BYTES if free is None else min(KEPT_BYTES, (free + held) // DEVICE_SHARE)


def shares_of(found: Answers, snapshot: LabelSnapshot) -> Mapping[int, float]:
    """Share of a view's pixels that each label would select: its response is the largest, and above its threshold."""
    position = found.responses.flatten(0, -2).argmax(-1)
    held = found.connected.flatten(0, -2).gather(-1, position[:, None])[:, 0]
    chosen = position[held >= held.new_tensor(snapshot.thresholds())[position]]
    counts = torch.bincount(chosen, minlength=len(snapshot.labels)).tolist()
    return {label.id: count / len(held) for label, count in zip(snapshot.labels, counts, strict=True)}


_RESPONSES, _CONNECTED, _RELEVANCY, _EDITED = "responses", "connected", "relevancy", "edited"


@torch.no_grad()
def render_view(tracer: Tracer, rays: RayBundle, snapshot: LabelSnapshot | None) -> dict[str, Tensor]:
    """All outputs of a view [height width], on the rays' device, from one snapshot of the labels.

    A view that a screen showed before, of the same weights, is not asked of the field again.
    """
    screen = SCREEN.get()
    edits = snapshot is not None and bool(snapshot.edits) and (screen is None or screen.shows(_EDITED))
    samples = edits or (snapshot is not None and needs_samples(snapshot.config))
    view = None if screen is None else screen.kept.view(rays, _setting(tracer))
    flat, size, queried = rays.flatten(), tracer.rays_at_once, 0
    rows = Rows(len(flat))
    go_on = BETWEEN_CHUNKS.get()
    for index, start in enumerate(range(0, len(flat), size)):
        piece = None if view is None else view.pieces.get(index)
        if piece is None or (samples and piece.samples is None):
            piece = _query(tracer, flat[start : start + size], screen, view, index, samples)
            queried += min(size, len(flat) - start)
        outputs = dict(piece.outputs)
        if snapshot is not None and snapshot.labels:
            outputs[_RESPONSES], outputs[_CONNECTED] = answers(piece, snapshot)
            shown = screen is None or screen.shows(_RELEVANCY)
            outputs[_RELEVANCY] = relevancies(piece, snapshot.relevancy if shown else None)
        if edits:
            assert snapshot is not None
            assert piece.samples is not None
            part = flat[start : start + size].to(tracer.device)
            outputs[_EDITED] = edited_colour(tracer.trace, part, piece.samples, snapshot)
        rows.put(start, {name: value for name, value in outputs.items() if isinstance(value, Tensor)})
        go_on()
    return _whole(rows.columns, rays, snapshot, screen, queried)


def _query(
    tracer: Tracer, rays: RayBundle, screen: Screen | None, view: KeptView | None, index: int, samples: bool
) -> Piece:
    piece = Piece(tracer.trace(rays.to(tracer.device)))
    if screen is not None and view is not None:
        screen.kept.keep(view, index, piece if samples else piece.light())
    return piece


def _whole(
    columns: Mapping[str, Tensor], rays: RayBundle, snapshot: LabelSnapshot | None, screen: Screen | None, queried: int
) -> dict[str, Tensor]:
    shape, device = rays.origins.shape[:2], rays.origins.device
    whole = {name: value.view(*shape, -1).to(device) for name, value in columns.items()}
    rgb, shares = whole["rgb"], {}
    if snapshot is None or _RESPONSES not in whole:
        shown = nothing_to_show(rgb)
    else:
        found = Answers(whole.pop(_RESPONSES), whole.pop(_CONNECTED))
        shown = outlined(pictures(rgb, found, snapshot.decide_view(found), snapshot), snapshot)
        shown |= {_RELEVANCY: whole.pop(_RELEVANCY), _EDITED: rgb}
        shares = shares_of(found, snapshot)
    if screen is not None:
        screen.queried += queried
        screen.seen(ViewReport(snapshot, dict(shares), queried))
    # The viewer starts with the first output: colours.
    return {**whole, **shown, **({_EDITED: whole[_EDITED]} if _EDITED in whole else {})}


def _setting(tracer: Tracer) -> tuple:
    override = renderers.BACKGROUND_COLOR_OVERRIDE
    colour = None if override is None else tuple(override.tolist())
    return tracer.weights_version, colour, tracer.rays_at_once


@torch.no_grad()
def label_view(tracer: Tracer, view: RayBundle, snapshot: LabelSnapshot) -> LabelView:
    """Render a view [height width] and its labels as numbers, the same that the outputs show; nothing is kept."""

    def pick(traced: Traced) -> tuple[Tensor, ...]:
        return traced.outputs["rgb"], traced.outputs["depth"], *answers(Piece(traced), snapshot)

    picked = trace_all(tracer, view.flatten(), pick)
    rgb, depth, found, held = (part.view(*view.origins.shape[:2], -1) for part in picked)
    return LabelView(rgb, depth, found, held, snapshot.decide_view(Answers(found, held)))
