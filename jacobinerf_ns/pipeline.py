"""Joins datamanager, model and annotations, and loads checkpoints without tolerance."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from jacobinerf_ns.annotations.frames import WorldFrame
from jacobinerf_ns.annotations.rays import SeedRays, rays_through, seed_rays
from jacobinerf_ns.annotations.schema import Annotations
from jacobinerf_ns.annotations.store import AnnotationStore
from jacobinerf_ns.compat import checkpoints
from jacobinerf_ns.compat.camera_paths import check_camera_paths
from jacobinerf_ns.compat.opening import check_what_is_opened
from jacobinerf_ns.core.gathering import rank_zero_first
from jacobinerf_ns.core.partition import Partition
from jacobinerf_ns.datamanager import FeatureDataManager, FeatureDataManagerConfig
from jacobinerf_ns.dataparsers.camera_paths import read_camera_path
from jacobinerf_ns.errors import at_the_door, one_line_exit
from jacobinerf_ns.features.field_teacher import Sight, SurfacesState, surfaces_in
from jacobinerf_ns.labels.keeper import POOL_RAYS, LabelKeeper, LabelMaker
from jacobinerf_ns.labels.scores import annotated_scores, scored_ids
from jacobinerf_ns.labels.tracer import in_eval_mode
from jacobinerf_ns.labels.truth import read_truth
from jacobinerf_ns.labels.views import label_view
from jacobinerf_ns.labels.words import Answer, Words, knows_words
from jacobinerf_ns.model import JacobiNeRFModel, JacobiNeRFModelConfig
from jacobinerf_ns.panel.panel import Panel

MASK_SEEDS = 512
"""Pixels rendered of a scribble, box or mask."""


@dataclass
class JacobiNeRFPipelineConfig(VanillaPipelineConfig):
    """A capture with teacher features, and a model that is shaped by them."""

    _target: type = field(default_factory=lambda: JacobiNeRFPipeline)
    """Class to build."""
    datamanager: FeatureDataManagerConfig = field(default_factory=FeatureDataManagerConfig)
    """Images, and the teacher that looks at them."""
    model: JacobiNeRFModelConfig = field(default_factory=JacobiNeRFModelConfig)
    """The radiance field and its shaping."""
    annotations: Path | None = None
    """Annotation file with labels, seeds and edits; by default `annotations.json` beside the run's config.yml."""

    def setup(self, **kwargs: Any) -> "JacobiNeRFPipeline":
        """Build the pipeline; every `ns-*` command comes through here, so bad input ends here in one line."""
        check_what_is_opened(JacobiNeRFPipeline)
        check_camera_paths(read_camera_path)
        with one_line_exit():
            return super().setup(**kwargs)


class JacobiNeRFPipeline(VanillaPipeline):
    """`VanillaPipeline` with a teacher while training, and with checkpoints that must fit."""

    config: JacobiNeRFPipelineConfig
    datamanager: FeatureDataManager
    model: JacobiNeRFModel

    def __init__(
        self,
        config: JacobiNeRFPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: GradScaler | None = None,
    ) -> None:
        # Downscaled images and features are made once; nerfstudio's own wrapping for many processes wants GPUs.
        with rank_zero_first():
            super().__init__(config, device, test_mode, 1, local_rank, grad_scaler)
            trains = self._trains = test_mode == "val"
            self.surfaces = SurfacesState()
            self.datamanager.sight = Sight(self.model.look, self._weights, self.surfaces)
            if trains and self.model.config.shaping.active:
                start = self.model.config.shaping_start_step
                self.datamanager.prepare_features(from_step=start, num_anchors=self.model.num_anchors)
        self.labels: LabelKeeper | None = None
        if config.annotations is not None:
            self.show_labels(config.annotations)
        # The viewer looks for its panels among a pipeline's attributes.
        self.panel = Panel(self)
        self.world_size = world_size
        if world_size > 1:
            places = None if self.device.type == "cpu" else [local_rank]
            shared = DistributedDataParallel(self.model, device_ids=places, find_unused_parameters=True)
            self._model = cast(JacobiNeRFModel, shared)

    def _weights(self) -> list[Tensor]:
        return list(self.model.state_dict().values())

    @property
    def photo_cameras(self) -> Cameras:
        """Of the photos that the field learns from, in the scene's frame."""
        return self.datamanager.train_dataset.cameras

    @property
    def world(self) -> WorldFrame:
        """The capture's own frame, which annotations are in, against the scene's."""
        outputs = self.datamanager.train_dataparser_outputs
        return WorldFrame(outputs.dataparser_transform, outputs.dataparser_scale)

    def show_labels(self, path: Path) -> LabelKeeper:
        """Show the labels of an annotation file from now on.

        Raises:
            UserError: the file is damaged.
        """
        self.labels = self.keep_labels(AnnotationStore(path))
        self.model.label_source = self.labels
        return self.labels

    def keep_labels(self, store: AnnotationStore) -> LabelKeeper:
        """Return a keeper of this pipeline's labels; what the model shows is its `label_source`."""
        return LabelKeeper(store, self.label_maker())

    def label_maker(self) -> LabelMaker:
        """Return what makes labels of annotations on this field; what it renders it keeps for itself."""
        data, cameras = self.datamanager, self.datamanager.train_dataset.cameras

        def rays_of(annotations: Annotations, folder: Path) -> SeedRays:
            names = data.train_dataparser_outputs.image_filenames
            return seed_rays(annotations, folder, cameras, names, self.world, MASK_SEEDS)

        def partitions() -> list[Partition]:
            found = self.surfaces.found() if self.model.answers_as_shaped else ()
            return [surfaces.partition for surfaces in found]

        return LabelMaker(self.model, rays_of, self.random_training_rays, len(cameras), partitions)

    @cached_property
    def words(self) -> Words:
        """What looks for words in the training photos."""
        return Words(self.model, self.datamanager, self.random_training_pixels(POOL_RAYS))

    @property
    def knows_words(self) -> bool:
        """Whether the run's own teacher can be asked in words."""
        return knows_words(self.datamanager)

    def find_words(self, words: str, lock: AbstractContextManager[Any]) -> Answer:
        """Look for words, with a lock around what asks the field."""
        return self.words.find(words, lock=lock)

    def random_training_rays(self, count: int) -> RayBundle:
        """Rays of pixels drawn from all training images, the same ones every time."""
        return rays_through(self.datamanager.train_dataset.cameras, self.random_training_pixels(count))

    def random_training_pixels(self, count: int) -> Int[Tensor, "rays 3"]:
        """(image, row, col) of pixels drawn from all training images, the same ones every time."""
        cameras, generator = self.datamanager.train_dataset.cameras, torch.Generator().manual_seed(0)
        images = torch.randint(len(cameras), (count,), generator=generator)
        sizes = torch.cat([cameras.height, cameras.width], dim=-1).cpu()[images]
        places = (torch.rand(count, 2, generator=generator) * sizes).floor().long()
        return torch.cat([images[:, None], places], dim=-1)

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """Nerfstudio's averages (`ns-eval`), and pooled scores of the run's labels that are named as classes are."""
        averages = super().get_average_eval_image_metrics(step, output_path, get_std)
        with in_eval_mode(self.model):
            return {**averages, **self._label_scores()}

    def _label_scores(self) -> dict[str, float]:
        """Pooled scores of labels named as classes; nothing where there is no such label, or no ground truth."""
        data, model = self.datamanager, self.model
        classes = data.train_dataparser_outputs.metadata.get("classes") or {}
        frames = data.frames("eval")
        snapshot = None if model.label_source is None else model.label_source()
        if snapshot is None or any(frame.semantics is None for frame in frames):
            return {}
        known = scored_ids(snapshot, classes)
        if not any(known):
            return {}

        def predicted(place: int) -> Tensor:
            camera = data.eval_dataset.cameras[place : place + 1].to(model.device)
            rays = camera.generate_rays(camera_indices=0, keep_shape=True)
            return label_view(model, rays, snapshot).decision.labels

        return annotated_scores(known, read_truth(frames), predicted)

    def load_pipeline(self, loaded_state: Mapping[str, Tensor], step: int) -> None:
        """Load the model of a checkpoint, ours or plain nerfacto's; anything missing or different is an error."""
        with one_line_exit():
            expected = self.model.state_dict()
            state = checkpoints.model_state(loaded_state)
            if checkpoints.is_nerfacto(state):
                state = checkpoints.from_nerfacto(state, expected)
            checkpoints.check_fits(state, expected)
            found = surfaces_in(loaded_state)
            if found and self.datamanager.looks_at_field:
                self.surfaces.keep(found)
            self.model.update_to_step(step)
            self.model.load_state_dict(state, strict=True)
            self.model.loads += 1
            if self.labels is not None:
                self.labels.refuses = not self._trains and at_the_door()
