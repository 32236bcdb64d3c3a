"""Training a feature field and a semantic head on a frozen field, in seconds to minutes.

Letters of `jacobian.py`. The field is asked once per ray; the loops then run on what it answered.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nerfstudio.cameras.rays import RayBundle
from rich.progress import Progress, TaskID
from torch import Tensor

from jacobinerf_ns.core.jacobian import effective_weights
from jacobinerf_ns.labels.tracer import in_eval_mode
from jacobinerf_ns.model import JacobiNeRFModel
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.progress import progress_bar
from jacobinerf_ns.tasks.feature_field.heads import (
    FeatureField,
    FeatureFieldShape,
    SemanticHead,
    geometry_features,
    unit_positions,
)

PARTS = 4
"""Points that stand for the samples of a ray while features are distilled."""
MAX_LABELLED_RAYS = 65_536
"""Labelled rays that a semantic head is trained on; of more, a random choice. Bounds the memory of their samples."""
_LAST_RATE = 0.1
"""What is left of the learning rate at the end."""
_NO_MASS = 1e-12


class RayPool(NamedTuple):
    """Rays of training pixels, and where they end in space."""

    pixels: Int[Tensor, "rays 3"]
    """(image, row, col), on the CPU."""
    weights: Float[Tensor, "rays parts"]
    positions: Float[Tensor, "rays parts 3"]
    """In 0..1, as the field's own hash grid has them."""


def condense(
    weights: Float[Tensor, "rays samples"], positions: Float[Tensor, "rays samples 3"], parts: int
) -> tuple[Float[Tensor, "rays parts"], Float[Tensor, "rays parts 3"]]:
    """Cuts each ray's weight into equal parts along the ray, each put at the weighted mean of its samples' positions.

    Samples crowd around the surface, where features hardly change: a few points do for many samples. Sum and mean
    position of the weights stay as they are. Rays without weight get weights of 0.
    """
    total = weights.sum(dim=-1, keepdim=True)
    ends = weights.cumsum(dim=-1)
    cuts = torch.linspace(0.0, 1.0, parts + 1, device=weights.device) * total
    upper = torch.minimum(ends[:, None, :], cuts[:, 1:, None])
    lower = torch.maximum((ends - weights)[:, None, :], cuts[:, :-1, None])
    share = (upper - lower).clamp(min=0.0)
    mass = share.sum(dim=-1, keepdim=True)
    return (total / parts).expand(-1, parts), share @ positions / mass.clamp(min=_NO_MASS)


@torch.no_grad()
def trace_training_pixels(pipeline: JacobiNeRFPipeline, count: int, seed: int, progress: Progress) -> RayPool:
    """Draws pixels as training draws them (so masked ones are left out), and asks the field where their rays end."""
    model, data = pipeline.model, pipeline.datamanager
    task = progress.add_task("Tracing training pixels", total=count)
    drawn: list[RayPool] = []
    with in_eval_mode(model), _seeded(seed, model.device):
        while not progress.tasks[task].finished:
            rays, batch = data.next_train(0)
            traced = model.trace(rays.to(model.device))
            weights = effective_weights(traced.weights, traced.background)
            parts = condense(weights, unit_positions(model.field, traced.trace.ray_samples), PARTS)
            drawn.append(RayPool(batch["indices"].cpu(), *parts))
            progress.advance(task, len(rays))
    return RayPool(*(torch.cat(column)[:count] for column in zip(*drawn, strict=True)))


def distil(
    pipeline: JacobiNeRFPipeline,
    steps: int = 1000,
    rays: int = 1024,
    learning_rate: float = 1e-2,
    pool: int = 131_072,
    seed: int = 0,
    shape: FeatureFieldShape | None = None,
) -> FeatureField:
    """Distils the teacher's features of the training photographs into a feature field; the trained field stays frozen.

    The loss is the mean squared error of rendered features, as in DFF. Its minimum is the *mean* of what the teacher
    says of one place in different photographs: that is what takes the noise off. A cosine loss, which was measured too,
    gives a photograph with a weak feature as much say as one with a clear feature, and came out no better.

    Args:
        pipeline: of a trained run.
        steps: of the optimiser.
        rays: per step, drawn from the pool.
        learning_rate: of Adam at the start; it falls to a tenth.
        pool: training pixels that are traced once. Of few, the field learns the teacher's noise by heart.
        seed: of pixels and weights; equal seeds, equal fields.
        shape: size of the field.

    Raises:
        UserError: the teacher's features cannot be had.
    """
    model, store = pipeline.model, pipeline.datamanager.teacher_store("train")
    with progress_bar() as progress, _seeded(seed, model.device):
        traced = trace_training_pixels(pipeline, pool, seed, progress)
        feature_field = FeatureField(model.field, store.dim, shape).to(model.device)
        energy = store.sample(traced.pixels[: 16 * rays]).square().mean()
        feature_field.scale.copy_(energy.clamp(min=_NO_MASS).sqrt())

        def loss(batch: Int[Tensor, "rays"]) -> Float[Tensor, ""]:
            target = store.sample(traced.pixels[batch]).to(model.device)
            where = batch.to(model.device)
            features = feature_field.rendered_at(traced.weights[where], traced.positions[where])
            return F.mse_loss(features, target) / feature_field.scale.square()

        optimiser = torch.optim.Adam(feature_field.parameters(), lr=learning_rate, betas=(0.9, 0.99), eps=1e-15)
        _optimise(
            optimiser, loss, len(traced.pixels), steps, rays, progress.add_task("Distilling", total=steps), progress
        )
    return feature_field.requires_grad_(False).eval()


def train_semantic_head(
    pipeline: JacobiNeRFPipeline,
    rays: RayBundle,
    labels: Int[Tensor, "rays"],
    num_labels: int,
    steps: int = 400,
    batch: int = 1024,
    learning_rate: float = 1e-2,
    weight_decay: float = 1.0,
    seed: int = 0,
) -> SemanticHead:
    """Trains a semantic head on labelled rays by cross-entropy of rendered logits; the trained field stays frozen.

    Args:
        pipeline: of a trained run.
        rays: of the labelled pixels.
        labels: of each ray, 0..num_labels−1.
        num_labels: how many there are.
        steps: of the optimiser.
        batch: rays per step; all of them where there are fewer.
        learning_rate: of AdamW at the start; it falls to a tenth.
        weight_decay: of AdamW. A few clicks say little, and a large one keeps the network from making much of it.
        seed: of weights and batches.
    """
    model = pipeline.model
    assert len(rays) == len(labels) > 0
    with progress_bar() as progress, _seeded(seed, model.device):
        if len(rays) > MAX_LABELLED_RAYS:
            chosen = torch.randperm(len(rays))[:MAX_LABELLED_RAYS]
            rays, labels = rays[chosen.to(rays.origins.device)], labels[chosen.to(labels.device)]
        seen = _trace_labelled(model, rays)
        labels = labels.to(model.device)
        head = SemanticHead(model.field, num_labels).to(model.device)
        head.standardise(seen.geometry)

        def loss(picked: Int[Tensor, "rays"]) -> Float[Tensor, ""]:
            where = picked.to(model.device)
            logits = head.rendered_at(seen.weights[where], seen.geometry[where], seen.positions[where])
            return F.cross_entropy(logits, labels[where])

        optimiser = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
        task = progress.add_task("Training the semantic head", total=steps)
        _optimise(optimiser, loss, len(labels), steps, batch, task, progress)
    return head.requires_grad_(False).eval()


class _Samples(NamedTuple):
    weights: Float[Tensor, "rays samples"]
    geometry: Float[Tensor, "rays samples geometry"]
    positions: Float[Tensor, "rays samples 3"]


@torch.no_grad()
def _trace_labelled(model: JacobiNeRFModel, rays: RayBundle) -> _Samples:
    parts: list[_Samples] = []
    with in_eval_mode(model):
        for chunk in model.chunks(rays):
            traced = model.trace(chunk)
            parts.append(
                _Samples(
                    effective_weights(traced.weights, traced.background),
                    geometry_features(model.field, traced.trace),
                    unit_positions(model.field, traced.trace.ray_samples),
                )
            )
    return _Samples(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _optimise(
    optimiser: torch.optim.Optimizer,
    loss: Callable[[Int[Tensor, "rays"]], Float[Tensor, ""]],
    count: int,
    steps: int,
    rays: int,
    task: TaskID,
    progress: Progress,
) -> None:
    """Steps on batches of `rays` of `count` rays (all of them where there are no more), by a falling learning rate."""
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, _LAST_RATE ** (1.0 / max(steps, 1)))
    with torch.enable_grad():
        for _ in range(steps):
            batch = torch.randint(count, (rays,)) if count > rays else torch.arange(count)
            optimiser.zero_grad()
            loss(batch).backward()
            optimiser.step()
            schedule.step()
            progress.advance(task)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from a seed; those of the rest of the program go on as if nothing had been drawn."""
    before = random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
