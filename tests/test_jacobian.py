"""The closed forms against autograd, nerfstudio's own renderer, and networks whose weights really are changed."""

import pytest
import torch
from jaxtyping import Float
from nerfstudio.model_components.renderers import RGBRenderer
from torch import Tensor

from jacobinerf_ns.core import jacobian as J

RAYS, SAMPLES, HIDDEN, INPUTS = 6, 9, 16, 12
BACKGROUNDS: list[J.Background] = ["last_sample", "black", "white", "random"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


class Scene:
    """Random samples, weights and layers; `sum_to` is the accumulation of a ray."""

    def __init__(self, dtype: torch.dtype, sum_to: float = 0.8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
        self.inputs = draw(RAYS, SAMPLES, INPUTS)
        self.V, self.v = draw(HIDDEN, INPUTS) / 3, draw(HIDDEN)
        self.W, self.b = draw(3, HIDDEN) / 4, draw(3)
        weights = draw(RAYS, SAMPLES).exp()
        self.weights = sum_to * weights / weights.sum(-1, keepdim=True)

    def activations(self, V: Tensor | None = None) -> Tensor:
        return torch.relu(self.inputs @ (self.V if V is None else V).T + self.v)

    def logits(self, W: Tensor | None = None, V: Tensor | None = None) -> Tensor:
        return self.activations(V) @ (self.W if W is None else W).T + self.b

    def colours(self, W: Tensor | None = None, V: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.logits(W, V))


def render(colours: Tensor, weights: Tensor, background: J.Background, training: bool) -> Tensor:
    renderer = RGBRenderer(background_color=background).train(training)
    return renderer(rgb=colours.clone(), weights=weights[..., None])


def perturbed_colour(
    weights: Float[Tensor, "rays samples"],
    logits: Float[Tensor, "rays samples channels"],
    activations: Float[Tensor, "rays samples hidden"],
    direction: Float[Tensor, "channels hidden"],
    step: float,
    background: J.Background = "last_sample",
    background_colour: Float[Tensor, "channels"] | None = None,
) -> Float[Tensor, "rays channels"]:
    """Return the exact rendered colour under W + t·G: σ(z + t·G a), composited from the samples at hand.

    The same picture as re-rendering a network with changed weights, without the network: samples and rendering weights
    do not depend on W. `logits` are the unperturbed z. `white` has its colour built in; `background_colour` (0..1)
    replaces any constant background, as nerfstudio's override does.
    """
    colours = torch.sigmoid(logits + step * (activations @ direction.T))
    rendered = (J.effective_weights(weights, background)[..., None] * colours).sum(dim=-2)
    if background_colour is None:
        constant = 1.0 if background == "white" else 0.0
        background_colour = rendered.new_full(rendered.shape[-1:], constant)
    if background == "last_sample":
        return rendered
    return rendered + background_colour * (1.0 - weights.sum(dim=-1, keepdim=True))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_jacobian_is_the_autograd_gradient_of_the_rendered_mean(
    background: J.Background, training: bool, dtype: torch.dtype
):
    scene = Scene(dtype)
    W = scene.W.clone().requires_grad_(True)
    V = scene.V.clone().requires_grad_(True)
    pixels = render(scene.colours(W, V), scene.weights, background, training).mean(-1)
    expected = [torch.autograd.grad(pixel, (W, V), retain_graph=True) for pixel in pixels]
    found = J.jacobian(scene.weights, scene.logits(), scene.activations(), background)
    assert relative_error(found, torch.stack([grads[0] for grads in expected])) <= TOLERANCE[dtype]
    trunk = J.trunk_jacobian(scene.weights, scene.logits(), scene.activations(), scene.inputs, scene.W, background)
    assert relative_error(trunk, torch.stack([grads[1] for grads in expected])) <= TOLERANCE[dtype]


def test_gradient_of_a_loss_on_jacobians_equals_the_double_backward():
    scene = Scene(torch.float64)
    leaves = [scene.inputs.requires_grad_(True), scene.W.requires_grad_(True), scene.V.requires_grad_(True)]

    def loss_of(jacobians: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(jacobians.flatten(1), dim=-1)
        return (unit @ unit.T).square().sum() + jacobians.norm()

    pixels = render(scene.colours(), scene.weights, "last_sample", True).mean(-1)
    slow = torch.stack([torch.autograd.grad(pixel, scene.W, create_graph=True)[0] for pixel in pixels])
    expected = torch.autograd.grad(loss_of(slow), leaves)
    found = torch.autograd.grad(
        loss_of(J.jacobian(scene.weights, scene.logits(), scene.activations(), "last_sample")), leaves
    )
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) <= 1e-10


def test_a_ray_that_hits_nothing_has_a_finite_jacobian_and_no_resonance():
    scene = Scene(torch.float32)
    nothing = torch.zeros_like(scene.weights)
    found = J.jacobian(nothing, scene.colours(), scene.activations(), "black").flatten(1)
    assert torch.equal(found, torch.zeros_like(found))
    directions = J.jacobian(scene.weights, scene.logits(), scene.activations(), "black").flatten(1)
    assert torch.equal(J.cosine_response(found, directions), torch.zeros(RAYS, RAYS))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_perturbed_colour_is_what_changed_weights_render(background: J.Background):
    scene, step = Scene(torch.float64), 0.3
    direction = J.jacobian(scene.weights, scene.logits(), scene.activations(), background)[2]
    logits = scene.activations() @ scene.W.T + scene.b
    found = perturbed_colour(scene.weights, logits, scene.activations(), direction, step, background)
    expected = render(scene.colours(scene.W + step * direction), scene.weights, background, training=False)
    assert relative_error(found, expected) <= 1e-12
    still = perturbed_colour(scene.weights, logits, scene.activations(), direction, 0.0, background)
    assert relative_error(still, render(scene.colours(), scene.weights, background, training=False)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_units_of_a_branch_beside_the_trunk_have_the_same_closed_forms(background: J.Background, dtype: torch.dtype):
    """The RGB layer reads [trunk | branch]; only the weights that read the branch are shaped and perturbed."""
    scene, step, units = Scene(dtype), 0.3, 6
    logits = scene.activations() @ scene.W.T + scene.b
    branch = scene.activations()[..., -units:]
    own = scene.W[:, -units:].clone().requires_grad_(True)
    whole = torch.cat([scene.W[:, :-units], own], dim=-1)
    pixels = render(scene.colours(whole), scene.weights, background, training=False).mean(-1)
    expected = torch.stack([torch.autograd.grad(pixel, own, retain_graph=True)[0] for pixel in pixels])
    found = J.jacobian(scene.weights, scene.logits(), branch, background)
    assert relative_error(found, expected) <= TOLERANCE[dtype]
    moved = torch.cat([scene.W[:, :-units], scene.W[:, -units:] + step * found[2]], dim=-1)
    before, after = (render(scene.colours(W), scene.weights, background, training=False) for W in (scene.W, moved))
    exact = J.perturbed_response(scene.weights, logits, branch, found[2:3], step, background)[:, 0]
    assert float((exact - (after - before).abs().mean(-1)).abs().max()) <= TOLERANCE[dtype]
    assert float(exact.max()) > 1e-3


def test_an_override_of_the_background_colour_is_blended_in():
    scene = Scene(torch.float64)
    logits = scene.activations() @ scene.W.T + scene.b
    red = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    direction = torch.zeros(3, HIDDEN, dtype=torch.float64)
    found = perturbed_colour(scene.weights, logits, scene.activations(), direction, 0.0, "black", red)
    plain = render(scene.colours(), scene.weights, "black", training=False)
    assert torch.allclose(found - plain, (1 - scene.weights.sum(-1, keepdim=True)) * red)


def test_response_is_the_first_order_change_of_the_perturbed_colour():
    scene = Scene(torch.float64)
    jacobians = J.jacobian(scene.weights, scene.logits(), scene.activations(), "white")
    logits = scene.activations() @ scene.W.T + scene.b
    direction = jacobians[1]
    errors = []
    for step in (1e-2, 1e-3):
        change = perturbed_colour(scene.weights, logits, scene.activations(), direction, step, "white").mean(-1)
        change = change - render(scene.colours(), scene.weights, "white", training=False).mean(-1)
        predicted = J.response(jacobians.flatten(1), direction.flatten()[None], step)[:, 0]
        errors.append(float((change - predicted).abs().max()))
    assert errors[1] < errors[0] / 50  # second order: a tenth of the step, a hundredth of the error


def test_cosine_response_of_a_pixel_to_itself_is_one_and_to_scaled_directions_the_same():
    scene = Scene(torch.float32)
    jacobians = J.jacobian(scene.weights, scene.logits(), scene.activations()).flatten(1)
    found = J.cosine_response(jacobians, jacobians)
    assert torch.allclose(found.diagonal(), torch.ones(RAYS), atol=1e-6)
    assert torch.allclose(J.cosine_response(jacobians, 7.0 * jacobians), found, atol=1e-6)


def test_two_samples_by_hand():
    weights = torch.tensor([[0.5, 0.25]])
    logits = torch.tensor([[[0.5, 0.5, 0.5], [0.2, 0.5, 0.8]]]).logit()
    activations = torch.tensor([[[1.0, 0.0], [2.0, 4.0]]])
    # slopes/3 of sample 1: .5*.25; of sample 2 with the residual .25 added to its weight: .5*(.16,.25,.16)
    expected = torch.tensor([[0.125 + 0.16, 0.32], [0.125 + 0.25, 0.5], [0.125 + 0.16, 0.32]]) / 3
    assert torch.allclose(J.jacobian(weights, logits, activations, "last_sample")[0], expected)
    expected = torch.tensor([[0.125 + 0.08, 0.16], [0.125 + 0.125, 0.25], [0.125 + 0.08, 0.16]]) / 3
    assert torch.allclose(J.jacobian(weights, logits, activations, "black")[0], expected)


def random_samples(dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(5, 7, generator=generator, dtype=dtype)
    weights = 0.9 * weights / weights.sum(-1, keepdim=True)
    activations = torch.rand(5, 7, 6, generator=generator, dtype=dtype)
    directions = torch.randn(4, 3, 6, generator=generator, dtype=dtype)
    layer = torch.randn(3, 6, generator=generator, dtype=dtype)
    return weights, activations, directions, layer


@pytest.mark.parametrize("background", ["random", "last_sample", "black", "white"])
def test_exact_response_is_the_difference_of_two_renderings(background):
    weights, activations, directions, layer = random_samples()
    logits = activations @ layer.T
    found = J.perturbed_response(weights, logits, activations, directions, 0.1, background)
    before = perturbed_colour(weights, logits, activations, directions[0], 0.0, background)
    for k, direction in enumerate(directions):
        after = perturbed_colour(
            weights, activations @ (layer + 0.1 * direction).T, activations, direction, 0.0, background
        )
        assert torch.allclose(found[:, k], (after - before).abs().mean(-1), atol=1e-12)


def test_exact_response_tends_to_the_first_order_one():
    """Where the direction moves all channels up, |mean| and mean of |.| agree, and t⟨J, G⟩ is the limit."""
    weights, activations, directions, layer = random_samples()
    logits, up = activations @ layer.T, directions.abs()
    jacobians = J.jacobian(weights, logits, activations).flatten(1)
    errors = []
    for step in (1e-1, 1e-2, 1e-3):
        exact = J.perturbed_response(weights, logits, activations, up, step)
        errors.append(float((exact - J.response(jacobians, up.flatten(1), step)).abs().max() / step))
    assert errors[2] < 0.02 * errors[0] < 0.02


def test_sample_cosine_is_the_cosine_of_each_samples_own_jacobian():
    weights, activations, directions, layer = random_samples()
    logits = activations @ layer.T
    found = J.sample_cosine(logits, activations, directions)
    for s in range(weights.shape[1]):
        alone = torch.ones(len(weights), 1, dtype=weights.dtype)
        own = J.jacobian(alone, logits[:, s : s + 1], activations[:, s : s + 1], "black").flatten(1)
        assert torch.allclose(found[:, s], J.cosine_response(own, directions.flatten(1)), atol=1e-12)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_one_vector_per_ray_answers_every_direction_in_3d(background: J.Background):
    weights, activations, directions, layer = random_samples()
    logits = activations @ layer.T
    means = J.mean_direction(weights, logits, activations, background).flatten(1)
    unit = torch.nn.functional.normalize(directions.flatten(1), dim=-1)
    expected = J.render(weights, J.sample_cosine(logits, activations, directions), background)
    assert torch.allclose(means @ unit.T, expected, atol=1e-12)


def test_paper_3d_response_is_the_raw_output_of_perturbed_weights():
    _, activations, directions, layer = random_samples()
    found = J.sample_response(activations, directions, 0.1)
    for k, direction in enumerate(directions):
        moved = activations @ (layer + 0.1 * direction).T - activations @ layer.T
        assert torch.allclose(found[..., k], moved.mean(-1).abs(), atol=1e-12)


def test_rendering_values_is_rendering_colour():
    weights, activations, _, layer = random_samples()
    logits = activations @ layer.T
    expected = perturbed_colour(weights, logits, activations, layer, 0.0)
    assert torch.allclose(J.render(weights, torch.sigmoid(logits)), expected)


def test_no_directions_give_no_responses():
    weights, activations, _, layer = random_samples()
    none = torch.zeros(0, 3, 6, dtype=weights.dtype)
    assert J.perturbed_response(weights, activations @ layer.T, activations, none, 0.1).shape == (5, 0)
