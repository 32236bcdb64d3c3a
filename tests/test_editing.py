"""Edits on a scene of two walls, one behind the other, whose every colour is known."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from scipy.spatial import KDTree

from jacobinerf_ns.annotations.schema import Edit, Label
from jacobinerf_ns.core import jacobian
from jacobinerf_ns.core.propagation import PropagationConfig, Prototypes
from jacobinerf_ns.field import FieldTrace
from jacobinerf_ns.labels.edits import EXTRACT_WITNESSES, SOFTNESS, _sample_responses, edited_colour, membership
from jacobinerf_ns.labels.snapshot import Connection, LabelSnapshot
from jacobinerf_ns.labels.traces import Traced

NEAR, FAR = 2.0, 4.0
FRONT, BACK = torch.tensor([0.8, 0.3, 0.2]), torch.tensor([0.2, 0.4, 0.7])
LABELS = (Label(id=1, name="front", colour=(9, 9, 9)), Label(id=2, name="back", colour=(9, 9, 9)))
FEATURES = torch.eye(2)
LAYER = torch.stack([torch.logit(FRONT), torch.logit(BACK)], dim=-1)
"""W [channels hidden]: the front's activation gives the front's colour."""


def look(rays: RayBundle, inside: torch.Tensor | None = None) -> Traced:
    """Opaque walls at distances 2 and 4; 64 samples from the near bound to 6, half of them before the nearest wall.

    The farther half of the wall in front has the activations `inside`, if they are given.
    """
    assert rays.nears is not None
    count, nears = 64, rays.nears
    edges = nears + (6.0 - nears) * torch.linspace(0, 1, count + 1)
    samples = rays.get_ray_samples(bin_starts=edges[:, :-1, None], bin_ends=edges[:, 1:, None])
    middle = (edges[:, :-1] + edges[:, 1:]) / 2
    front, back = (middle - NEAR).abs() < 0.2, (middle - FAR).abs() < 0.2
    density = 200.0 * (front | back).float()[..., None]
    activations = torch.where((middle < (NEAR + FAR) / 2)[..., None], FEATURES[0], FEATURES[1])
    if inside is not None:
        activations = torch.where((front & (middle > NEAR))[..., None], inside, activations)
    logits = activations @ LAYER.T
    weights = samples.get_weights(density)[..., 0]
    colours = torch.sigmoid(logits)
    rgb = (jacobian.effective_weights(weights, "last_sample")[..., None] * colours).sum(-2)
    trace = FieldTrace(
        samples, density, colours, logits, activations, places=samples.frustums.get_positions(), inputs=None
    )
    jacobians = jacobian.jacobian(weights, logits, activations).flatten(1)
    depth = torch.full_like(rgb[:, :1], NEAR)
    return Traced({"rgb": rgb, "depth": depth}, trace, weights, jacobians, logits, "last_sample")


@pytest.fixture
def rays() -> RayBundle:
    count = 5
    return RayBundle(
        origins=torch.zeros(count, 3),
        directions=torch.tensor([[0.0, 0.0, 1.0]]).expand(count, -1),
        pixel_area=torch.ones(count, 1),
        nears=torch.zeros(count, 1),
        fars=torch.full((count, 1), 6.0),
    )


def snapshot(*edits: Edit) -> LabelSnapshot:
    slopes = torch.stack([FRONT * (1 - FRONT), BACK * (1 - BACK)])
    vectors = (slopes[:, :, None] * FEATURES[:, None, :]).flatten(1)
    prototypes = Prototypes(vectors, torch.arange(2), torch.ones(2, dtype=torch.bool), torch.ones(2))
    return LabelSnapshot(LABELS, prototypes, PropagationConfig(threshold=0.7), edits=edits)


def connected(carried: list[list[float]]) -> Connection:
    """What carries to 8 points of the front and to 8 of the back."""
    sides = torch.tensor([[x, 0.0, z] for z in (NEAR, FAR) for x in torch.linspace(-0.1, 0.1, 8).tolist()])
    return Connection(KDTree(sides.numpy()), torch.tensor(carried).repeat_interleave(8, dim=0))


def render(rays: RayBundle, *edits: Edit) -> torch.Tensor:
    return edited_colour(look, rays, look(rays), snapshot(*edits))


def close(found: torch.Tensor, colour: torch.Tensor) -> bool:
    return torch.allclose(found, colour.expand_as(found), atol=0.01)


def test_what_is_seen_without_edits(rays):
    assert close(render(rays), FRONT)


def test_samples_belong_to_what_they_resemble(rays):
    traced = look(rays)
    mine = membership(_sample_responses(traced, snapshot()), 0, snapshot().thresholds()[0])
    wall = traced.trace.activations[..., 0] == 1
    assert float(mine[wall].min()) > 0.99
    assert float(mine[~wall].max()) < 0.01


@pytest.mark.parametrize("threshold", [0.8, 0.15])
def test_nothing_is_left_of_what_is_below_the_border(threshold: float):
    """A hundredth of a wall's density is a wall."""
    found = torch.tensor([threshold - SOFTNESS, threshold, threshold + SOFTNESS])[None, :, None]
    assert membership(found, 0, threshold)[0].tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)
    assert float(membership(found - 1e-4, 0, threshold)[0, 0]) == 0.0


def test_removing_the_front_shows_the_back(rays):
    assert close(render(rays, Edit(kind="remove", label=1)), BACK)


def test_removing_the_back_changes_nothing_in_front_of_it(rays):
    assert close(render(rays, Edit(kind="remove", label=2)), FRONT)


def test_extracting_leaves_one_thing_on_white(rays):
    assert close(render(rays, Edit(kind="extract", label=1)), FRONT)
    assert close(render(rays, Edit(kind="extract", label=2)), BACK)
    everything_gone = render(rays, Edit(kind="extract", label=1), Edit(kind="extract", label=2))
    assert close(everything_gone, torch.ones(3))


def test_no_haze_is_cut_out_with_a_thing(rays):
    """Space that stops next to no light answers as the front does; all of it together would be a quarter of it."""

    def hazy(bundle: RayBundle) -> Traced:
        traced = look(bundle)
        density = torch.full_like(traced.trace.density, 0.05)
        weights = traced.trace.ray_samples.get_weights(density)[..., 0]
        return traced._replace(trace=replace(traced.trace, density=density), weights=weights)

    traced = hazy(rays)
    assert float(traced.weights.sum(-1).min()) > 0.25
    assert close(edited_colour(hazy, rays, traced, snapshot(Edit(kind="extract", label=1))), torch.ones(3))


@pytest.mark.parametrize(("witnesses", "colour"), [(EXTRACT_WITNESSES - 1, torch.ones(3)), (EXTRACT_WITNESSES, FRONT)])
def test_few_witnesses_are_enough_for_paint_and_not_to_be_cut_out(rays, witnesses: int, colour: torch.Tensor):
    some = connected([[1.0, 0.0], [0.0, 1.0]])
    some.carried[witnesses:8] = 0.0
    cut_out = replace(snapshot(Edit(kind="extract", label=1)), connection=some)
    assert close(edited_colour(look, rays, look(rays), cut_out), colour)
    painted = replace(snapshot(Edit(kind="recolour", label=1, colour=(0, 0, 255))), connection=some)
    assert not close(edited_colour(look, rays, look(rays), painted), FRONT)


def test_what_stands_beyond_the_samples_is_found_by_looking_again(rays):
    """All samples lie in front of the back wall, as proposal sampling would have them: a second look has to find it."""

    def near_only(bundle: RayBundle) -> Traced:
        assert bundle.nears is not None
        if float(bundle.nears.max()) > 0:
            return look(bundle)
        traced = look(bundle)
        density = traced.trace.density * (traced.trace.activations[..., :1] == 1)
        weights = traced.trace.ray_samples.get_weights(density)[..., 0]
        return traced._replace(trace=replace(traced.trace, density=density), weights=weights)

    removed = edited_colour(near_only, rays, near_only(rays), snapshot(Edit(kind="remove", label=1)))
    assert close(removed, BACK)


def test_recolouring_pulls_towards_the_colour_by_its_strength(rays):
    half, full = (render(rays, Edit(kind="recolour", label=1, colour=(0, 0, 255), strength=s)) for s in (0.5, 1.0))
    assert float(full[0, 2]) > float(half[0, 2]) > float(FRONT[2])
    assert float(full[0, 0]) < float(half[0, 0]) < float(FRONT[0])
    assert close(render(rays, Edit(kind="recolour", label=2, colour=(0, 0, 255))), FRONT)


def test_edits_of_several_labels_add_up(rays):
    both = render(rays, Edit(kind="remove", label=1), Edit(kind="recolour", label=2, colour=(255, 0, 0)))
    assert float(both[0, 0]) > float(BACK[0]) + 0.2
    assert close(render(rays, Edit(kind="remove", label=1, strength=0.0)), FRONT)


def test_what_does_not_hang_together_with_its_seeds_is_left_alone(rays):
    edits = snapshot(Edit(kind="remove", label=1))
    apart = replace(edits, connection=connected([[0.1, 0.0], [0.0, 1.0]]))
    assert close(edited_colour(look, rays, look(rays), apart), FRONT)
    whole = replace(edits, connection=connected([[1.0, 0.0], [0.0, 1.0]]))
    assert close(edited_colour(look, rays, look(rays), whole), BACK)


def test_a_thing_goes_with_its_inside(rays):
    """What nobody saw answers by chance: here with what is least like the thing."""
    ghost = partial(look, inside=-FEATURES[0])
    edits = snapshot(Edit(kind="remove", label=1))
    assert not close(edited_colour(ghost, rays, ghost(rays), edits), BACK)
    whole = replace(edits, connection=connected([[1.0, 0.0], [0.0, 1.0]]))
    assert close(edited_colour(ghost, rays, ghost(rays), whole), BACK)
