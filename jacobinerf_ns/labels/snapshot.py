"""Labels as they are at one moment: immutable, so that a frame is of one piece whatever a user clicks meanwhile."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor

from jacobinerf_ns.annotations.schema import Edit, Label, Seed
from jacobinerf_ns.core.plateaus import Plateaus, moved
from jacobinerf_ns.core.propagation import (
    Decision,
    PropagationConfig,
    Prototypes,
    common_threshold,
    decide,
    decide_view,
)


class Mark(NamedTuple):
    """Where a seed is in the scene."""

    seed: Seed
    point: tuple[float, float, float]
    """What it hits, scene units; of a region the hit nearest to their mean."""
    hit: bool
    """Whether it hits a surface."""


RELEVANCY_PIXELS = 2048
"""Random training pixels whose relevancy a text seed keeps."""


class Relevancy(NamedTuple):
    """How likely words are at random training pixels: what the output `relevancy` is made of."""

    vectors: Float[Tensor, "pixels dims"]
    """Their unit Jacobians."""
    values: Float[Tensor, "pixels"]
    """0..1."""


class SurfacePool(NamedTuple):
    """Responses at surface points all over the scene: what a pixel's own response is smoothed with."""

    tree: KDTree
    """Of the points, scene units."""
    vectors: Float[Tensor, "pixels dims"]
    """Their Jacobians."""
    responses: Float[Tensor, "pixels labels"]


class Connection(NamedTuple):
    """How far labels' responses carry over the surfaces of the scene."""

    tree: KDTree
    """Of surface points, scene units."""
    carried: Float[Tensor, "pixels labels"]
    """What carries to these points."""


class Answers(NamedTuple):
    """What rays answer to labels."""

    responses: Float[Tensor, "*pixels labels"]
    """How much each resonates with each label, 0..1 (for the paper's decision: raw, in units of colour)."""
    connected: Float[Tensor, "*pixels labels"]
    """What of it hangs together with the label's seeds; that is what a selection is made of."""


@dataclass(frozen=True)
class LabelSnapshot:
    """Labels as they are at one moment, for one state of the weights."""

    labels: tuple[Label, ...]
    prototypes: Prototypes
    config: PropagationConfig = field(default_factory=PropagationConfig)
    centres: Prototypes | None = None
    """Refined means of labels that were marked with many pixels, which vote with them; None where there are few."""
    scale: Float[Tensor, "labels"] | None = None
    """For `raw`: the seeds' own mean response per label, which a response is a share of; None where it is not used."""
    pool: SurfacePool | None = None
    connection: Connection | None = None
    """None where selections are all that responds."""
    selected: int = 0
    """Position of the label shown as `resonance` and `selection`."""
    opacity: float = 0.6
    edits: tuple[Edit, ...] = ()
    marks: tuple[Mark, ...] = ()
    plateaus: tuple[Plateaus, ...] = ()
    """Of each label, the levels at which it can be selected; none where nothing is known of the scene."""
    relevancy: Relevancy | None = None
    """Of the words that the selected label was asked for in; None where it was not."""

    def levels(self, position: int) -> Plateaus:
        """Return the levels that a label can be selected at, one at least."""
        return self.plateaus[position] if self.plateaus else Plateaus((common_threshold(self.config),), 0)

    @property
    def alone(self) -> bool:
        """Whether one label at most has seeds that say where it is: it competes with nobody."""
        known = {mark.seed.label for mark in self.marks if not mark.seed.negative}
        return len(known or self.labels) == 1

    def thresholds(self) -> list[float]:
        """Return each label's threshold: that of the level in use, moved by `strictness`."""
        found = []
        for position, label in enumerate(self.labels):
            plateaus = self.levels(position)
            found.append(moved(plateaus.levels[plateaus.used(label.grow)], self.config.strictness))
        return found

    def decide(self, found: Answers) -> Decision:
        """Return the labels of single rays from their answers; the paper's rule is about whole views."""
        return decide(found.responses, self.config, self.thresholds(), self.alone, found.connected)

    def decide_view(self, found: Answers) -> Decision:
        """Return the labels of a whole view from its answers."""
        return decide_view(found.responses, self.config, self.thresholds(), self.alone, found.connected)

    def mask_names(self) -> list[str]:
        """Output name of each label's mask: `mask_` and the name in letters that any file system takes.

        nerfstudio paints every output with "depth" in its name as a depth map; such a label, and a second one of the
        same letters, goes by its id.
        """
        slugs = [re.sub(r"[^a-z0-9]+", "_", label.name.lower()).strip("_") for label in self.labels]
        plain = [bool(slug) and "depth" not in slug and slugs.count(slug) == 1 for slug in slugs]
        kept = [slug if ok else f"id_{label.id}" for slug, ok, label in zip(slugs, plain, self.labels, strict=True)]
        return [f"mask_{name}" for name in kept]


class LabelView(NamedTuple):
    """A view and its labels as numbers."""

    rgb: Float[Tensor, "height width 3"]
    """The rendering, 0..1."""
    depth: Float[Tensor, "height width 1"]
    """Along each ray, scene units."""
    responses: Float[Tensor, "height width labels"]
    connected: Float[Tensor, "height width labels"]
    decision: Decision
