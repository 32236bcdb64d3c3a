"""`jacobinerf features`: extracts a capture's teacher features ahead of training."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.choices import AnnotatedExtractorUnion
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.store import FeatureStore, open_store


@dataclass
class Features:
    """Extract the teacher's features of all training images into the cache, where training finds them."""

    data: Path
    """Folder of the capture (or its transforms.json)."""
    downscale_factor: int | None = None
    """Image sizes are divided by this whole number; give the one that training is given."""
    extractor: AnnotatedExtractorUnion = field(default_factory=DinoConfig)
    """Teacher: says which pixels belong together."""
    feature_dim: int | None = None
    """Dimensions the features are reduced to by PCA over all training images; None keeps them all."""
    center_features: bool = False
    """Take the mean feature of the training images off, so that what all pixels share does not count as likeness."""
    cache_dir: Path | None = None
    """Folder for extracted features; None is jacobinerf-ns/features in $XDG_CACHE_HOME (by default ~/.cache)."""
    device: str | None = None
    """Device the teacher runs on, in torch's words; None is the GPU if there is one, else the CPU."""

    def main(self) -> FeatureStore:
        """Extract what the cache lacks, and print where it is, its size and images/s.

        Raises:
            UserError: bad input, in one line.
        """
        from jacobinerf_ns.datamanager import list_frames
        from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig

        parser = JacobiNeRFDataParserConfig(data=self.data, downscale_factor=self.downscale_factor).setup()
        outputs = parser.get_dataparser_outputs(split="train")
        extractor = self.extractor.setup(device=self._device())
        frames = list_frames(outputs, outputs.cameras)
        store = open_store(extractor, frames, self.cache_dir, self.feature_dim, self.center_features)
        Console().print(_summary(store), soft_wrap=True, highlight=False)
        return store

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
