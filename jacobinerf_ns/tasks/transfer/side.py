"""One capture of a transfer: training pixels, where they hit, what the teacher says of them, and their labels."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from jacobinerf_ns.annotations.rasterise import rasterise, spread, to_camera
from jacobinerf_ns.annotations.rays import rays_through, seed_rays
from jacobinerf_ns.annotations.schema import Annotations, InImage, Seed, drawn
from jacobinerf_ns.core.matching import UNLABELLED
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import fingerprint_of
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.store import PixelFeatures
from jacobinerf_ns.files.names import find_image
from jacobinerf_ns.labels.responses import answers
from jacobinerf_ns.labels.seed_cache import SURFACE
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.labels.tracer import in_eval_mode, trace_all
from jacobinerf_ns.labels.traces import Piece, Traced, surface_points
from jacobinerf_ns.run.opened import Run
from jacobinerf_ns.run.photos import Photo, list_photos
from jacobinerf_ns.tasks.feature_field.field import FeatureField
from jacobinerf_ns.tasks.feature_field.files import feature_field_path, load_feature_field

PER_SEED = 64
"""Pixels taken of a scribble, box or mask."""
SURE = 0.5
"""Confidence (0..1) of propagation from which on a pixel of the first capture counts as labelled."""


class SeedPixels(NamedTuple):
    """Pixels of training images that were labelled by hand."""

    pixels: Int[Tensor, "seeds 3"]
    labels: Int[Tensor, "seeds"]
    """Position of the label in the annotations."""


class RenderedPixels(NamedTuple):
    """What the field renders at pixels."""

    points: Float[Tensor, "pixels 3"]
    """Where they hit, scene units."""
    hit: Bool[Tensor, "pixels"]
    """False: background or sky."""
    labels: Int[Tensor, "pixels"]
    """Position of the propagated label, or `UNLABELLED`."""


class Side:
    """An opened run as a transfer sees it; the teacher's features are made or loaded at the first question."""

    def __init__(self, run: Run, own_teacher: bool = True) -> None:
        """Look at an opened run; `own_teacher`: the teacher is the run's own, so that its feature field can be used."""
        self.run = run
        self.own_teacher = own_teacher
        self._field_allowed = own_teacher and feature_field_path(run).exists()

    @property
    def name(self) -> str:
        """The capture's folder name."""
        path = self.run.pipeline.datamanager.get_datapath().absolute()
        return (path if path.is_dir() else path.parent).name

    @cached_property
    def photos(self) -> list[Photo]:
        """The training photos, in the order of pixels' first column."""
        return list_photos(self.run.pipeline.datamanager, "train")

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the training images."""
        return [frame.size for frame in self.run.pipeline.datamanager.frames("train")]

    @cached_property
    def _feature_field(self) -> FeatureField | None:
        return load_feature_field(self.run) if self._field_allowed else None

    @cached_property
    def _store(self) -> PixelFeatures:
        return self.run.pipeline.datamanager.teacher_store("train")

    @property
    def source_of_features(self) -> str:
        """In words, for reports."""
        return "feature field" if self._field_allowed else "teacher"

    def grid(self, count: int, images: Sequence[int] | None = None) -> Int[Tensor, "pixels 3"]:
        """Return about `count` pixels (image, row, col) in even steps over the training images, or some of them."""
        chosen = range(len(self.sizes)) if images is None else images
        total = sum(self.sizes[i][0] * self.sizes[i][1] for i in chosen)
        step = max(1, round((total / count) ** 0.5))
        parts = []
        for image in chosen:
            rows, cols = (torch.arange(min(step // 2, side - 1), side, step) for side in self.sizes[image])
            parts.append(torch.cartesian_prod(torch.tensor([image]), rows, cols))
        return torch.cat(parts)

    def rays(self, pixels: Int[Tensor, "pixels 3"]) -> RayBundle:
        """Return rays through the pixels' centres, exactly as in training."""
        cameras = self.run.pipeline.datamanager.train_dataset.cameras
        return rays_through(cameras, pixels).to(self.run.pipeline.model.device)

    @torch.no_grad()
    def features(self, pixels: Int[Tensor, "pixels 3"]) -> Float[Tensor, "pixels features"]:
        """Return features of training pixels on the CPU: distilled where the run has a feature field, else as made."""
        if self._feature_field is None:
            return self._store.sample(pixels)
        model, field = self.run.pipeline.model, self._feature_field
        with in_eval_mode(model):
            return trace_all(
                model, self.rays(pixels), lambda traced: field.rendered(traced).cpu(), f"Features of {self.name}"
            )

    def snapshot(self, annotations: Annotations, folder: Path) -> LabelSnapshot | None:
        """Return what pixels are labelled by.

        Raises:
            UserError: seeds cannot be found or hit nothing.
        """
        return self.run.pipeline.label_maker().snapshot_of(annotations, folder)

    @torch.no_grad()
    def look(self, pixels: Int[Tensor, "pixels 3"], snapshot: LabelSnapshot | None = None) -> RenderedPixels:
        """Render training pixels, and label them by their Jacobians where there is something to label them by."""
        if not len(pixels):
            nobody = torch.zeros(0, dtype=torch.long)
            return RenderedPixels(torch.zeros(0, 3), nobody.bool(), nobody)

        def pick(traced: Traced) -> RenderedPixels:
            hit = traced.outputs["accumulation"][:, 0] > SURFACE
            labels = torch.full_like(hit, UNLABELLED, dtype=torch.long)
            if snapshot is not None:
                decision = snapshot.decide(answers(Piece(traced), snapshot))
                labels = torch.where(decision.confidence >= SURE, decision.labels - 1, UNLABELLED)
            return RenderedPixels(surface_points(traced).cpu(), hit.cpu(), labels.cpu())

        model = self.run.pipeline.model
        with in_eval_mode(model):
            return trace_all(model, self.rays(pixels), pick, f"Looking at {self.name}")

    def seed_pixels(
        self, annotations: Annotations, folder: Path, pool: Int[Tensor, "pixels 3"], points: Float[Tensor, "pixels 3"]
    ) -> SeedPixels:
        """Return pixels of the positive seeds; a click in space stands for the pixel of `pool` that hits nearest to it.

        Args:
            annotations: labels and seeds.
            folder: which mask files of seeds are relative to.
            pool: pixels that clicks in space may stand for.
            points: where those hit.

        Raises:
            UserError: an image or mask cannot be found.
        """
        positions = {label.id: position for position, label in enumerate(annotations.labels)}
        seeds = [part for seed in annotations.seeds if not seed.negative for part in drawn(seed)]
        parts = [
            self._in_image(seed, folder)
            if isinstance(seed, InImage)
            else pool[self._nearest_hit(seed, annotations, folder, points)][None]
            for seed in seeds
        ]
        labels = [positions[seed.label] for seed, part in zip(seeds, parts, strict=True) for _ in range(len(part))]
        return SeedPixels(torch.cat(parts), torch.tensor(labels))

    def _in_image(self, seed: InImage, folder: Path) -> Int[Tensor, "pixels 3"]:
        image = find_image(seed.image, [photo.path for photo in self.photos])
        height, width = self.sizes[image]
        covered = np.argwhere(rasterise(seed, folder))[:, ::-1]
        mapped = np.unique(to_camera(covered, (seed.width, seed.height), (width, height)), axis=0)
        xy = torch.from_numpy(spread(mapped, PER_SEED).copy())
        return torch.stack([torch.full_like(xy[:, 0], image), xy[:, 1], xy[:, 0]], dim=-1)

    @torch.no_grad()
    def _nearest_hit(
        self, seed: Seed, annotations: Annotations, folder: Path, points: Float[Tensor, "pixels 3"]
    ) -> int:
        pipeline = self.run.pipeline
        data, alone = pipeline.datamanager, annotations.model_copy(update={"seeds": (seed,)})
        filenames, cameras = data.train_dataparser_outputs.image_filenames, data.train_dataset.cameras
        rays = seed_rays(alone, folder, cameras, filenames, pipeline.world).rays.to(pipeline.model.device)
        with in_eval_mode(pipeline.model):
            point = surface_points(pipeline.model.trace(rays)).cpu().mean(0)
        return int((points - point).norm(dim=-1).argmin())


def check_teachers(source: Run, target: Run, own_teachers: bool) -> None:
    """Check that features of both runs lie in one space.

    Raises:
        UserError: the teachers differ, none has shaped a run, or class ids of an oracle mean other things.
    """
    remedy = "name one teacher for both at the end of the command (jacobinerf transfer --help lists them)"
    for run in (source, target) if own_teachers else ():
        if not run.config.pipeline.model.shaping.active:
            raise UserError(f"the run in {run.folder} was trained without a teacher: {remedy}")
    first, second = (run.pipeline.datamanager.config.extractor for run in (source, target))
    # A folder of somebody's own features is another one for every capture.
    known = [fingerprint_of(type(config).__name__, config, ignore=["folder"]) for config in (first, second)]
    if known[0] != known[1]:
        raise UserError(f"the runs have different teachers, {first} and {second}: {remedy}")
    if isinstance(first, OracleConfig) and not first.by_name and _classes(source) != _classes(target):
        raise UserError(
            "the oracle teacher makes features of class ids, and the captures give their ids other names, so there is "
            "no common feature space: end the command with `oracle --by-name`"
        )


def _classes(run: Run) -> dict[int, str] | None:
    return run.pipeline.datamanager.train_dataparser_outputs.metadata.get("classes")
