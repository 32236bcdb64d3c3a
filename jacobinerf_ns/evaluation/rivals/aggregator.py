"""The dense setting's aggregator: a small network from responses to labels.

Letters of `propagation.py`. With a whole view labelled, each label has many prototypes, and a network can learn which
of them to believe (paper, section 5; there trained for 200,000 steps, here for seconds).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jacobinerf_ns.core.jacobian import cosine_response
from jacobinerf_ns.evaluation.exercise import Exercise, Fitted, TrainedFields

WIDTH = 32
"""Hidden units."""
SPREAD_EPS = 1e-3
"""Smallest spread that responses to a prototype are divided by."""


def fit(fields: TrainedFields, exercise: Exercise) -> Fitted:
    """Fit a network to the responses of the labelled pixels to each other."""
    seen = fields.look(exercise.split, exercise.pixels)
    network = train_aggregator(seen.shaped.jacobians, exercise.positions, len(exercise.ids))
    return Fitted(lambda seen: network(seen.shaped.jacobians))


class Aggregator(nn.Module):
    """Cosine responses to fixed prototypes, standardised, through three layers to a probability per label."""

    prototypes: Float[Tensor, "prototypes dims"]
    mean: Float[Tensor, "prototypes"]
    spread: Float[Tensor, "prototypes"]
    """Of responses to each prototype."""

    def __init__(
        self, prototypes: Float[Tensor, "prototypes dims"], example: Float[Tensor, "pixels dims"], num_labels: int
    ) -> None:
        """Take mean and spread of the responses from `example`."""
        super().__init__()
        responses = cosine_response(example, prototypes)
        self.register_buffer("prototypes", prototypes)
        self.register_buffer("mean", responses.mean(0))
        self.register_buffer("spread", responses.std(0).clamp(min=SPREAD_EPS))
        sizes = (len(prototypes), WIDTH, WIDTH)
        hidden = [part for i in range(2) for part in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(WIDTH, num_labels))

    def forward(self, vectors: Float[Tensor, "pixels dims"]) -> Float[Tensor, "pixels labels"]:
        """Return logits of pixels from their vectors (Jacobians, or any vectors that the prototypes are of)."""
        responses = cosine_response(vectors, self.prototypes)
        return self.layers((responses - self.mean) / self.spread)


def train_aggregator(
    vectors: Float[Tensor, "pixels dims"],
    labels: Int[Tensor, "pixels"],
    num_labels: int,
    per_label: int = 20,
    steps: int = 300,
    seed: int = 0,
) -> Aggregator:
    """Train an aggregator on labelled pixels.

    Half of them give the prototypes and the other half are learnt from: a pixel's response to itself is 1 and would
    teach nothing. `per_label` random prototypes stand for each label (paper: 20). Deterministic under `seed`.
    """
    generator, labels = torch.Generator().manual_seed(seed), labels.to(vectors.device)
    order = torch.randperm(len(vectors), generator=generator).to(labels.device)
    half = max(1, len(order) // 2)
    first, second = order[:half], order[half:] if len(order) > half else order
    picks = [first[labels[first] == k][:per_label] for k in labels[first].unique().tolist()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Aggregator(vectors[torch.cat(picks)], vectors[second], num_labels).to(vectors.device)
    optimiser = torch.optim.AdamW(network.layers.parameters(), lr=3e-3, weight_decay=1e-2)
    with torch.enable_grad():
        for _ in range(steps):
            batch = second[torch.randint(len(second), (512,), generator=generator).to(second.device)]
            loss = F.cross_entropy(network(vectors[batch].detach()), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.requires_grad_(False).eval()
