"""What competes in an evaluation: ours in its variants, and real rivals, on the same seeds, scene and views.

A contender is fitted to labelled pixels once, and then scores the pixels of any view. All of them look at the same
`Sight`: one field query serves everybody.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from jacobinerf_ns.annotations.formats.png import write_index_png
from jacobinerf_ns.annotations.schema import PALETTE, Annotations, Click, Label, Mask, ViewSettings
from jacobinerf_ns.core.jacobian import cosine_response
from jacobinerf_ns.core.propagation import (
    JNERF_PLUS,
    PAPER,
    PropagationConfig,
    Prototypes,
    decide_paper,
    label_responses,
)
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import LabelledPixels
from jacobinerf_ns.evaluation.rivals.aggregator import train_aggregator
from jacobinerf_ns.evaluation.rivals.linear_probe import linear_probe
from jacobinerf_ns.features.store import FeatureStore
from jacobinerf_ns.labels.keeper import FixedAnnotations, LabelKeeper
from jacobinerf_ns.labels.responses import responses
from jacobinerf_ns.labels.traces import Piece, Traced
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.tasks.feature_field.heads import FeatureField, rendered_activations
from jacobinerf_ns.tasks.feature_field.training import distil, train_semantic_head

Split = Literal["train", "eval"]
Ours = Literal["2d", "3d", "plus", "network", "paper"]
Method = Ours | Literal["unshaped", "unshaped-plus", "teacher", "dff", "semantic-nerf", "probe"]
Scores = Float[Tensor, "rays labels"]
MANY_PIXELS = 8192
"""Labelled pixels up to which rivals take all, and above which evenly drawn ones."""
RIVAL_NEIGHBOURS = PropagationConfig().neighbours


class Sight(NamedTuple):
    """Some pixels of one image, as everybody sees them."""

    split: Split
    pixels: Int[Tensor, "rays 3"]
    """(image, row, col)."""
    rays: RayBundle
    traced: Traced
    """By the shaped field."""
    plain: Traced | None
    """By the unshaped one."""


class Fitted(NamedTuple):
    """A contender that knows its labels."""

    scores: Callable[[Sight], Scores]
    whole_view: Callable[[Float[Tensor, "height width labels"]], Int[Tensor, "height width"]] | None = None
    """Positions from the scores of a whole view, where that is not the largest score of each pixel."""


@dataclass
class Scene:
    """The trained fields and the teacher that contenders may use. What is dear is made once."""

    shaped: JacobiNeRFPipeline
    plain: JacobiNeRFPipeline | None
    _stores: dict[str, FeatureStore] = field(default_factory=dict)

    @cached_property
    def keeper(self) -> LabelKeeper:
        """Makes snapshots of the shaped field."""
        return self.shaped.keep_labels(FixedAnnotations(Annotations(), Path()))

    @cached_property
    def plain_keeper(self) -> LabelKeeper:
        """Makes snapshots of the unshaped field. Errors: `UserError` when there is none."""
        if self.plain is None:
            raise UserError("method unshaped needs --unshaped-config, the config.yml of a run without shaping")
        return self.plain.keep_labels(FixedAnnotations(Annotations(), Path()))

    @cached_property
    def feature_field(self) -> FeatureField:
        """The teacher's features distilled over the shaped field's geometry."""
        return distil(self.shaped)

    def teacher_store(self, split: Split) -> FeatureStore:
        """The teacher's features of a split."""
        if split not in self._stores:
            self._stores[split] = self.shaped.datamanager.teacher_store(split)
        return self._stores[split]

    def rays(self, split: Split, pixels: Int[Tensor, "rays 3"]) -> RayBundle:
        """Rays through the centres of pixels of a split's images."""
        data = self.shaped.datamanager
        cameras = (data.train_dataset if split == "train" else data.eval_dataset).cameras
        return cameras.generate_rays(
            camera_indices=pixels[:, :1].to(cameras.device), coords=pixels[:, 1:].to(cameras.device) + 0.5
        ).to(self.shaped.model.device)

    @torch.no_grad()
    def look(self, split: Split, pixels: Int[Tensor, "rays 3"]) -> Sight:
        """Traces pixels of a split's images; the pixels' centres, exactly as in training."""
        rays = self.rays(split, pixels)
        plain = None if self.plain is None else self.plain.model.trace(rays)
        return Sight(split, pixels, rays, self.shaped.model.trace(rays), plain)


class Exercise(NamedTuple):
    """What one simulated annotator gave: the same for every contender."""

    labelled: LabelledPixels
    ids: list[int]
    """True id of each label, by position."""
    positions: Int[Tensor, "pixels"]
    """Label of each labelled pixel."""
    annotations: Annotations
    """The same as a user's file has it."""
    folder: Path
    """Where the annotations' masks are."""
    split: Split = "train"
    """That the labelled image is of."""
    positive: Bool[Tensor, "pixels"] | None = None
    """False: the pixel is not of its label; none: all are."""

    @property
    def pixels(self) -> Int[Tensor, "rays 3"]:
        """(image, row, col) of the labelled pixels."""
        image = torch.full_like(self.labelled.rows, self.labelled.image)
        return torch.stack([image, self.labelled.rows, self.labelled.cols], dim=-1)


def make_exercise(
    scene: Scene, labelled: LabelledPixels, names: dict[int, str], as_mask: bool, folder: Path
) -> Exercise:
    """Labelled pixels as an annotation file would have them: clicks, or one mask of the view."""
    data = scene.shaped.datamanager
    frame = data.frames("train")[labelled.image]
    height, width = frame.size
    ids = labelled.ids.unique().tolist()
    labels = tuple(
        Label(id=identity, name=names.get(identity, f"id {identity}"), colour=PALETTE[i % len(PALETTE)])
        for i, identity in enumerate(ids)
    )
    image = str(data.train_dataparser_outputs.image_filenames[labelled.image])
    where = {"image": image, "width": width, "height": height}
    if as_mask:
        truth = torch.zeros(height, width, dtype=torch.long)
        truth[labelled.rows, labelled.cols] = labelled.ids
        write_index_png(folder / "labelled.png", truth.numpy(), labels, overwrite=True)
        seeds = tuple(Mask(label=identity, file="labelled.png", value=identity, **where) for identity in ids)
    else:
        spots = zip(labelled.rows.tolist(), labelled.cols.tolist(), labelled.ids.tolist(), strict=True)
        seeds = tuple(Click(label=identity, pixel=(col, row), **where) for row, col, identity in spots)
    if len(labelled.ids) > MANY_PIXELS:
        drawn = torch.linspace(0, len(labelled.ids) - 1, MANY_PIXELS).round().long()
        labelled = labelled._replace(rows=labelled.rows[drawn], cols=labelled.cols[drawn], ids=labelled.ids[drawn])
    positions = torch.tensor([ids.index(identity) for identity in labelled.ids.tolist()])
    return Exercise(labelled, ids, positions, Annotations(labels=labels, seeds=seeds), folder)


def fit(method: Method, scene: Scene, exercise: Exercise) -> Fitted:
    """Fits a method to the labelled pixels. Errors: `UserError` for a method that lacks what it needs."""
    if method in OURS:
        return _ours(scene.keeper, exercise, OURS[method])
    if method in ("unshaped", "unshaped-plus"):
        config = JNERF_PLUS if method == "unshaped-plus" else PropagationConfig()
        return _ours(scene.plain_keeper, exercise, config, plain=True)
    return RIVALS[method](scene, exercise)


OURS: dict[Method, PropagationConfig] = {
    "2d": PropagationConfig(),
    "3d": PropagationConfig(space="3d", prototypes="kmeans"),
    "plus": JNERF_PLUS,
    "paper": PAPER,
}


def _ours(keeper: LabelKeeper, exercise: Exercise, config: PropagationConfig, plain: bool = False) -> Fitted:
    """Exactly what a user's annotation file with these seeds would show."""
    annotations = exercise.annotations.model_copy(update={"view": ViewSettings(propagation=config)})
    keeper.store = FixedAnnotations(annotations, exercise.folder)
    keeper.needs_surface = False
    snapshot = keeper.current()
    assert snapshot is not None

    def scores(sight: Sight) -> Scores:
        traced = sight.plain if plain else sight.traced
        assert traced is not None
        return responses(Piece(traced), snapshot)

    if config.decision == "paper":
        return Fitted(scores, lambda found: decide_paper(found).labels - 1)
    return Fitted(scores)


def _network(scene: Scene, exercise: Exercise) -> Fitted:
    sight = scene.look(exercise.split, exercise.pixels)
    network = train_aggregator(sight.traced.jacobians, exercise.positions, len(exercise.ids))
    return Fitted(lambda sight: network(sight.traced.jacobians))


def _nearest(vectors: Tensor, exercise: Exercise, look: Callable[[Sight], Tensor]) -> Fitted:
    """The same nearest prototypes and votes that ours gets, on other vectors."""
    known = torch.ones_like(exercise.positions, dtype=torch.bool) if exercise.positive is None else exercise.positive
    prototypes = Prototypes(vectors, exercise.positions, known, torch.ones_like(vectors[:, 0]))

    def scores(sight: Sight) -> Scores:
        similarity = cosine_response(look(sight), prototypes.vectors)
        return label_responses(similarity, prototypes, len(exercise.ids), RIVAL_NEIGHBOURS)

    return Fitted(scores)


def _teacher(scene: Scene, exercise: Exercise) -> Fitted:
    """2D nearest neighbour in the teacher's features of the photographs: sees every photograph that it labels."""
    vectors = scene.teacher_store(exercise.split).sample(exercise.pixels)
    return _nearest(vectors, exercise, lambda sight: scene.teacher_store(sight.split).sample(sight.pixels))


def _dff(scene: Scene, exercise: Exercise) -> Fitted:
    """Teacher features distilled into a 3D field of their own (DFF), then nearest prototypes."""
    sight = scene.look(exercise.split, exercise.pixels)

    def look(sight: Sight) -> Tensor:
        return scene.feature_field.rendered(sight.traced)

    return _nearest(look(sight), exercise, look)


def _semantic_nerf(scene: Scene, exercise: Exercise) -> Fitted:
    """A semantic head on the frozen geometry, trained with cross-entropy on the labelled pixels (Semantic-NeRF)."""
    sight = scene.look(exercise.split, exercise.pixels)
    head = train_semantic_head(scene.shaped, sight.rays, exercise.positions, len(exercise.ids))
    return Fitted(lambda sight: head.rendered(sight.traced))


def _probe(scene: Scene, exercise: Exercise) -> Fitted:
    """A linear classifier on the frozen field's rendered activations (Semantic-SRN)."""
    sight = scene.look(exercise.split, exercise.pixels)
    probe = linear_probe(rendered_activations(sight.traced), exercise.positions, len(exercise.ids))
    return Fitted(lambda sight: probe.logits(rendered_activations(sight.traced)))


RIVALS: dict[Method, Callable[[Scene, Exercise], Fitted]] = {
    "network": _network,
    "teacher": _teacher,
    "dff": _dff,
    "semantic-nerf": _semantic_nerf,
    "probe": _probe,
}
