"""Feature field, semantic head and probe against slow loops, hand-computed cases and their own promises."""

import random

import pytest
import torch
import torch.nn.functional as F
from rich.progress import Progress
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.core.jacobian import effective_weights
from jacobinerf_ns.evaluation.rivals import semantic_head
from jacobinerf_ns.evaluation.rivals.linear_probe import linear_probe, rendered_activations
from jacobinerf_ns.evaluation.rivals.semantic_head import SemanticHead, train_semantic_head
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.labels.traces import Traced
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.tasks.feature_field import training as head_training
from jacobinerf_ns.tasks.feature_field.field import (
    FeatureField,
    FeatureFieldShape,
    unit_positions,
)
from jacobinerf_ns.tasks.feature_field.training import condense, distil

SMALL = FeatureFieldShape(num_levels=3, max_res=32, log2_hashmap_size=10, hidden=16)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> JacobiNeRFPipeline:
    folder = tmp_path_factory.mktemp("heads")
    config = tiny_config(tiny_capture(folder / "room"), folder, steps=30)
    config.pipeline.datamanager.extractor = OracleConfig(noise=0.0, patch_size=2)
    trainer = start(config)
    trainer.train()
    trainer.pipeline.eval()
    return trainer.pipeline


@pytest.fixture(scope="module")
def traced(pipeline: JacobiNeRFPipeline) -> Traced:
    with torch.no_grad():
        return pipeline.model.trace(pipeline.random_training_rays(7))


def weighted_sum(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    rows = []
    for ray in range(len(weights)):
        total = torch.zeros(values.shape[-1])
        for sample in range(weights.shape[1]):
            total = total + weights[ray, sample] * values[ray, sample]
        rows.append(total)
    return torch.stack(rows)


def test_rendered_features_are_the_weighted_sum_of_the_samples_features(pipeline, traced):
    field = FeatureField(pipeline.model.field, dims=5, shape=SMALL)
    torch.nn.init.normal_(field.encoding.hash_table)
    field.scale.fill_(3.0)
    positions = unit_positions(pipeline.model.field, traced.trace.ray_samples)
    samples = field.scale * field.output(field._hidden(positions))
    assert samples.shape == (7, 6, 5)
    closed = traced._replace(background="last_sample")
    weights = effective_weights(traced.weights, "last_sample")
    assert torch.allclose(field.rendered(closed), weighted_sum(weights, samples), atol=1e-5)
    for background in ("black", "random"):
        light = traced._replace(background=background)
        assert torch.allclose(field.rendered(light), weighted_sum(traced.weights, samples), atol=1e-5)


def test_rendered_logits_are_the_weighted_sum_of_the_samples_logits(pipeline, traced):
    head = SemanticHead(pipeline.model.field, num_labels=4)
    geometry = pipeline.model.field.get_density(traced.trace.ray_samples)[1].detach()
    head.standardise(geometry)
    seen = (geometry - head.mean) / head.spread
    assert torch.allclose(seen.flatten(0, 1).mean(0), torch.zeros(15), atol=1e-4)
    assert torch.allclose(seen.flatten(0, 1).std(0, correction=0), torch.ones(15), atol=1e-3)
    positions = unit_positions(pipeline.model.field, traced.trace.ray_samples)
    samples = head.output(head._hidden(geometry, positions))
    assert samples.shape == (7, 6, 4)
    weights = effective_weights(traced.weights, traced.background)
    assert torch.allclose(head.rendered(traced), weighted_sum(weights, samples), atol=1e-5)
    assert (samples[0, 0] - samples[1, -1]).abs().max() > 1e-4


def test_rendered_activations_are_the_weighted_sum(traced):
    expected = weighted_sum(effective_weights(traced.weights, traced.background), traced.trace.activations)
    assert torch.allclose(rendered_activations(traced), expected, atol=1e-5)


@pytest.mark.parametrize("contracted", [True, False])
def test_positions_are_those_that_the_field_looks_up(pipeline, traced, contracted, monkeypatch):
    field, samples = pipeline.model.field, traced.trace.ray_samples
    if not contracted:
        monkeypatch.setitem(field._modules, "spatial_distortion", None)
    field.get_density(samples)
    looked_up = field._sample_locations.detach()
    outside = (looked_up == 0).all(-1)
    assert bool(outside.any()) is not contracted  # rays leave the box, and never the contracted space
    assert torch.equal(unit_positions(field, samples), looked_up)


def test_heads_keep_the_field_out_of_their_state(pipeline):
    field, head = FeatureField(pipeline.model.field, 5, SMALL), SemanticHead(pipeline.model.field, 4)
    frozen = {id(parameter) for parameter in pipeline.model.parameters()}
    for module in (field, head):
        assert not frozen & {id(parameter) for parameter in module.parameters()}
        assert not any("mlp" in name for name in module.state_dict())


def test_condensed_rays_by_hand():
    positions = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])[None]
    weights, points = condense(torch.tensor([[0.2, 0.2, 0.4]]), positions, parts=2)
    assert torch.allclose(weights, torch.tensor([[0.4, 0.4]]))
    assert torch.allclose(points[0, :, 0], torch.tensor([0.5, 2.0]))
    weights, points = condense(torch.tensor([[0.1, 0.9, 0.0]]), positions, parts=2)
    assert torch.allclose(points[0, :, 0], torch.tensor([0.8, 1.0]))


def test_condensing_keeps_weight_and_mean_position():
    torch.manual_seed(0)
    weights, positions = torch.rand(20, 11) ** 6, torch.rand(20, 11, 3)
    few, points = condense(weights, positions, parts=4)
    assert few.shape == (20, 4)
    assert torch.allclose(few.sum(-1), weights.sum(-1), atol=1e-6)
    assert torch.allclose((few[..., None] * points).sum(1), (weights[..., None] * positions).sum(1), atol=1e-5)
    nothing, points = condense(torch.zeros(1, 11), positions[:1], parts=4)
    assert not nothing.any()
    assert torch.isfinite(points).all()


def test_distilling_learns_the_teacher_and_leaves_the_field_alone(pipeline):
    before = {name: tensor.clone() for name, tensor in pipeline.state_dict().items()}
    pipeline.train()
    pipeline.zero_grad()
    state, word = torch.get_rng_state(), random.getstate()
    field = distil(pipeline, steps=300, rays=128, pool=1000, shape=SMALL)
    assert pipeline.model.training
    assert torch.equal(state, torch.get_rng_state())
    assert word == random.getstate()
    pipeline.eval()
    assert [name for name, tensor in pipeline.state_dict().items() if not torch.equal(before[name], tensor)] == []
    assert all(parameter.grad is None for parameter in pipeline.parameters())
    pixels, features = seen_pixels(pipeline)
    rendered = field.rendered(look(pipeline, pixels))
    constant = F.cosine_similarity(features.mean(0, keepdim=True), features).mean()
    assert F.cosine_similarity(rendered, features).mean() > constant + 0.05  # the geometry is 30 steps old


def test_distilling_is_decided_by_its_seed(pipeline):
    one, same, other = (
        distil(pipeline, steps=3, rays=32, pool=100, seed=seed, shape=SMALL).output.weight for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_traced_pixels_belong_to_their_points(pipeline):
    with Progress(disable=True) as progress:
        pool = head_training.trace_training_pixels(pipeline, 100, 0, progress)
    assert pool.pixels.shape == (100, 3)
    traced = look(pipeline, pool.pixels)
    weights = effective_weights(traced.weights, traced.background)
    expected = condense(weights, unit_positions(pipeline.model.field, traced.trace.ray_samples), head_training.PARTS)
    assert torch.allclose(pool.weights, expected[0], atol=1e-5)
    assert torch.allclose(pool.positions, expected[1], atol=1e-4)


def test_semantic_head_learns_labels_and_leaves_the_field_alone(pipeline):
    before = {name: tensor.clone() for name, tensor in pipeline.state_dict().items()}
    pixels, _ = seen_pixels(pipeline)
    labels = (pixels[:, 2] > 11).long()  # left and right half of one image
    rays = pipeline.datamanager.train_ray_generator(pixels)
    head = train_semantic_head(pipeline, rays, labels, num_labels=2, steps=150)
    assert [name for name, tensor in pipeline.state_dict().items() if not torch.equal(before[name], tensor)] == []
    logits = head.rendered(look(pipeline, pixels))
    assert (logits.argmax(-1) == labels).float().mean() > 0.9
    again = train_semantic_head(pipeline, rays, labels, num_labels=2, steps=150)
    assert torch.equal(again.output.weight, head.output.weight)


def test_semantic_head_bounds_its_memory(pipeline, monkeypatch):
    monkeypatch.setattr(semantic_head, "MAX_LABELLED_RAYS", 50)
    pixels, _ = seen_pixels(pipeline)
    labels = (pixels[:, 2] > 11).long()
    rays = pipeline.datamanager.train_ray_generator(pixels)
    sizes = []
    trace = pipeline.model.trace
    monkeypatch.setattr(pipeline.model, "trace", lambda bundle: sizes.append(len(bundle)) or trace(bundle))
    head = train_semantic_head(pipeline, rays, labels, num_labels=2, steps=150)
    assert sum(sizes) == 50
    # The rays that were chosen still go with their labels.
    assert (head.rendered(look(pipeline, pixels)).argmax(-1) == labels).float().mean() > 0.8


def test_probe_separates_directions_whatever_their_length():
    torch.manual_seed(0)
    labels = torch.arange(3).repeat(30)
    centres = torch.eye(3, 8)
    vectors = centres[labels] + 0.1 * torch.randn(90, 8)
    probe = linear_probe(vectors, labels, num_labels=3)
    assert torch.equal(probe.logits(vectors).argmax(-1), labels)
    lengths = torch.rand(90, 1) * 50 + 0.1
    assert torch.allclose(probe.logits(vectors * lengths), probe.logits(vectors), atol=1e-4)
    assert torch.allclose(linear_probe(vectors * lengths, labels, 3).weight, probe.weight, atol=1e-3)


def test_probe_is_at_the_minimum_of_its_loss():
    torch.manual_seed(1)
    vectors, labels = torch.randn(40, 5), torch.randint(3, (40,))
    probe = linear_probe(vectors, labels, num_labels=3, l2=0.1)
    inputs = (F.normalize(vectors, dim=-1) - probe.mean) / probe.spread
    probabilities = torch.softmax(inputs @ probe.weight.T + probe.bias, -1)
    error = (probabilities - F.one_hot(labels, 3)) / 40
    assert torch.allclose(error.T @ inputs + 0.1 * probe.weight, torch.zeros(3, 5), atol=1e-4)
    assert torch.allclose(error.sum(0), torch.zeros(3), atol=1e-4)


@pytest.mark.parametrize("present", [(0, 1), (0, 2), (0, 1, 3)])
def test_probe_of_labels_that_do_not_all_occur_is_at_the_same_minimum(present: tuple[int, ...]):
    torch.manual_seed(2)
    vectors, chosen = torch.randn(30, 4), torch.tensor(present)
    probe = linear_probe(vectors, chosen[torch.arange(30) % len(present)], num_labels=4, l2=0.1)
    few = linear_probe(vectors, torch.arange(30) % len(present), num_labels=len(present), l2=0.1)
    assert torch.allclose(probe.logits(vectors)[:, chosen], few.logits(vectors), atol=1e-5)
    inputs = (F.normalize(vectors, dim=-1) - few.mean) / few.spread
    target = F.one_hot(torch.arange(30) % len(present))
    error = (few.logits(vectors).softmax(-1) - target) / 30
    assert torch.allclose(error.T @ inputs, -0.1 * few.weight, atol=1e-4)
    assert set(probe.logits(vectors).argmax(-1).tolist()) <= set(present)


def test_probe_by_one_click_each_is_the_nearer_click():
    clicks = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    probe = linear_probe(clicks, torch.tensor([0, 1]), num_labels=2)
    assert probe.logits(torch.tensor([[5.0, 4.0], [0.1, 0.2]])).argmax(-1).tolist() == [0, 1]
    one = linear_probe(clicks[:1], torch.tensor([0]), num_labels=1)
    assert torch.isfinite(one.logits(clicks)).all()


def seen_pixels(pipeline: JacobiNeRFPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """All pixels of the first training image, and the teacher's features there."""
    rows, cols = torch.meshgrid(torch.arange(18), torch.arange(24), indexing="ij")
    pixels = torch.stack([torch.zeros_like(rows), rows, cols], -1).view(-1, 3)
    return pixels, pipeline.datamanager.teacher_store("train").sample(pixels)


@torch.no_grad()
def look(pipeline: JacobiNeRFPipeline, pixels: torch.Tensor) -> Traced:
    return pipeline.model.trace(pipeline.datamanager.train_ray_generator(pixels))
