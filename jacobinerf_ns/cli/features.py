"""`jacobinerf features`: extracts a capture's teacher features ahead of training, and shows what a teacher says."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.choices import AnnotatedExtractorUnion
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.field_teacher import SurfacesState
from jacobinerf_ns.features.preview import write_preview
from jacobinerf_ns.features.store import FeatureStore, PixelFeatures, open_store
from jacobinerf_ns.features.surfaces import Surfaces, SurfacesConfig
from jacobinerf_ns.progress import PlainConsole


@dataclass
class Features:
    """Extract the teacher's features of all training images into the cache, where training finds them."""

    data: Path | None = None
    """Folder of the capture (or its transforms.json); a run's own where --load-config is given."""
    downscale_factor: int | None = None
    """Image sizes are divided by this whole number; give the one that training is given."""
    load_config: Path | None = None
    """config.yml of a trained run, whose capture is taken and whose field `surfaces` looks at."""
    extractor: AnnotatedExtractorUnion = field(default_factory=DinoConfig)
    """Teacher: says which pixels belong together."""
    preview: Path | None = None
    """PNG to write: photographs beside the teacher's features as colours, and beside its segments."""
    feature_dim: int | None = None
    """Dimensions the features are reduced to by PCA over all training images; None keeps them all."""
    center_features: bool = False
    """Take the mean feature of the training images off, so that what all pixels share does not count as likeness."""
    cache_dir: Path | None = None
    """Folder for extracted features; None is jacobinerf-ns/features in $XDG_CACHE_HOME (by default ~/.cache)."""
    device: str | None = None
    """Device the teacher runs on, in torch's words; None is the GPU if there is one, else the CPU."""

    def main(self) -> PixelFeatures:
        """Extract what the cache lacks, print where it is, its size and images/s, and write the preview.

        Raises:
            UserError: bad input, in one line.
        """
        if (self.data is None) == (self.load_config is None):
            raise UserError("--data and --load-config: expected one of them, a capture's folder or a run's config.yml")
        self._check_preview()
        if isinstance(self.extractor, SurfacesConfig):
            frames, store, found = self._surfaces(self.extractor)
            summary = f"{len(store)} images, {store.dim} dimensions; segments by level: {_counts(found)}"
        else:
            found, frames = None, self._frames()
            extractor = self.extractor.setup(device=self._device())
            store = open_store(extractor, frames, self.cache_dir, self.feature_dim, self.center_features)
            summary = _summary(store)
        PlainConsole().print(summary, soft_wrap=True, highlight=False)
        if self.preview is not None:
            write_preview(self.preview, frames, store, found)
            PlainConsole().print(f"{self.preview}", soft_wrap=True, highlight=False)
        return store

    def _check_preview(self) -> None:
        """Find out before an hour of extracting that the preview would be no PNG, or overwrite a photograph.

        Raises:
            UserError: it would.
        """
        path = self.preview
        if path is None:
            return
        if path.suffix.lower() != ".png" or path.is_dir():
            raise UserError(f"--preview {path}: expected the name of a PNG to write, such as preview.png")
        capture = None if self.data is None else self.data.parent if self.data.suffix == ".json" else self.data
        if capture is not None and path.exists() and path.resolve().is_relative_to(capture.resolve()):
            raise UserError(f"--preview {path} is a file of the capture, and there already: choose another name")

    def _frames(self) -> list[Frame]:
        from jacobinerf_ns.datamanager import list_frames
        from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
        from jacobinerf_ns.run.opened import open_run

        if self.load_config is not None:
            return open_run(self.load_config).pipeline.datamanager.frames("train")
        assert self.data is not None
        parser = JacobiNeRFDataParserConfig(data=self.data, downscale_factor=self.downscale_factor).setup()
        outputs = parser.get_dataparser_outputs(split="train")
        return list_frames(outputs, outputs.cameras)

    def _surfaces(self, config: SurfacesConfig) -> tuple[list[Frame], PixelFeatures, Surfaces]:
        """Return what was found when the run was shaped, where it was by this teacher, else what is found now."""
        from jacobinerf_ns.run.opened import open_run
        from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig

        if self.load_config is None:
            config.setup()
        assert self.load_config is not None
        config.check()
        own = []

        def choose(run: JacobiNeRFTrainerConfig) -> None:
            data = run.pipeline.datamanager
            own.append(data.extractor == config)
            data.extractor, data.cache_dir = config, self.cache_dir or data.cache_dir

        data = open_run(self.load_config, change=choose).pipeline.datamanager
        assert data.sight is not None
        if not own[0]:
            data.sight.state = SurfacesState()
        store = data.teacher_store("train")
        return data.frames("train"), store, data.sight.state.found()[0]

    def _device(self) -> torch.device:
        if self.device is None:
            return torch.device(torch.cuda.current_device() if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(0, device=self.device).device
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {self.device} cannot be used here: give cpu, or leave it out") from error


def _summary(store: FeatureStore) -> str:
    made, seconds = store.filled.made, store.filled.seconds
    pace = f"{made} extracted at {made / max(seconds, 1e-9):.2f} images/s" if made else "all were there already"
    return f"{store.folder}\n{len(store)} images, {store.dim} dimensions, {store.num_bytes / 1e6:.1f} MB; {pace}"


def _counts(found: Surfaces) -> str:
    return ", ".join(f"{int(level.max()) + 1}" for level in found.levels)
