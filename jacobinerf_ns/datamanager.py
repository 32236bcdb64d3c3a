"""Adds the teacher's features at the anchors to each training batch."""

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from jacobinerf_ns.compat.byte_images import as_floats, float_bytes, images_as_bytes
from jacobinerf_ns.core.gathering import rank_zero_first
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.dataparsers.label_folders import add_label_maps
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.choices import AnnotatedExtractorUnion
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.field_teacher import Sight, surface_features, surfaces_of
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.palette import PaletteStore
from jacobinerf_ns.features.store import FeatureLookup, PixelFeatures, fits_on, open_store
from jacobinerf_ns.features.streaming import pinned, to_device
from jacobinerf_ns.features.surfaces import SurfacesConfig
from jacobinerf_ns.shaping import WHOLE_BATCH, anchor_rays

LARGE_CAPTURE = 2 << 30
"""Bytes of images as floats from which on a data set is held as bytes: about 600 images of 640x480."""


@dataclass
class FeatureDataManagerConfig(VanillaDataManagerConfig):
    """Images, rays and teacher features."""

    _target: type = field(default_factory=lambda: FeatureDataManager)
    """Class to instantiate."""
    dataparser: AnnotatedDataParserUnion = field(default_factory=JacobiNeRFDataParserConfig)
    """How the capture is read."""
    extractor: AnnotatedExtractorUnion = field(default_factory=DinoConfig)
    """Teacher: says which pixels belong together."""
    feature_dim: int | None = None
    """Dimensions the features are reduced to by PCA over all training images; None keeps them all."""
    center_features: bool = False
    """Take the mean feature of the training images off, so that what all pixels share does not count as likeness."""
    gpu_features: float = 4.0
    """GPU memory that teacher features may take in training, gigabytes, and never more than half of what is free. More
    features than that stay on disk, and each step's are read while the GPU renders its rays; 0: always."""
    images_as_bytes: bool | None = None
    """Hold images as bytes instead of floats, in a quarter of the memory, with the same colours (those blended with a
    background are rounded). By default only large data sets, whose floats would take 2 GiB or more."""
    label_dir: Path | None = None
    """Folder with ground truth for a capture of any format: index PNGs named like the images, in `semantics` and
    `instances` or in the folder itself (classes); and `classes.json`. Instead of label maps that the capture has."""
    with_surfaces: bool = False
    """Pool the teacher's features over the segments that `surfaces` finds in the field's geometry: that takes noise and
    the blur of patches off, and makes views agree. Shaping then waits for the field, as it does with `surfaces`."""
    cache_dir: Path | None = None
    """Folder for extracted features; None is jacobinerf-ns/features in $XDG_CACHE_HOME (by default ~/.cache)."""


class FeatureDataManager(VanillaDataManager[InputDataset]):
    """Nerfstudio's data manager, plus teacher features once they have been prepared.

    Construction touches no extractor and no cache, so rendering, viewing and evaluating never load a teacher.
    """

    config: FeatureDataManagerConfig
    eval_dataparser_outputs: DataparserOutputs
    sight: Sight | None = None
    """The field, for teachers that look at it; the pipeline gives it."""
    _store: PixelFeatures | None = None
    _from_step: int = 0
    _waits_for_field: bool = False
    _num_anchors: int = WHOLE_BATCH
    _reader: ThreadPoolExecutor | None = None
    _resident: FeatureLookup | None = None

    def prepare_features(self, from_step: int, num_anchors: int = WHOLE_BATCH) -> None:
        """Extract the features of the training images, or open their cache, and add them to batches from a step on.

        Only training with shaping calls it.
        """
        config = self.config
        if isinstance(config.extractor, OracleConfig):
            CONSOLE.print("Teacher: oracle, made from the capture's own label maps. Say so with every result.")
        self._from_step, self._num_anchors = from_step, num_anchors
        self._waits_for_field = self.looks_at_field
        if isinstance(config.extractor, SurfacesConfig):
            config.extractor.check()
            if config.feature_dim is not None or config.center_features:
                raise UserError(
                    "feature-dim and center-features given with the surfaces teacher, whose features are few and made "
                    "to measure: leave them out"
                )
            return
        extractor = config.extractor.setup(device=self.device)
        frames = self.frames("train")
        self._use(open_store(extractor, frames, config.cache_dir, config.feature_dim, config.center_features))

    def _use(self, store: PixelFeatures) -> None:
        """Add features to batches from now on."""
        self._store, self._resident = store, None
        device = torch.device(self.device)
        if fits_on(device, store.value_bytes, self.config.gpu_features):
            self._resident = store.resident(device)
        elif device.type != "cpu" and self._reader is None:
            self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="features")

    @property
    def looks_at_field(self) -> bool:
        """Whether the teacher needs a trained field."""
        return isinstance(self.config.extractor, SurfacesConfig) or self.config.with_surfaces

    def _surface_features(self, split: Literal["train", "eval"], pooled: PixelFeatures | None) -> PaletteStore:
        """Return features by the surfaces of the field.

        Raises:
            UserError: there is no field to look at, or nothing to be seen.
        """
        chosen = self.config.extractor
        config = chosen if isinstance(chosen, SurfacesConfig) else SurfacesConfig()
        if self.sight is None:
            config.setup()
        assert self.sight is not None
        frames = self.frames("train")
        with rank_zero_first():
            found = surfaces_of(self.sight, config, frames, self.train_dataset.cameras, self.config.cache_dir)
        views = None if split == "train" else (self.frames(split), self.eval_dataset.cameras)
        sizes = [frame.size for frame in (frames if views is None else views[0])]
        return surface_features(self.sight, found, config, views, sizes, pooled)

    def create_train_dataset(self) -> InputDataset:
        """Nerfstudio's data set; all splits are parsed before, and get the label maps of `label_dir`.

        Rendering alone needs no ground truth, which may be gone by then.
        """
        self.eval_dataparser_outputs = self.dataparser.get_dataparser_outputs(split=self.test_split)
        if self.config.label_dir is not None and self.test_mode != "inference":
            add_label_maps(self.config.label_dir, (self.train_dataparser_outputs, self.eval_dataparser_outputs))
        return super().create_train_dataset()

    def create_eval_dataset(self) -> InputDataset:
        """Nerfstudio's data set."""
        return self.dataset_type(
            dataparser_outputs=self.eval_dataparser_outputs, scale_factor=self.config.camera_res_scale_factor
        )

    def setup_train(self) -> None:
        """Nerfstudio's set-up; a large capture is held as bytes."""
        with self._images_of(self.train_dataset):
            super().setup_train()

    def setup_eval(self) -> None:
        """Nerfstudio's set-up; a large data set is held as bytes."""
        with self._images_of(self.eval_dataset):
            super().setup_eval()

    def _images_of(self, dataset: InputDataset) -> AbstractContextManager[None]:
        chosen = self.config.images_as_bytes
        large = float_bytes(dataset.cameras) >= LARGE_CAPTURE if chosen is None else chosen
        return images_as_bytes() if large else nullcontext()

    @property
    def feature_store(self) -> PixelFeatures | None:
        """Features of the training images by (image, row, col); None before `prepare_features`, or before a teacher
        that looks at the field has done so.
        """
        return self._store

    def teacher_store(self, split: Literal["train", "eval"]) -> PixelFeatures:
        """Return the teacher's own features of a split's images, extracted where the cache lacks them.

        Neither projected nor centred: that is fitted to the training images, and features of both splits must compare.
        """
        extractor, folder = self.config.extractor, self.config.cache_dir
        if isinstance(extractor, SurfacesConfig):
            return self._surface_features(split, None)
        if self.config.with_surfaces:
            return self._surface_features(
                split, open_store(extractor.setup(device=self.device), self.frames("train"), folder)
            )
        return open_store(extractor.setup(device=self.device), self.frames(split), folder)

    def originals(self, split: str) -> DataparserOutputs:
        """Return the photos of a split (`train`, or `test_split`) before any downscaling; no image is opened."""
        parser = copy.copy(self.dataparser)
        if hasattr(parser, "downscale_factor"):
            setattr(parser, "downscale_factor", 1)  # noqa: B010 (only some parsers have it)
        return parser.get_dataparser_outputs(split=split)

    def frames(self, split: Literal["train", "eval"]) -> list[Frame]:
        """Return the images of a split, as extractors want them."""
        if split == "train":
            return list_frames(self.train_dataparser_outputs, self.train_dataset.cameras)
        return list_frames(self.eval_dataparser_outputs, self.eval_dataset.cameras)

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """Return a training batch, with `features` [anchors dim] (float32) once prepared and due.

        Where they fit on the GPU they are there. Else they are a future: a thread reads them into pinned memory while
        the GPU renders the rays. It reads this batch and not the next, whose pixels are drawn when their turn comes: a
        resume goes on exactly, and nothing has to be saved for it. Without a GPU they are on the CPU, at once: reading
        takes half a hundredth of a step of the same cores.
        """
        rays, batch = _with_floats(super().next_train(step))
        if self._waits_for_field and step >= self._from_step:
            self._waits_for_field = False
            self._use(self._surface_features("train", self._store))
        if self._store is not None and step >= self._from_step:
            pixels = batch["indices"].cpu()[anchor_rays(len(batch["indices"]), self._num_anchors)]
            batch["features"] = self._look_up(self._store, pixels)
        return rays, batch

    def _look_up(self, store: PixelFeatures, pixels: Tensor) -> Tensor | Future[Tensor]:
        device = torch.device(self.device)
        if self._resident is not None:
            return self._resident.sample(to_device(pixels, device))
        if self._reader is None:
            return store.sample(pixels)
        return self._reader.submit(lambda: pinned(store.sample(pixels), device))

    def next_eval(self, step: int) -> tuple[RayBundle, dict]:
        """Return an evaluation batch, as nerfstudio makes it."""
        return _with_floats(super().next_eval(step))


def _with_floats(sampled: tuple[RayBundle, dict]) -> tuple[RayBundle, dict]:
    rays, batch = sampled
    if batch["image"].dtype == torch.uint8:
        batch["image"] = as_floats(batch["image"])
    return rays, batch


def list_frames(outputs: DataparserOutputs, cameras: Cameras) -> list[Frame]:
    """Frames of a data set; `cameras` are the data set's own, whose sizes are those of the images in batches."""

    count = len(outputs.image_filenames)
    semantics, instances, original = (
        outputs.metadata.get(key) or [None] * count
        for key in ("semantics_filenames", "instances_filenames", "original_sizes")
    )
    heights, widths = cameras.height.flatten().tolist(), cameras.width.flatten().tolist()
    return [
        Frame(i, Path(path), (heights[i], widths[i]), original[i], semantics[i], instances[i])
        for i, path in enumerate(outputs.image_filenames)
    ]
