"""A semantic head on the frozen geometry, trained with cross-entropy on the labelled pixels (Semantic-NeRF).

Letters of `jacobian.py`. The head answers per sample, and is rendered with the frozen field's weights; density and
colour never change.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.encodings import NeRFEncoding
from torch import Tensor, nn

from jacobinerf_ns.core.jacobian import effective_weights
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, TrainedFields
from jacobinerf_ns.field import FieldTrace, JacobiNeRFField
from jacobinerf_ns.labels.tracer import in_eval_mode, trace_all
from jacobinerf_ns.labels.traces import Traced
from jacobinerf_ns.model import JacobiNeRFModel
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.progress import progress_bar
from jacobinerf_ns.tasks.feature_field.field import linear_after_rendering, unit_positions
from jacobinerf_ns.tasks.feature_field.training import optimise, seeded

MAX_LABELLED_RAYS = 65_536
"""Labelled rays that a semantic head is trained on; of more, a random choice. Bounds the memory of their samples."""
SPREAD_EPS = 1e-6
"""Smallest spread that geometry features are divided by."""


def fit(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit a head to the labelled pixels."""
    seen = fields.look(exercise.split, exercise.pixels)
    head = train_semantic_head(fields.shaped, seen.rays, exercise.positions, len(exercise.ids))
    return Fitted(lambda seen: head.rendered(seen.shaped))


class SemanticHead(nn.Module):
    """Semantic-NeRF's head on frozen geometry: logits per sample from geometry features and the position, rendered."""

    mean: Float[Tensor, "geometry"]
    spread: Float[Tensor, "geometry"]
    """Of the geometry features; what the network sees is standardised."""

    def __init__(self, frozen: JacobiNeRFField, num_labels: int, frequencies: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self._frozen = (frozen,)
        self.encoding = NeRFEncoding(3, frequencies, 0, frequencies - 1, include_input=True, implementation="torch")
        inputs = self.encoding.get_out_dim() + frozen.geo_feat_dim
        self.trunk = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.output = nn.Linear(hidden, num_labels)
        self.register_buffer("mean", torch.zeros(frozen.geo_feat_dim))
        self.register_buffer("spread", torch.ones(frozen.geo_feat_dim))

    def standardise(self, geometry: Float[Tensor, "*samples geometry"]) -> None:
        """Take mean and spread from examples."""
        flat = geometry.flatten(0, -2)
        self.mean.copy_(flat.mean(0))
        self.spread.copy_(flat.std(0, correction=0).clamp(min=SPREAD_EPS))

    def rendered(self, traced: Traced) -> Float[Tensor, "rays labels"]:
        """Return Σ_s w_s logits_s of each pixel; their softmax is the probability of each label (paper, section 3)."""
        weights = effective_weights(traced.weights, traced.background)
        positions = unit_positions(self._frozen[0], traced.trace.ray_samples)
        return self.rendered_at(weights, geometry_features(self._frozen[0], traced.trace), positions)

    def rendered_at(
        self,
        weights: Float[Tensor, "rays samples"],
        geometry: Float[Tensor, "rays samples geometry"],
        positions: Float[Tensor, "rays samples 3"],
    ) -> Float[Tensor, "rays labels"]:
        """Return the same from what was kept of a field query, with weights that hold the background's share."""
        return linear_after_rendering(self.output, weights, self._hidden(geometry, positions))

    def _hidden(
        self, geometry: Float[Tensor, "rays samples geometry"], positions: Float[Tensor, "rays samples 3"]
    ) -> Float[Tensor, "rays samples units"]:
        return self.trunk(torch.cat([self.encoding(positions), (geometry - self.mean) / self.spread], dim=-1))


@torch.no_grad()
def geometry_features(field: JacobiNeRFField, trace: FieldTrace) -> Float[Tensor, "rays samples geometry"]:
    """Return what the field's density network says about each sample besides its density."""
    return field.get_density(trace.ray_samples)[1].float()


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
    """Train a semantic head on labelled rays by cross-entropy of rendered logits; the trained field stays frozen.

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
    with progress_bar() as progress, seeded(seed, model.device):
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
        optimise(optimiser, loss, len(labels), steps, batch, task, progress)
    return head.requires_grad_(False).eval()


class _Samples(NamedTuple):
    weights: Float[Tensor, "rays samples"]
    geometry: Float[Tensor, "rays samples geometry"]
    positions: Float[Tensor, "rays samples 3"]


@torch.no_grad()
def _trace_labelled(model: JacobiNeRFModel, rays: RayBundle) -> _Samples:
    def pick(traced: Traced) -> _Samples:
        return _Samples(
            effective_weights(traced.weights, traced.background),
            geometry_features(model.field, traced.trace),
            unit_positions(model.field, traced.trace.ray_samples),
        )

    with in_eval_mode(model):
        return trace_all(model, rays, pick)
