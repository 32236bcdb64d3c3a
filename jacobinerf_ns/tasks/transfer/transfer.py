"""Labels of one capture found in another: teacher features match, the other capture's own Jacobians propagate.

The teacher is only asked where a label is; a few of its clearest pixels become clicks in the other capture, as if a
person had made them, and everything after that is what happens to anybody's clicks.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.annotations.schema import Annotations, Click, Label, ViewSettings
from jacobinerf_ns.core import matching
from jacobinerf_ns.core.matching import LabelMatch
from jacobinerf_ns.core.propagation import kmeans
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.tasks.transfer.side import RenderedPixels, SeedPixels, Side, check_teachers

LOOKED_AT = 16_384
"""Pixels that are looked at in each capture."""
CHOICE = 8
"""Of how many times as many good pixels the clicks of a label are chosen, so that they lie far apart."""
PAIRS = 4800
"""Pixels of a photo that correspondences are drawn from."""


@dataclass(frozen=True)
class TransferSettings:
    """How labels are looked for."""

    clicks: int = 8
    """Clicks per label in the other capture."""
    prototypes: int = 8
    """Teacher features that stand for a label, at most: spherical k-means of its seeds' features. (More examples, taken
    from what the seeds label at home, were measured too: errors there spoil the prototypes.)"""
    min_confidence: float = 0.5
    """Labels of less confidence (0..1) are left out."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        for name in ("clicks", "prototypes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} given, expected at least 1")
        if not 0.0 <= self.min_confidence <= 1.0:
            raise UserError(f"--min-confidence {self.min_confidence:g} given, expected 0..1")


@dataclass(frozen=True)
class TransferredLabel:
    """What became of a label."""

    label: Label
    confidence: float
    """0..1: margin of the cosines against those at home, times the share of pixels that lead back to the label."""
    margin: float
    """Mean cosine of its best pixels to it, less that to any other label."""
    returned: float
    """Share of its best pixels whose nearest pixels at home mostly have the label."""
    pixels: Int[Tensor, "clicks 3"]
    """(image, row, col) of its clicks in the other capture; none where it is left out."""


@dataclass(frozen=True)
class Correspondence:
    """Pixels of two photos that are each other's nearest to the teacher."""

    images: tuple[int, int]
    """Position among the training photos of each capture."""
    pairs: Int[Tensor, "pairs 2 2"]
    """(row, col) here and there."""
    labels: Int[Tensor, "pairs"]
    """Position of the label that the pixel has at home, or `UNLABELLED`."""
    cosines: Float[Tensor, "pairs"]


@dataclass(frozen=True)
class Transferred:
    """Labels found in another capture."""

    found: tuple[TransferredLabel, ...]
    """All labels that have seeds, in the order of the file."""
    annotations: Annotations
    """Of the other capture; labels that were left out are not in it."""
    correspondence: Correspondence


@dataclass(frozen=True)
class _Home:
    """What is known of the labels in the capture they come from."""

    snapshot: LabelSnapshot | None
    pixels: Int[Tensor, "pixels 3"]
    features: Float[Tensor, "pixels features"]
    rendered: RenderedPixels
    seeds: SeedPixels
    seed_features: Float[Tensor, "seeds features"]


def transfer(
    source: Side, target: Side, annotations: Annotations, folder: Path, settings: TransferSettings
) -> Transferred:
    """Look for the labels of one run's annotations in another run's capture.

    Args:
        source: where the labels come from.
        target: where they are looked for.
        annotations: of the source.
        folder: which mask files of seeds are relative to.
        settings: how.

    Raises:
        UserError: there is nothing to transfer, features do not compare, or a seed cannot be found.
    """
    annotations = _with_seeds(annotations)
    check_teachers(source.run, target.run, source.own_teacher)
    home = _look_home(source, annotations, folder)
    pixels = target.grid(LOOKED_AT)
    features = target.features(pixels)
    if features.shape[1] != home.features.shape[1]:
        raise UserError(
            f"the teacher's features of {source.name} have {home.features.shape[1]} dimensions, those of {target.name} "
            f"{features.shape[1]}: there is no common feature space; use one teacher for both"
        )
    count = len(annotations.labels)
    vectors, owners = _prototypes(home, count, settings.prototypes)
    margin = matching.margins(matching.label_cosines(features, vectors, owners, count))
    back = _labels_back(home, features, count)
    match = matching.match_labels(margin, _own_margins(home, vectors, owners, count), back, settings.clicks * 4)
    clicks = _clicks(target, pixels, margin, back, match, settings)
    found = tuple(
        TransferredLabel(label, float(match.confidence[k]), float(match.margin[k]), float(match.returned[k]), clicks[k])
        for k, label in enumerate(annotations.labels)
    )
    transferred = Annotations(
        labels=tuple(part.label for part in found if len(part.pixels)),
        seeds=tuple(seed for part in found for seed in _as_seeds(target, part)),
        view=annotations.view.model_copy(update={"selected": None}),
    )
    return Transferred(found, transferred, _correspond(source, target, home, clicks))


def _with_seeds(annotations: Annotations) -> Annotations:
    """Return the labels that something is known of.

    Raises:
        UserError: there are none.
    """
    sown = {seed.label for seed in annotations.seeds if not seed.negative}
    if not sown:
        raise UserError(
            f"nothing to transfer: {len(annotations.labels)} labels found and no seed: label something first "
            "(jacobinerf annotate, or the viewer)"
        )
    return annotations.model_copy(
        update={
            "labels": tuple(label for label in annotations.labels if label.id in sown),
            "seeds": tuple(seed for seed in annotations.seeds if seed.label in sown),
            "edits": (),
            "view": annotations.view.model_copy(update={"selected": None}),
        }
    )


def _look_home(source: Side, annotations: Annotations, folder: Path) -> _Home:
    if annotations.view.propagation.decision == "paper":
        # That rule needs whole views, and knows no confidence.
        annotations = annotations.model_copy(update={"view": ViewSettings()})
    pixels, snapshot = source.grid(LOOKED_AT), source.snapshot(annotations, folder)
    rendered = source.look(pixels, snapshot)
    seeds = source.seed_pixels(annotations, folder, pixels, rendered.points)
    return _Home(snapshot, pixels, source.features(pixels), rendered, seeds, source.features(seeds.pixels))


def _prototypes(
    home: _Home, count: int, most: int
) -> tuple[Float[Tensor, "prototypes features"], Int[Tensor, "prototypes"]]:
    """Return at most `most` directions per label, and their labels."""
    generator = torch.Generator().manual_seed(0)
    parts = [kmeans(home.seed_features[home.seeds.labels == k], most, generator) for k in range(count)]
    owners = torch.arange(count).repeat_interleave(torch.tensor([len(part) for part in parts]))
    return torch.cat(parts), owners


def _own_margins(
    home: _Home, vectors: Float[Tensor, "prototypes features"], owners: Int[Tensor, "prototypes"], count: int
) -> Float[Tensor, "pixels labels"]:
    """Return margins at home, on photos without seeds: a seed's own pixel resembles itself most."""
    others = ~torch.isin(home.pixels[:, 0], home.seeds.pixels[:, 0])
    features = home.features[others] if bool(others.any()) else home.features
    return matching.margins(matching.label_cosines(features, vectors, owners, count))


def _labels_back(home: _Home, features: Float[Tensor, "pixels features"], count: int) -> Int[Tensor, "pixels"]:
    """Return the label at home of each pixel's nearest pixels there."""
    everything = torch.cat([home.features, home.seed_features])
    labels = torch.cat([home.rendered.labels, home.seeds.labels])
    return matching.label_back(features, everything, labels, count)


def _clicks(
    target: Side,
    pixels: Int[Tensor, "pixels 3"],
    margin: Float[Tensor, "pixels labels"],
    back: Int[Tensor, "pixels"],
    match: LabelMatch,
    settings: TransferSettings,
) -> list[Int[Tensor, "clicks 3"]]:
    """Choose the clearest pixels that lead back to each label that is sure enough, far apart on the surfaces."""
    best = matching.best_pixels(margin, CHOICE * settings.clicks)
    good = (margin.gather(0, best) > 0) & (back[best] == torch.arange(margin.shape[1]))
    good &= match.confidence >= settings.min_confidence
    candidates = [pixels[best[good[:, k], k]] for k in range(margin.shape[1])]
    rendered = target.look(torch.cat(candidates))
    chosen, start = [], 0
    for part in candidates:
        rows = slice(start, start + len(part))
        hit, start = rendered.hit[rows], rows.stop
        chosen.append(part[hit][matching.spread_out(rendered.points[rows][hit], settings.clicks)])
    return chosen


def _as_seeds(target: Side, part: TransferredLabel) -> list[Click]:
    seeds = []
    for image, row, col in part.pixels.tolist():
        height, width = target.sizes[image]
        where = {"image": target.photos[image].name, "width": width, "height": height}
        seeds.append(Click(label=part.label.id, pixel=(col, row), **where))
    return seeds


def _correspond(
    source: Side,
    target: Side,
    home: _Home,
    clicks: list[Int[Tensor, "clicks 3"]],
) -> Correspondence:
    """Match the photo with most seeds and the photo with most clicks."""
    images = (_most(home.seeds.pixels), _most(torch.cat(clicks)))
    here, there = source.grid(PAIRS, images[:1]), target.grid(PAIRS, images[1:])
    matched, cosines = matching.mutual_nearest(source.features(here), target.features(there))
    first, second = here[matched[:, 0]], there[matched[:, 1]]
    labels = source.look(first, home.snapshot).labels
    return Correspondence(images, torch.stack([first[:, 1:], second[:, 1:]], dim=1), labels, cosines)


def _most(pixels: Int[Tensor, "pixels 3"]) -> int:
    return int(pixels[:, 0].mode().values) if len(pixels) else 0
