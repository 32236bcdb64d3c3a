"""Points on the surfaces of chosen labels, sampled from a trained field through its training views.

Two passes. A coarse grid over every view finds the cells that show a label; then rays are drawn inside those cells
only, so that a part that covers a hundredth of the pixels costs little more than one that covers all. Everything is in
the scene frame and in scene units.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from jacobinerf_ns.core.propagation import decide_paper
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.labels.outputs import selected
from jacobinerf_ns.labels.responses import answers
from jacobinerf_ns.labels.seed_cache import SURFACE
from jacobinerf_ns.labels.snapshot import Answers, LabelSnapshot
from jacobinerf_ns.labels.tracer import trace_all
from jacobinerf_ns.labels.traces import Piece, Traced
from jacobinerf_ns.model import JacobiNeRFModel
from jacobinerf_ns.progress import progress_bar, track

GRIDS = (64, 128, 256)
"""Cells along a view's longer side; the next finer grid is laid where a label is not seen on the one before."""
RAYS_PER_POINT = 20
"""Rays after which sampling gives up, per wanted point: in cells that show a label most rays hit it."""
NOBODY = 0
"""Id of pixels that belong to none of the chosen labels."""


class Points(NamedTuple):
    """Surface points, scene frame."""

    positions: Float[Tensor, "points 3"]
    colours: Float[Tensor, "points 3"]
    """0..1."""
    directions: Float[Tensor, "points 3"]
    """Of the rays that saw them, unit length."""
    labels: Int[Tensor, "points"]
    """Ids of labels."""


class Sightings(NamedTuple):
    """Where the chosen labels are seen."""

    cells: Int[Tensor, "cells 3"]
    """(view, row, column)."""
    labels: Int[Tensor, "cells"]
    """Id of the label at a cell's middle; `NOBODY` in cells that only lie beside one that shows a label."""
    grids: Int[Tensor, "views 2"]
    """(rows, columns) of each view's grid."""
    strongest: Float[Tensor, "labels"]
    """Largest response to each label of the snapshot, anywhere that hangs together with its seeds."""


class _Queried(NamedTuple):
    """What rays see."""

    points: Float[Tensor, "rays 3"]
    colours: Float[Tensor, "rays 3"]
    responses: Float[Tensor, "rays labels"]
    connected: Float[Tensor, "rays labels"]
    solid: Bool[Tensor, "rays"]
    """The ray hits a surface."""


def find_labels(model: JacobiNeRFModel, cameras: Cameras, snapshot: LabelSnapshot, chosen: Sequence[int]) -> Sightings:
    """Return the cells of the views in which chosen labels are selected, and the cells around them.

    Args:
        model: in eval mode.
        cameras: of the training images.
        snapshot: the labels.
        chosen: positions of labels in the snapshot.

    Returns:
        What the first grid shows on which every chosen label is seen, else the finest one. The paper's decision is a
        rule on whole images, so there the grid is the image itself, and neighbouring cells do not count.
    """
    longest = int(torch.maximum(cameras.height, cameras.width).max())
    sides = (longest,) if snapshot.config.decision == "paper" else GRIDS
    for side in sides:
        sightings = _look(model, cameras, snapshot, chosen, side)
        unseen = {snapshot.labels[position].id for position in chosen} - set(sightings.labels.tolist())
        if not unseen or side >= longest:
            break
    return sightings


def sample_points(
    model: JacobiNeRFModel,
    cameras: Cameras,
    snapshot: LabelSnapshot,
    chosen: Sequence[int],
    sightings: Sightings,
    num_points: int,
) -> Points:
    """Return at most `num_points` points of the chosen labels, by rays drawn evenly from the cells that show them.

    The same points every time. Fewer where a label is so scarce that `RAYS_PER_POINT` rays for each point do not do.

    Raises:
        UserError: there are no cells, or no ray hits any of the labels.
    """
    generator, chunk = torch.Generator().manual_seed(0), model.config.eval_num_rays_per_chunk
    parts: list[Points] = []
    count, left = 0, RAYS_PER_POINT * num_points if len(sightings.cells) else 0
    with progress_bar("points") as progress:
        task = progress.add_task("Sampling", total=num_points)
        while count < num_points and left > 0:
            rays, cells = _draw_rays(cameras, sightings, min(chunk, left), generator)
            seen = _query(model, rays, snapshot)
            by_cell = snapshot.config.decision == "paper"
            labels = sightings.labels[cells].to(seen.solid.device) if by_cell else _members(seen, snapshot, chosen)
            keep = (labels != NOBODY) & seen.solid
            directions = rays.directions.to(seen.points)
            parts.append(Points(*(part[keep].cpu() for part in (seen.points, seen.colours, directions, labels))))
            count, left = count + len(parts[-1].labels), left - len(rays)
            progress.update(task, completed=min(count, num_points))
    if not count:
        raise UserError("no ray hits any of the labels")
    return Points(*(torch.cat(part)[:num_points] for part in zip(*parts, strict=True)))


def _look(
    model: JacobiNeRFModel, cameras: Cameras, snapshot: LabelSnapshot, chosen: Sequence[int], side: int
) -> Sightings:
    sizes = torch.cat([cameras.height, cameras.width], dim=-1).cpu()
    shares = (side / sizes.amax(-1, keepdim=True)).clamp(max=1.0)
    grids = (sizes * shares).round().long().clamp(min=1)
    cells, labels, strongest = [], [], torch.zeros(len(snapshot.labels))
    for view in track(range(len(cameras)), description="Looking for the labels"):
        rows, columns = grids[view].tolist()
        middles = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)) + 0.5
        seen = _query(model, _rays(cameras, torch.full((len(middles),), view), middles, grids), snapshot)
        found = _view_members(seen, snapshot, chosen, (rows, columns)).cpu()
        strongest = torch.maximum(strongest, seen.connected.amax(0).cpu())
        near = found != NOBODY
        if snapshot.config.decision != "paper":
            near = F.max_pool2d(near[None].float(), kernel_size=3, stride=1, padding=1)[0] > 0
        where = near.nonzero()
        cells.append(F.pad(where, (1, 0), value=view))
        labels.append(found[near])
    return Sightings(torch.cat(cells), torch.cat(labels), grids, strongest)


def _view_members(
    seen: _Queried, snapshot: LabelSnapshot, chosen: Sequence[int], size: tuple[int, int]
) -> Int[Tensor, "rows columns"]:
    """Return the ids of chosen labels in a whole view; `NOBODY` elsewhere and where nothing solid is."""
    labels = _members(seen, snapshot, chosen, size)
    return torch.where(seen.solid, labels, NOBODY).view(size)


def _members(
    seen: _Queried, snapshot: LabelSnapshot, chosen: Sequence[int], size: tuple[int, int] | None = None
) -> Int[Tensor, "rays"]:
    """Return the id of the chosen label that each ray is selected for, or `NOBODY`; `size` is that of a whole view."""
    found = Answers(seen.responses, seen.connected)
    if snapshot.config.decision == "paper":
        assert size is not None, "the paper's decision needs whole views"
        found = Answers(*(part.view(*size, -1) for part in found))
        decision = decide_paper(found.responses)
    else:
        decision = snapshot.decide(found)
    labels = torch.full_like(decision.labels, NOBODY)
    for position in chosen:
        mine = selected(found, decision, replace(snapshot, selected=position))[..., 0]
        labels = torch.where(mine, snapshot.labels[position].id, labels)
    return labels.flatten()


def _draw_rays(
    cameras: Cameras, sightings: Sightings, count: int, generator: torch.Generator
) -> tuple[RayBundle, Int[Tensor, "rays"]]:
    """Return rays through evenly drawn places in cells, and the cells they go through."""
    drawn = torch.randint(len(sightings.cells), (count,), generator=generator)
    cells = sightings.cells[drawn]
    places = cells[:, 1:] + torch.rand(count, 2, generator=generator)
    return _rays(cameras, cells[:, 0], places, sightings.grids), drawn


def _rays(
    cameras: Cameras, views: Int[Tensor, "rays"], places: Float[Tensor, "rays 2"], grids: Int[Tensor, "views 2"]
) -> RayBundle:
    """Return rays through places that are given in (row, column) of their view's grid."""
    sizes = torch.cat([cameras.height, cameras.width], dim=-1).cpu()
    coords = (places * sizes[views] / grids[views]).to(cameras.device, torch.float32)
    return cameras.generate_rays(camera_indices=views[:, None].to(cameras.device), coords=coords)


@torch.no_grad()
def _query(model: JacobiNeRFModel, rays: RayBundle, snapshot: LabelSnapshot) -> _Queried:
    def pick(traced: Traced) -> _Queried:
        piece = Piece(traced)
        solid = piece.outputs["accumulation"][:, 0] > SURFACE
        return _Queried(piece.points, piece.outputs["rgb"], *answers(piece, snapshot), solid)

    return trace_all(model, rays, pick)
