"""The closed form inside the real field, and what the model does while it shapes and while it does not."""

import socket
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.fields.base_field import Field
from nerfstudio.model_components.renderers import DepthRenderer, background_color_override_context
from nerfstudio.models import nerfacto
from tiny import tiny_config

from jacobinerf_ns.compat.contraction import CubeContraction
from jacobinerf_ns.core.distances import surface_distances
from jacobinerf_ns.core.jacobian import Background, colour_slopes, effective_weights
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.model import JacobiNeRFModel, JacobiNeRFModelConfig
from jacobinerf_ns.shaping import ShapingConfig

RAYS = 12
EVERY_SAMPLE = 1 << 10


def make_model(**changes: object) -> JacobiNeRFModel:
    config = tiny_config(Path("capture"), Path("outputs")).pipeline.model
    config = replace(config, **{"entity_in_colour": True, **changes})
    torch.manual_seed(0)
    box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    return config.setup(scene_box=box, num_train_data=3, metadata={}, device="cpu", grad_scaler=None)


def rays(count: int = RAYS) -> RayBundle:
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return RayBundle(
        origins=0.1 * torch.randn(count, 3, generator=generator),
        directions=directions,
        pixel_area=torch.full((count, 1), 1e-4),
        camera_indices=torch.arange(count)[:, None] % 3,
    )


def shaped_gradients(model: JacobiNeRFModel, pixel: torch.Tensor) -> torch.Tensor:
    """What autograd says about the weights that the model's config names as shaped."""
    head = model.field.mlp_head
    layers = [head.rgb_layer.weight]
    if model.config.shaped_layers == "rgb+trunk":
        layers.append(dict(head.named_parameters())["trunk.layers.1.weight"])
    gradients = list(torch.autograd.grad(pixel, layers, retain_graph=True))
    if model.config.shaped_layers == "entity":
        gradients[0] = gradients[0][:, -model.config.entity_units :]
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("background", ["last_sample", "black", "white", "random"])
@pytest.mark.parametrize(("layers", "units"), [("rgb+trunk", 0), ("rgb+trunk", 8), ("rgb", 8), ("entity", 8)])
def test_jacobians_of_the_model_are_autograd_gradients_of_its_colour(
    background: str, training: bool, layers: str, units: int
):
    model = make_model(
        background_color=background,
        shaping_start_step=0,
        shaped_layers=layers,
        entity_units=units,
        shaping_gradient_below=1.0,
    ).train(training)
    torch.manual_seed(5)  # stratified samples: both passes draw the same
    if training:
        outputs = model(rays())
        found, rgb = outputs["jacobians"], outputs["rgb"]
    else:
        with model.field.recording() as traces:
            rgb = model(rays())["rgb"]
        trace = traces[0]
        found = model._render_jacobians(trace, trace.ray_samples.get_weights(trace.density))
    for ray, jacobian in zip(rgb.mean(-1), found, strict=True):
        expected = shaped_gradients(model, ray)
        assert float((jacobian - expected).norm() / expected.norm()) <= 1e-5


def with_a_branch_of_its_own(**changes: object) -> JacobiNeRFModel:
    """A model whose entity branch has parted from colour's and gone its own way."""
    model = make_model(shaping_start_step=0, entity_units=8, shaped_layers="entity", entity_in_colour=False, **changes)
    model.field.part()
    branch = model.field.entity_branch
    assert branch is not None
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("background", ["last_sample", "random"])
def test_jacobians_over_weights_that_are_zero_are_autograd_gradients_of_the_colour(background: str):
    model = with_a_branch_of_its_own(background_color=background, num_entity_samples=EVERY_SAMPLE).train()
    head = model.field.mlp_head
    torch.manual_seed(5)
    outputs = model(rays())
    unread = torch.zeros(3, 8, requires_grad=True)
    narrow = head.rgb_layer
    wide = torch.nn.Linear(1, 1)
    del wide.weight, wide.bias
    wide.weight, wide.bias = torch.cat([narrow.weight, unread], dim=1), narrow.bias
    head.rgb_layer = wide

    def joined(trunk: torch.Tensor) -> torch.Tensor:
        assert head.branch is not None
        return torch.cat([trunk, head.branch, model.field.entities_at(model.field._sample_locations.view(-1, 3))], -1)

    head._joined = joined
    torch.manual_seed(5)
    rgb = model(rays())["rgb"]
    assert torch.allclose(rgb, outputs["rgb"], atol=1e-6)
    for ray, jacobian in zip(rgb.mean(-1), outputs["jacobians"], strict=True):
        expected = torch.autograd.grad(ray, unread, retain_graph=True)[0].flatten()
        assert float((jacobian - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize("background", ["last_sample", "random"])
def test_few_samples_of_a_branch_apart_are_the_heaviest_ones(background: Background):
    model = with_a_branch_of_its_own(background_color=background, num_entity_samples=3).train()
    with model.field.recording() as traces:
        found = model(rays())["jacobians"]
    trace = traces[0]
    shares = effective_weights(trace.ray_samples.get_weights(trace.density)[..., 0], background)
    slopes = colour_slopes(trace.logits) / 3
    activations = model.field.entities_at(trace.places)
    for ray, jacobian in enumerate(found):
        chosen = sorted(range(shares.shape[1]), key=lambda s: -float(shares[ray, s]))[:3]
        expected = torch.stack([shares[ray, s] * torch.outer(slopes[ray, s], activations[ray, s]) for s in chosen])
        assert torch.allclose(jacobian, expected.sum(0).flatten(), rtol=1e-4, atol=1e-7)


def test_shaping_a_branch_apart_leaves_colour_alone_and_begins_where_colours_is():
    model = make_model(entity_units=8, shaped_layers="entity", entity_in_colour=False, shaping_start_step=0)
    field = model.field
    model.eval()
    with field.recording() as before:
        model(rays())
    field.part()
    with field.recording() as after:
        model(rays())
    assert torch.equal(before[0].activations, after[0].activations)
    model.train()
    model(rays())["jacobians"].square().sum().backward()
    moved = {name for name, p in field.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all(name.startswith("entity_branch.") for name in moved)
    model.zero_grad(set_to_none=True)
    model(rays())["rgb"].sum().backward()
    moved = {name for name, p in field.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("colour_branch.") for name in moved)
    assert not any(name.startswith("entity_branch.") for name in moved)


def test_a_checkpoint_tells_whether_the_branches_have_parted():
    before, after = with_a_branch_of_its_own(), with_a_branch_of_its_own()
    before.field.parted = False
    after.first_shaping_step.fill_(7)
    before.load_state_dict(after.state_dict())
    assert before.field.parted
    after.first_shaping_step.fill_(-1)
    before.load_state_dict(after.state_dict())
    assert not before.field.parted


def test_without_units_the_model_is_the_papers():
    paper, branched = make_model(entity_units=0, shaped_layers="rgb"), make_model(entity_units=8)
    assert not any("entity" in key for key in paper.state_dict())
    assert paper.field.mlp_head.rgb_layer.in_features == 16
    assert branched.field.mlp_head.rgb_layer.in_features == 16 + 8
    # The same draws of random numbers up to the branch: a field that is not shaped is the same one as ever.
    shared = paper.state_dict().keys() - {"field.mlp_head.rgb_layer.weight", "field.mlp_head.rgb_layer.bias"}
    assert sum(key.startswith("field.") and "mlp_base" in key for key in shared) > 0
    assert all(
        torch.equal(paper.state_dict()[key], branched.state_dict()[key]) for key in shared if "field.mlp_base" in key
    )


def test_a_config_saved_before_there_was_a_branch_builds_the_field_it_described():
    config = tiny_config(Path("capture"), Path("outputs")).pipeline.model
    new = {
        "entity_in_colour",
        "entity_units",
        "entity_levels",
        "entity_base_res",
        "entity_max_res",
        "entity_log2_hashmap_size",
        "num_entity_samples",
    }
    old = object.__new__(JacobiNeRFModelConfig)  # as yaml makes it: what the file lacks is not set
    vars(old).update(
        {name: value for name, value in vars(config).items() if name not in new} | {"shaped_layers": "rgb"}
    )
    box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    model = old.setup(scene_box=box, num_train_data=3, metadata={}, device="cpu", grad_scaler=None)
    assert model.field.entity_branch is None
    assert model.train()(rays())["rgb"].shape == (RAYS, 3)


def test_shaping_the_branch_moves_nothing_else():
    model = make_model(shaping_start_step=0, entity_units=8, shaped_layers="entity").train()
    outputs = model(rays())
    assert outputs["jacobians"].shape == (RAYS, 3 * 8)
    outputs["jacobians"].square().sum().backward()
    moved = {name for name, p in model.field.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all(name.startswith("entity_branch.") for name in moved)


def test_shaping_a_branch_that_is_not_there_is_refused_with_advice():
    with pytest.raises(UserError, match="entity-units"):
        make_model(entity_units=0, shaped_layers="entity")
    with pytest.raises(UserError, match="num-entity-samples"):
        make_model(num_entity_samples=0, entity_units=8, shaped_layers="entity")


def test_the_contraction_is_nerfstudios():
    ours, theirs = CubeContraction(), SceneContraction(order=float("inf"))
    points = torch.cat([torch.randn(500, 3) * 3, torch.tensor([[1.0, 0, 0], [0.5, -0.5, 0.5], [0, 0, -7.0]])])
    one, other = (points.clone().requires_grad_(True) for _ in range(2))
    assert torch.allclose(ours(one), theirs(other), rtol=1e-6, atol=0)
    within = points[points.abs().amax(dim=-1) <= 1]
    assert torch.equal(ours(within), within)
    direction = torch.randn(len(points), 3)
    (ours(one) * direction).sum().backward()
    (theirs(other) * direction).sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    assert torch.allclose(one.grad, other.grad, atol=1e-6)
    model = make_model()
    assert all(isinstance(part.spatial_distortion, CubeContraction) for part in [model.field, *model.proposal_networks])


def test_proposal_networks_answer_at_points_as_nerfstudio_asks_them():
    model, points = make_model(), 2 * torch.randn(5, 7, 3)
    for ours, network in zip(model.density_fns, model.proposal_networks, strict=True):
        assert isinstance(network, Field)
        assert torch.equal(ours(points), network.density_fn(points))


def test_depth_is_where_rays_meet_surfaces_and_in_training_nobody_renders_it():
    model = make_model(average_init_density=5.0, num_nerf_samples_per_ray=64).eval()
    with torch.no_grad():
        traced = model.trace(rays())
    samples = traced.trace.ray_samples
    middles = (samples.frustums.starts + samples.frustums.ends)[..., 0] / 2
    depth = surface_distances(traced.weights, middles)
    assert torch.equal(traced.outputs["depth"][:, 0], depth)
    expected = DepthRenderer("expected")(traced.weights[..., None], samples)
    assert torch.equal(traced.outputs["expected_depth"], expected)
    for renderer in (model.renderer_depth, model.renderer_expected_depth):
        unseen = renderer.train()(traced.weights[..., None], samples)
        assert unseen.shape == expected.shape
        assert unseen.isnan().all()


def test_an_overridden_background_is_a_constant():
    model = make_model(background_color="last_sample").eval()
    with torch.no_grad(), background_color_override_context(torch.zeros(3)):
        overridden = model.trace(rays()).jacobians
    model.config.background_color = model.renderer_rgb.background_color = "black"
    with torch.no_grad():
        black = model.trace(rays()).jacobians
    assert torch.equal(overridden, black)


def test_nothing_is_recorded_outside_of_shaping():
    model = make_model(shaping_start_step=3, shaped_layers="rgb", entity_units=0).train()
    model.step = 2
    assert "jacobians" not in model(rays())
    model.step = 3
    assert model(rays())["jacobians"].shape == (RAYS, 3 * 16)
    assert model.field.mlp_head.records is None
    model.eval()
    assert "jacobians" not in model(rays())


def test_shaping_losses_and_statistics_are_reported_and_reach_the_trunk():
    model = make_model(shaping_start_step=0, shaped_layers="rgb").train()
    batch = {"image": torch.rand(RAYS, 3), "features": torch.randn(RAYS, 5)}
    outputs = model(rays())
    metrics = model.get_metrics_dict(outputs, batch)
    losses = model.get_loss_dict(outputs, batch, metrics)
    assert {"mig", "norm", "cosine_positive", "cosine_negative", "positive_share", "pair_threshold"} <= metrics.keys()
    (losses["mig_loss"] + losses["norm_loss"]).backward()
    gradient = dict(model.field.mlp_head.named_parameters())["trunk.layers.1.weight"].grad
    assert gradient is not None
    assert float(gradient.norm()) > 0


def test_what_is_only_logged_is_made_in_logged_steps():
    model = make_model(shaping_start_step=0, shaping=ShapingConfig()).train()
    model.log_every = 10
    batch = {"image": torch.rand(RAYS, 3), "features": torch.randn(RAYS, 5)}
    model.step = 20
    outputs = model(rays())
    logged = model.get_metrics_dict(outputs, batch)
    model.step = 21
    ready: Future = Future()
    ready.set_result(batch["features"])
    others = model.get_metrics_dict(outputs, {**batch, "features": ready})
    assert others.keys() == {"distortion", "mig", "norm", "pair_threshold"}
    assert others.keys() | {"psnr", "cosine_positive", "cosine_negative", "positive_share"} == logged.keys()
    for name, value in others.items():
        torch.testing.assert_close(value, logged[name], rtol=0, atol=0)
    losses = []
    for metrics in (logged, others):
        torch.manual_seed(0)  # of the background
        losses.append(model.get_loss_dict(outputs, batch, metrics))
    assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())


def test_the_proposal_loss_is_left_out_where_nothing_learns_from_it(monkeypatch: pytest.MonkeyPatch):
    asked = []
    known = nerfacto.interlevel_loss
    monkeypatch.setattr(nerfacto, "interlevel_loss", lambda *parts: asked.append(1) or known(*parts))
    model = make_model(shaping_start_step=1 << 10).train()
    model.log_every, sampler = 10, model.proposal_sampler
    batch = {"image": torch.rand(RAYS, 3)}
    for step, learns, expected in ((21, True, 1), (21, False, 0), (20, False, 1)):
        asked.clear()
        model.step, sampler._step, sampler._steps_since_update = step, 100, 1 << 10 if learns else 0
        outputs = model(rays())
        losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
        assert len(asked) == expected
        assert losses["interlevel_loss"].requires_grad == learns
        assert bool(losses["interlevel_loss"] > 0) == bool(expected)


@pytest.mark.parametrize("detach", [True, False])
def test_detached_weights_keep_shaping_away_from_density(detach: bool):
    model = make_model(shaping_start_step=0, detach_rendering_weights=detach).train()
    outputs = model(rays())
    weights = outputs["weights_list"][-1]
    weights.retain_grad()
    outputs["jacobians"].sum().backward()
    assert (weights.grad is None) == detach


def test_a_share_of_the_shaping_gradient_goes_below_the_trunk():
    gradients = []
    for share in (1.0, 0.25, 0.0):
        model = make_model(shaping_start_step=0, shaping_gradient_below=share, shaped_layers="rgb").train()
        torch.manual_seed(5)
        outputs = model(rays())
        outputs["jacobians"].square().sum().backward()
        parameters = dict(model.field.named_parameters())
        base = parameters["mlp_base.model.1.layers.0.weight"].grad
        gradients.append((base, parameters["mlp_head.trunk.layers.0.weight"].grad, outputs["jacobians"].detach()))
    whole, quarter, none = (base for base, _, _ in gradients)
    assert not none.any()
    assert torch.allclose(0.25 * whole, quarter, rtol=1e-4, atol=1e-9)
    assert all(torch.allclose(gradients[0][2], jacobians, atol=1e-6) for _, _, jacobians in gradients)
    assert all(float(trunk.norm()) > 0 for _, trunk, _ in gradients)


def test_num_shaping_rays_picks_evenly_spaced_rays():
    model = make_model(shaping_start_step=0, num_shaping_rays=4).train()
    outputs = model(rays())
    assert outputs["anchors"].tolist() == [0, 4, 7, 11]
    assert outputs["jacobians"].shape[0] == 4
    assert model.num_anchors == 4


def test_construction_needs_no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model went to the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = make_model()
    assert not any("lpips" in key for key in model.state_dict())


def test_missing_lpips_weights_give_one_warning_and_no_metric(monkeypatch: pytest.MonkeyPatch):
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", offline)
    model = make_model().eval()
    picture = torch.rand(16, 16, 3)
    ones = torch.ones(16, 16, 1)
    outputs = {"rgb": picture, "accumulation": ones, "depth": ones, "prop_depth_0": ones, "prop_depth_1": ones}
    with pytest.warns(UserWarning, match="LPIPS is left out"):
        metrics, _ = model.get_image_metrics_and_images(outputs, {"image": picture})
    assert metrics.keys() == {"psnr", "ssim"}


def test_config_defaults_are_nerfactos_where_they_are_not_ours():
    from nerfstudio.models.nerfacto import NerfactoModelConfig

    ours, stock = JacobiNeRFModelConfig(), NerfactoModelConfig()
    assert all(
        getattr(ours, name) == value for name, value in vars(stock).items() if name not in ("_target", "implementation")
    )
