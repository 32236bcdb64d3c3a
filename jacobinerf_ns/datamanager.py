"""Adds the teacher's features at the sampled pixels to each training batch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE

from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.choices import AnnotatedExtractorUnion
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.store import FeatureStore, open_store


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
    cache_dir: Path | None = None
    """Folder for extracted features; None is jacobinerf-ns/features in $XDG_CACHE_HOME (by default ~/.cache)."""


class FeatureDataManager(VanillaDataManager[InputDataset]):
    """Nerfstudio's data manager, plus teacher features once they have been prepared.

    Construction touches no extractor and no cache, so rendering, viewing and evaluating never load a teacher.
    """

    config: FeatureDataManagerConfig
    _store: FeatureStore | None = None
    _from_step: int = 0

    def prepare_features(self, from_step: int) -> None:
        """Extracts the features of the training images, or opens their cache, and adds them to batches from a step on.

        Only training with shaping calls it. Errors: `UserError` from the extractor.
        """
        config = self.config
        if isinstance(config.extractor, OracleConfig):
            CONSOLE.print("Teacher: oracle, made from the capture's own label maps. Say so with every result.")
        extractor = config.extractor.setup(device=self.device)
        frames = self.frames("train")
        self._store = open_store(extractor, frames, config.cache_dir, config.feature_dim, config.center_features)
        self._from_step = from_step

    @property
    def feature_store(self) -> FeatureStore | None:
        """Features of the training images by (image, row, col); None before `prepare_features`."""
        return self._store

    def teacher_store(self, split: Literal["train", "eval"]) -> FeatureStore:
        """The teacher's own features of the images of a split, for evaluation; extracted where the cache lacks them.

        Neither projected nor centred: that is fitted to the training images, and features of both splits must compare.
        """
        return open_store(self.config.extractor.setup(device=self.device), self.frames(split), self.config.cache_dir)

    def frames(self, split: Literal["train", "eval"]) -> list[Frame]:
        """The images of a split, as extractors want them."""
        if split == "train":
            return list_frames(self.train_dataparser_outputs, self.train_dataset.cameras)
        return list_frames(self.dataparser.get_dataparser_outputs(split=self.test_split), self.eval_dataset.cameras)

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """A training batch, with `features` [rays dim] (float32, on our device) once prepared and due."""
        rays, batch = super().next_train(step)
        if self._store is not None and step >= self._from_step:
            batch["features"] = self._store.sample(batch["indices"]).to(self.device)
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
