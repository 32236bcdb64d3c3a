"""What contenders are given: trained fields, labelled pixels to be fitted to, and pixels of views to score.

All of them look at the same `ViewPixels`: one field query serves everybody.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from jacobinerf_ns.annotations.formats.png import write_index_png
from jacobinerf_ns.annotations.rays import rays_through
from jacobinerf_ns.annotations.schema import PALETTE, Annotations, Click, Label, Mask
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import LabelledPixels
from jacobinerf_ns.features.store import PixelFeatures
from jacobinerf_ns.labels.keeper import LabelMaker
from jacobinerf_ns.labels.traces import Traced
from jacobinerf_ns.pipeline import JacobiNeRFPipeline

TrainOrEval = Literal["train", "eval"]
LabelScores = Float[Tensor, "rays labels"]
MANY_PIXELS = 8192
"""Labelled pixels up to which rivals take all, and above which evenly drawn ones."""
Made = TypeVar("Made")


class ViewPixels(NamedTuple):
    """Some pixels of one image, as every contender sees them."""

    split: TrainOrEval
    pixels: Int[Tensor, "rays 3"]
    """(image, row, col)."""
    rays: RayBundle
    shaped: Traced
    """What the shaped field answers."""
    unshaped: Traced | None
    """What the unshaped one answers, where there is one."""


class Fitted(NamedTuple):
    """A contender that knows its labels."""

    scores: Callable[[ViewPixels], LabelScores]
    whole_view: Callable[[Float[Tensor, "height width labels"]], Int[Tensor, "height width"]] | None = None
    """Positions from the scores of a whole view, where that is not the largest score of each pixel."""
    own_threshold: float | None = None
    """Of the first label's selection, where the contender finds it itself."""


@dataclass
class TrainedFields:
    """The trained fields and the teacher that contenders may use; what takes long is made at most once."""

    shaped: JacobiNeRFPipeline
    unshaped: JacobiNeRFPipeline | None
    _stores: dict[str, PixelFeatures] = field(default_factory=dict)
    _made: dict[Callable, Any] = field(default_factory=dict)

    @cached_property
    def labels(self) -> LabelMaker:
        """Makes labels of the shaped field."""
        return self.shaped.label_maker()

    @cached_property
    def unshaped_labels(self) -> LabelMaker:
        """Makes labels of the unshaped field.

        Raises:
            UserError: there is none.
        """
        if self.unshaped is None:
            raise UserError("method unshaped needs --unshaped-config, the config.yml of a run without shaping")
        return self.unshaped.label_maker()

    def once(self, make: Callable[[JacobiNeRFPipeline], Made]) -> Made:
        """Return what `make` makes of the shaped run; it is made at the first question, and serves all exercises."""
        if make not in self._made:
            self._made[make] = make(self.shaped)
        return self._made[make]

    def teacher_store(self, split: TrainOrEval) -> PixelFeatures:
        """Return the teacher's features of a split."""
        if split not in self._stores:
            self._stores[split] = self.shaped.datamanager.teacher_store(split)
        return self._stores[split]

    def rays(self, split: TrainOrEval, pixels: Int[Tensor, "rays 3"]) -> RayBundle:
        """Return rays through the centres of pixels of a split's images."""
        cameras = self._dataset(split).cameras
        return rays_through(cameras, pixels).to(self.shaped.model.device)

    def photo(self, split: TrainOrEval, image: int) -> Float[Tensor, "height width 3"]:
        """Return a photograph of a split."""
        return self._dataset(split)[image]["image"][..., :3]

    def _dataset(self, split: TrainOrEval) -> InputDataset:
        data = self.shaped.datamanager
        return data.train_dataset if split == "train" else data.eval_dataset

    def looks_around(self, count: int) -> Iterator[ViewPixels]:
        """Yield random training pixels, the same every time, in chunks."""
        for pixels in self.shaped.random_training_pixels(count).split(self.shaped.model.rays_at_once):
            yield self.look("train", pixels)

    @torch.no_grad()
    def look(self, split: TrainOrEval, pixels: Int[Tensor, "rays 3"]) -> ViewPixels:
        """Trace pixels of a split's images; the pixels' centres, exactly as in training."""
        rays = self.rays(split, pixels)
        unshaped = None if self.unshaped is None else self.unshaped.model.trace(rays)
        return ViewPixels(split, pixels, rays, self.shaped.model.trace(rays), unshaped)


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
    split: TrainOrEval = "train"
    """That the labelled image is of."""
    positive: Bool[Tensor, "pixels"] | None = None
    """False: the pixel is not of its label; none: all are."""

    @property
    def pixels(self) -> Int[Tensor, "rays 3"]:
        """(image, row, col) of the labelled pixels."""
        image = torch.full_like(self.labelled.rows, self.labelled.image)
        return torch.stack([image, self.labelled.rows, self.labelled.cols], dim=-1)


def make_exercise(
    fields: TrainedFields, labelled: LabelledPixels, names: dict[int, str], as_mask: bool, folder: Path
) -> Exercise:
    """Write labelled pixels down as an annotation file would have them.

    Args:
        fields: whose training view was labelled.
        labelled: pixels of that view.
        names: of the ids, where they have any.
        as_mask: they become one mask of the view, and not clicks.
        folder: where the mask is written.
    """
    data = fields.shaped.datamanager
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
