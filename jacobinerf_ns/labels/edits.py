"""Recolour, remove, extract: pictures of a changed scene from untouched weights.

Letters of `jacobian.py`, and m [rays samples] how much a sample belongs to an edit's label, 0..1. Every edit is a delta
on what the field answers (pre-sigmoid colours, density), never on its weights: edits do not wear each other out.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from jacobinerf_ns.annotations.schema import Edit
from jacobinerf_ns.core import jacobian
from jacobinerf_ns.core.propagation import nearest_responses
from jacobinerf_ns.labels.responses import rgb_directions
from jacobinerf_ns.labels.snapshot import Connection, LabelSnapshot
from jacobinerf_ns.labels.traces import Traced, nearest_points

RECOLOUR_LOGITS = 4.0
"""Shift of pre-sigmoid colours by a recolouring of full strength, where a sample responds fully."""
SOFTNESS = 0.06
"""Half the width of the border of a label between samples, in units of response: a hard one flickers."""
EMPTY = 0.01
"""Light that a sample stops below which it is not looked up."""
EXTRACT_WITNESSES = 4
"""Surface points around a sample, of `NEAR_POINTS`, that have to be the thing's for it to be cut out: before an empty
page everything is seen that is left in the air. To be recoloured or removed one is enough."""
REMOVAL_MARGIN = 0.125
"""Share of the threshold by which less responds what is removed together with a thing: its rim would be left in the
air."""
LAYERS = 3
"""How often a ray may look behind what was removed."""
SEE_THROUGH = 0.05
"""Share of a ray's light that has to be left over for a look behind."""
HALF = 0.5
"""Share of a sample's density from which on it counts as removed."""
WHITE = 1.0
BLOCK_BYTES = 64 << 20
"""Memory of all samples' responses to the prototypes that are taken at a time; thirteen times as much is at work."""


class Edited(NamedTuple):
    """A ray's edited samples, before anything stands behind them."""

    colour: Float[Tensor, "rays 3"]
    left: Float[Tensor, "rays 1"]
    """Share of light that passes all samples that have a part."""
    opened: Bool[Tensor, "rays"]
    """Whether something was removed where light arrives."""
    exits: Float[Tensor, "rays 1"]
    """Where on the ray the last of it ends; what is behind has no part in colour and light."""


def edited_colour(
    trace: Callable[[RayBundle], Traced], ray_bundle: RayBundle, traced: Traced, snapshot: LabelSnapshot
) -> Float[Tensor, "rays 3"]:
    """Colour of rays under all edits of the snapshot.

    Samples crowd around the first surface. Where that surface is removed, the ray is traced again from behind it, so
    that what it hid is seen as well as the field knows it. Behind an extracted part is white.

    Args:
        trace: queries the field; rays that have a near bound keep it.
        ray_bundle: the rays.
        traced: their first query.
        snapshot: labels and edits.
    """
    if not snapshot.edits:
        return traced.outputs["rgb"]
    first = _edit_samples(traced, snapshot)
    colour, left = first.colour, first.left
    extracts = any(edit.kind == "extract" for edit in snapshot.edits)
    layer, rays, current, indices = first, ray_bundle, traced, torch.arange(len(colour), device=colour.device)
    for _ in range(LAYERS):
        # Places and not a mask: a host would wait for the GPU at every tensor that a mask is laid on.
        again = _looks_behind(layer, left[indices]).nonzero()[:, 0]
        if not len(again):
            break
        indices, rays = indices[again], _rays_behind(rays[again], current, layer, again, extracts)
        current = trace(rays)
        layer = _edit_samples(current, snapshot)
        colour = colour.index_add(0, indices, left[indices] * layer.colour)
        left = left.index_copy(0, indices, left[indices] * layer.left)
    return (colour + left * _behind_everything(colour, left, traced, extracts)).clamp(0.0, 1.0)


def _behind_everything(
    colour: Float[Tensor, "rays 3"], left: Float[Tensor, "rays 1"], traced: Traced, extracts: bool
) -> Float[Tensor, "rays 3"]:
    """Behind an extracted part is white; elsewhere what little light is left takes the colour that the rest has."""
    if extracts:
        return torch.full_like(colour, WHITE)
    seen = 1.0 - left
    return torch.where(seen > SEE_THROUGH, colour / seen.clamp(min=SEE_THROUGH), traced.outputs["rgb"])


def _edit_samples(traced: Traced, snapshot: LabelSnapshot) -> Edited:
    shift, kept = torch.zeros_like(traced.logits), torch.ones_like(traced.weights)
    found, ids = _sample_responses(traced, snapshot), [label.id for label in snapshot.labels]
    thresholds = snapshot.thresholds()
    for edit in snapshot.edits:
        position = ids.index(edit.label)
        threshold = thresholds[position] * (1.0 - REMOVAL_MARGIN * (edit.kind == "remove"))
        witnesses = EXTRACT_WITNESSES if edit.kind == "extract" else 1
        mine = membership(_carried(found, traced, position, threshold, snapshot, witnesses), position, threshold)
        if edit.kind == "recolour":
            shift = shift + mine[..., None] * _recolouring(traced, snapshot, edit, position)
        elif edit.kind == "remove":
            mine = torch.maximum(mine, _enclosed(mine, traced, position, threshold, snapshot))
            kept = kept * (1.0 - edit.strength * mine)
        else:
            kept = kept * (1.0 - edit.strength * (1.0 - mine * _solid(traced)))
    samples = traced.trace.ray_samples
    weights = samples.get_weights(traced.trace.density * kept[..., None])[..., 0]
    colours = torch.sigmoid(traced.logits + shift)
    starts, ends = samples.frustums.starts[..., 0], samples.frustums.ends[..., 0]
    gone = (1.0 - kept > HALF) & (1.0 - weights.cumsum(-1) + weights > SEE_THROUGH)
    opened, exits = gone.any(-1), torch.where(gone, ends, starts[:, :1]).amax(-1, keepdim=True)
    if traced.background == "last_sample":
        # Light that nothing stops shows the last sample, unless an edit has opened the way to what is behind.
        weights = torch.where(opened[:, None], weights, jacobian.effective_weights(weights, "last_sample"))
    # Samples crowd around the first surface: behind it one of them may stand for all the way to the next.
    weights = torch.where(opened[:, None] & (starts >= exits), 0.0, weights)
    left = 1.0 - weights.sum(-1, keepdim=True)
    return Edited((weights[..., None] * colours).sum(-2), left.clamp(min=0.0), opened, exits)


def _sample_responses(traced: Traced, snapshot: LabelSnapshot) -> Float[Tensor, "rays samples labels"]:
    directions = rgb_directions(traced, snapshot.prototypes.vectors)
    activations = traced.trace.activations.float()

    def cosines(chosen: slice) -> Float[Tensor, "pixels chosen"]:
        return jacobian.sample_cosine(traced.logits, activations, directions[chosen]).flatten(0, 1)

    block = max(1, BLOCK_BYTES // traced.weights.nbytes)
    found = nearest_responses(cosines, snapshot.prototypes, len(snapshot.labels), block)
    return found.view(*traced.weights.shape, -1)


def _carried(
    found: Float[Tensor, "rays samples labels"],
    traced: Traced,
    position: int,
    threshold: float,
    snapshot: LabelSnapshot,
    witnesses: int,
) -> Float[Tensor, "rays samples labels"]:
    """Return the responses where those to one label hang together with its seeds; only samples near it are looked up.

    A sample in space that nobody saw may answer by chance, and would be left in the air: so many of the surface points
    around it have to carry them.
    """
    if snapshot.connection is None:
        return found
    near = ((found[..., position] > threshold - SOFTNESS) & _solid(traced)).nonzero().unbind(-1)
    mine = found[..., position]
    around = _around(traced, near, snapshot.connection, position)
    held = torch.minimum(mine[near], around.topk(min(witnesses, around.shape[-1]), dim=-1).values[:, -1])
    carried = found.clone()
    carried[..., position] = mine.index_put(near, held)
    return carried


def _enclosed(
    mine: Float[Tensor, "rays samples"], traced: Traced, position: int, threshold: float, snapshot: LabelSnapshot
) -> Float[Tensor, "rays samples"]:
    """Return how much samples are within a thing: most of the surface that is nearest to them is selected.

    Nobody has seen the inside of things, and what the field has there answers by chance: it would be left as a ghost.
    Looked up on rays that meet the thing.
    """
    inside = torch.zeros_like(mine)
    if snapshot.connection is None:
        return inside
    near = ((mine.amax(-1, keepdim=True) > HALF) & (mine < HALF) & _solid(traced)).nonzero().unbind(-1)
    around = _around(traced, near, snapshot.connection, position).median(-1).values
    return inside.index_put(near, _soft(around - threshold))


def _around(
    traced: Traced, near: tuple[Tensor, ...], connection: Connection, position: int
) -> Float[Tensor, "places neighbours"]:
    """Return how much of the responses to one label carries to the surface points around samples at (ray, sample)."""
    places = traced.trace.ray_samples.frustums[near].get_positions()
    return connection.carried[:, position].to(places)[nearest_points(connection.tree, places)]


def _solid(traced: Traced) -> Bool[Tensor, "rays samples"]:
    """Return the samples that stop light at all: of others nobody sees whether they belong to a thing."""
    samples = traced.trace.ray_samples
    lengths = (samples.frustums.ends - samples.frustums.starts)[..., 0]
    return traced.trace.density[..., 0] * lengths > EMPTY


def membership(
    found: Float[Tensor, "rays samples labels"], position: int, threshold: float
) -> Float[Tensor, "rays samples"]:
    """m: samples whose response to a label is above the threshold and above that to every other label."""
    others = found.clone()
    others[..., position] = threshold
    return _soft(found[..., position] - others.amax(-1))


def _soft(above: Float[Tensor, "*places"]) -> Float[Tensor, "*places"]:
    """Return 0 below the border, 1 above it: a wall of which the hundredth part is left is a wall."""
    along = (0.5 + 0.5 * above / SOFTNESS).clamp(0.0, 1.0)
    return along.square() * (3.0 - 2.0 * along)


def _recolouring(
    traced: Traced, snapshot: LabelSnapshot, edit: Edit, position: int
) -> Float[Tensor, "rays samples channels"]:
    """Shift of z along the label's direction G, its channels scaled by the wanted colour (paper, section 4.4).

    G is the mean of the label's prototypes; G a is divided by the lengths of both, so that bright and dark samples move
    alike and the strength means the same in every scene.
    """
    chosen = (snapshot.prototypes.labels == position) & snapshot.prototypes.positive
    mean = rgb_directions(traced, snapshot.prototypes.vectors[chosen]).mean(dim=(0, 1))
    activations = traced.trace.activations.float()
    lengths = (activations.norm(dim=-1) * mean.norm()).clamp(min=jacobian.NORM_EPS)
    aligned = (activations @ mean) / lengths
    gain = 2.0 * torch.tensor(edit.colour, device=mean.device) / 255.0 - 1.0
    return RECOLOUR_LOGITS * edit.strength * aligned[..., None] * gain


def _looks_behind(layer: Edited, left: Float[Tensor, "rays 1"]) -> Bool[Tensor, "rays"]:
    return (left[:, 0] > SEE_THROUGH) & layer.opened


def _rays_behind(
    rays: RayBundle, traced: Traced, layer: Edited, again: Int[Tensor, "rays"], extracts: bool
) -> RayBundle:
    """Return the same rays, beginning behind what was removed where light arrived.

    Args:
        rays: those that look behind.
        traced: the query before, of more rays.
        layer: its samples.
        again: the places of `rays` in it.
        extracts: all but a thing was removed, so that rays leave the room: they end where their samples do, since what
            lies beyond answers by chance.
    """
    samples = traced.trace.ray_samples
    # The last sample need not lie where rays end.
    fars = samples.frustums.ends[:, -1]
    if not extracts and samples.spacing_to_euclidean_fn is not None:
        fars = torch.maximum(fars, samples.spacing_to_euclidean_fn(torch.ones_like(fars)))
    return replace(rays, nears=torch.minimum(layer.exits[again], 0.999 * fars[again]), fars=fars[again])
