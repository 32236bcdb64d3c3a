"""Outputs of whole views: the model's own, and those of all labels, from as few field queries as there can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components import renderers
from torch import Tensor

from jacobinerf_ns.core.propagation import decide_view
from jacobinerf_ns.labels.edits import edited_colour
from jacobinerf_ns.labels.responses import LabelSnapshot, needs_samples, nothing_to_show, pictures, responses
from jacobinerf_ns.labels.traces import Piece
from jacobinerf_ns.labels.views import BETWEEN_CHUNKS, SCREEN, KeptView, Screen, ViewReport, shares_of

if TYPE_CHECKING:
    from jacobinerf_ns.model import JacobiNeRFModel

_RESPONSES, _EDITED = "responses", "edited"


@torch.no_grad()
def render_view(model: JacobiNeRFModel, rays: RayBundle, snapshot: LabelSnapshot | None) -> dict[str, Tensor]:
    """All outputs of a view [height width], on the rays' device, from one snapshot of the labels.

    A view that a screen showed before, of the same weights, is not asked of the field again.
    """
    screen = SCREEN.get()
    edits = snapshot is not None and bool(snapshot.edits) and (screen is None or screen.shows(_EDITED))
    samples = edits or (snapshot is not None and needs_samples(snapshot.config))
    view = None if screen is None else screen.kept.view(rays, _setting(model))
    flat, size, queried = rays.flatten(), model.config.eval_num_rays_per_chunk, 0
    parts: list[dict[str, Tensor]] = []
    go_on = BETWEEN_CHUNKS.get()
    for index, start in enumerate(range(0, len(flat), size)):
        piece = None if view is None else view.pieces.get(index)
        if piece is None or (samples and piece.samples is None):
            piece = _query(model, flat[start : start + size], screen, view, index, samples)
            queried += min(size, len(flat) - start)
        outputs = dict(piece.outputs)
        if snapshot is not None and snapshot.labels:
            outputs[_RESPONSES] = responses(piece, snapshot)
        if edits:
            assert snapshot is not None
            assert piece.samples is not None
            part = flat[start : start + size].to(model.device)
            outputs[_EDITED] = edited_colour(model.trace, part, piece.samples, snapshot)
        parts.append(outputs)
        go_on()
    return _whole(parts, rays, snapshot, screen, queried)


def _query(
    model: JacobiNeRFModel, rays: RayBundle, screen: Screen | None, view: KeptView | None, index: int, samples: bool
) -> Piece:
    piece = Piece(model.trace(rays.to(model.device)))
    if screen is not None and view is not None:
        screen.kept.keep(view, index, piece if samples else piece.light())
    return piece


def _whole(
    parts: list[dict[str, Tensor]], rays: RayBundle, snapshot: LabelSnapshot | None, screen: Screen | None, queried: int
) -> dict[str, Tensor]:
    shape, device = rays.origins.shape[:2], rays.origins.device
    whole = {
        name: torch.cat([part[name] for part in parts]).view(*shape, -1).to(device)
        for name, value in parts[0].items()
        if isinstance(value, Tensor)
    }
    rgb, found, shares = whole["rgb"], whole.pop(_RESPONSES, None), {}
    if snapshot is None or found is None:
        shown = nothing_to_show(rgb)
    else:
        shown = {**pictures(rgb, found, decide_view(found, snapshot.config), snapshot), _EDITED: rgb}
        shares = shares_of(found, snapshot)
    if screen is not None:
        screen.queried += queried
        screen.seen(ViewReport(snapshot, dict(shares), queried))
    # The viewer starts with the first output: colours.
    return {**whole, **shown, **({_EDITED: whole[_EDITED]} if _EDITED in whole else {})}


def _setting(model: JacobiNeRFModel) -> tuple:
    override = renderers.BACKGROUND_COLOR_OVERRIDE
    colour = None if override is None else tuple(override.tolist())
    return model.weights_version, colour, model.config.eval_num_rays_per_chunk
