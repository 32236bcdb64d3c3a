"""Training a feature field on a frozen field, in seconds to minutes; the loop serves whatever is trained on one.

Letters of `jacobian.py`. The field is asked once per ray; the loop then runs on what it answered.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.progress import Progress, TaskID
from torch import Tensor

from jacobinerf_ns.core.jacobian import effective_weights
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.labels.tracer import in_eval_mode
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.progress import progress_bar
from jacobinerf_ns.tasks.feature_field.field import FeatureField, FeatureFieldShape, unit_positions

PARTS = 4
"""Points that stand for the samples of a ray while features are distilled."""
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
    """Cut each ray's weight into equal parts along the ray, each put at the weighted mean of its samples' positions.

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
    """Draw pixels as training draws them (so masked ones are left out), and trace where their rays end.

    Raises:
        UserError: the run was opened without its photos.
    """
    model, data = pipeline.model, pipeline.datamanager
    if data.config.train_num_images_to_sample_from == 1 < len(data.train_dataset):
        raise UserError(
            "this run was opened without its photos, and pixels are drawn from all: open_run(..., load_photos=True)"
        )
    task = progress.add_task("Tracing training pixels", total=count)
    drawn: list[RayPool] = []
    with in_eval_mode(model), seeded(seed, model.device):
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
    """Distil the teacher's features of the training photographs into a feature field; the trained field stays frozen.

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
    with progress_bar() as progress, seeded(seed, model.device):
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
        optimise(
            optimiser, loss, len(traced.pixels), steps, rays, progress.add_task("Distilling", total=steps), progress
        )
    return feature_field.requires_grad_(False).eval()


def optimise(
    optimiser: torch.optim.Optimizer,
    loss: Callable[[Int[Tensor, "rays"]], Float[Tensor, ""]],
    count: int,
    steps: int,
    rays: int,
    task: TaskID,
    progress: Progress,
) -> None:
    """Step on batches of `rays` of `count` rays, or all of them where there are no more, by a falling learning rate."""
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
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from a seed; those of the rest of the program go on as if nothing had been drawn."""
    before = random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
