"""Memory of training on many images: 2,000 of them against 200, at 640x480 and with teacher features.

    python benchmarks/many_images.py

Every row is a process of its own, on images and features that another process has made. Peaks are the kernel's own
(VmHWM); anonymous memory is sampled (RssAnon): what a process holds beyond the page cache, which the system takes back
when somebody needs memory. The feature store's share is what opening it adds, and then reading from every image.
"""

import copy
import gc
import json
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jacobinerf_ns.config import jacobinerf_lite
from jacobinerf_ns.datamanager import FeatureDataManager
from jacobinerf_ns.features.base import FeatureGrid, Frame, covering_grid, fingerprint_of
from jacobinerf_ns.features.store import FeatureStore
from jacobinerf_ns.files.atomic import atomic_write
from jacobinerf_ns.shaping import WHOLE_BATCH
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig
from jacobinerf_ns.training import train

WIDTH, HEIGHT = 640, 480
HELD_OUT = 8
SWEEPS = 100
MEGABYTE = 1e6


@dataclass
class NoiseConfig:
    """Features without meaning, as large as real ones: reading them costs what reading a teacher's costs."""

    rows: int = 60
    """Rows of the grid of one image."""
    cols: int = 80
    """Columns of the grid."""
    dim: int = 64
    """Dimensions of a feature."""

    def setup(self, device: torch.device | str = "cpu") -> "Noise":
        """The extractor."""
        return Noise(self)


class Noise:
    """An extractor (see `features.base.Extractor`) that looks at nothing."""

    def __init__(self, config: NoiseConfig) -> None:
        self.config = config

    def fingerprint(self) -> str:
        """Hash of the size."""
        return fingerprint_of("noise", self.config)

    def check(self, frames: Sequence[Frame]) -> None:
        """Every image will do."""

    def sources(self, frame: Frame) -> Sequence[Path | str]:
        """The image, which makes files of different images differ."""
        return [frame.path]

    def extract(self, frame: Frame) -> FeatureGrid:
        """Random numbers, the same ones for the same image."""
        generator = torch.Generator().manual_seed(frame.index)
        config = self.config
        return covering_grid(torch.randn(config.rows, config.cols, config.dim, generator=generator))


@dataclass
class Row:
    """What one process measured; megabytes of 10^6 bytes."""

    images: int
    """Training images."""
    held_as: str
    """How they are held: `float32` (nerfstudio's way) or `uint8`."""
    features_on_disk: float = 0.0
    """Size of the feature store's files."""
    peak: float = 0.0
    """Highest resident memory, page cache of mapped files included."""
    peak_anonymous: float = 0.0
    """Highest anonymous memory."""
    store_anonymous: float = 0.0
    """Anonymous memory added by opening the store and reading from all of its images."""
    store_cached: float = 0.0
    """Page cache that the same brought into the process's map."""
    seconds_per_step: float = 0.0
    """Time of a training step."""


def resident(name: str) -> float:
    """One of the kernel's numbers about this process (`VmHWM`, `RssAnon`, `RssFile`), in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")) / MEGABYTE


class MeasuredDataManager(FeatureDataManager):
    """Says what its feature store adds to the memory of the process."""

    store_anonymous = store_cached = 0.0

    def prepare_features(self, from_step: int, num_anchors: int = WHOLE_BATCH) -> None:
        """Opens the store, then reads random pixels of all images."""
        gc.collect()
        anonymous, cached = resident("RssAnon"), resident("RssFile")
        super().prepare_features(from_step, num_anchors)
        store = self.feature_store
        assert store is not None
        for sweep in range(SWEEPS):
            generator = torch.Generator().manual_seed(sweep)
            places = torch.rand(4096, 3, generator=generator) * torch.tensor([len(store), HEIGHT, WIDTH])
            store.sample(places.long())
        gc.collect()
        self.store_anonymous = resident("RssAnon") - anonymous
        self.store_cached = resident("RssFile") - cached


def make_capture(folder: Path, count: int) -> None:
    """Images of coloured noise on a circle, and their features, in `folder`."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in track(range(count + HELD_OUT), description=f"Making {count} images"):
        coarse = np.random.default_rng(i).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        path = folder / "images" / f"{i:05}.jpg"
        Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, quality=80)
        angle = 2 * np.pi * i / (count + HELD_OUT)
        pose = np.eye(4)
        pose[:3, 3] = np.cos(angle), np.sin(angle), 0.1
        frames.append({"file_path": f"images/{path.name}", "transform_matrix": pose.tolist()})
    names = [frame["file_path"] for frame in frames]
    intrinsics = {"w": WIDTH, "h": HEIGHT, "fl_x": 320.0, "fl_y": 320.0, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    splits = {
        "train_filenames": names[HELD_OUT:],
        "val_filenames": names[:HELD_OUT],
        "test_filenames": names[:HELD_OUT],
    }
    meta = {"camera_model": "OPENCV", "frames": frames, **intrinsics, **splits}
    (folder / "transforms.json").write_text(json.dumps(meta))
    config = configured(folder, steps=0).pipeline.datamanager
    config.eval_num_images_to_sample_from = config.train_num_images_to_sample_from = 1
    config.setup(device="cpu").prepare_features(from_step=0)


def configured(folder: Path, steps: int) -> JacobiNeRFTrainerConfig:
    """`jacobinerf-lite` with our features, shaped from the first step on, and nothing evaluated or saved on the way."""
    config = copy.deepcopy(jacobinerf_lite.config)
    assert isinstance(config, JacobiNeRFTrainerConfig)
    data = config.pipeline.datamanager
    data._target, data.data, data.cache_dir = MeasuredDataManager, folder, folder / "features"
    data.extractor = NoiseConfig()  # pyright: ignore[reportAttributeAccessIssue]
    config.pipeline.model.shaping_start_step = 1
    config.steps_per_eval_image = config.steps_per_eval_batch = config.steps_per_save = 1 << 30
    config.max_num_iterations = steps
    return config


def measure(row: Row, folder: Path, steps: int) -> Row:
    """Trains in this process, which must be a fresh one, and fills the row in."""
    config = configured(folder, steps)
    config.pipeline.datamanager.images_as_bytes = row.held_as == "uint8"
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            row.peak_anonymous = max(row.peak_anonymous, resident("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with tempfile.TemporaryDirectory(dir=folder.parent) as output:
        trainer = train(config, f"{row.images} images as {row.held_as}", folder, Path(output))
    done.set()
    watcher.join()
    data = trainer.pipeline.datamanager
    assert isinstance(data, MeasuredDataManager)
    assert isinstance(data.feature_store, FeatureStore)
    assert len(data.feature_store) == row.images
    start = time.perf_counter()
    for step in range(steps, steps + 10):
        trainer.train_iteration(step)
    row.seconds_per_step = (time.perf_counter() - start) / 10
    row.features_on_disk = data.feature_store.num_bytes / MEGABYTE
    row.store_anonymous, row.store_cached = data.store_anonymous, data.store_cached
    row.peak = resident("VmHWM")
    return row


def in_fresh_process(function, *arguments):
    """The result of a function in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@dataclass
class ManyImages:
    """Measures the memory of training on few and on many images."""

    counts: tuple[int, ...] = (200, 2000)
    """Training images."""
    float_limit: int = 400
    """Most images for which nerfstudio's own way of holding them is measured too: at 2,000 it takes about 15 GB."""
    steps: int = 50
    """Training steps."""
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    """Where the images (0.1 GB per 2,000) and features (1.3 GB) are made, and removed again."""
    output: Path = Path("benchmarks/results/many_images.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measures all rows, prints a table and writes the JSON file."""
        rows = []
        for count in self.counts:
            folder = Path(tempfile.mkdtemp(prefix="many-images-", dir=self.folder))
            try:
                in_fresh_process(make_capture, folder / "capture", count)
                for held_as in ("float32", "uint8") if count <= self.float_limit else ("uint8",):
                    rows.append(in_fresh_process(measure, Row(count, held_as), folder / "capture", self.steps))
            finally:
                shutil.rmtree(folder)
        with atomic_write(self.output) as temporary:
            temporary.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
        show(rows)


def show(rows: list[Row]) -> None:
    """Prints the table: what `Row` holds, in its order; `of store` is anonymous memory, `cached` page cache."""
    table = Table(title=f"Memory of a training process, {WIDTH}x{HEIGHT}, MB")
    names = ("images", "held as", "features", "peak", "anonymous", "of store", "cached", "ms a step")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (row.features_on_disk, row.peak, row.peak_anonymous, row.store_anonymous, row.store_cached)
        cells = [f"{number:,.0f}" for number in (*numbers, 1000 * row.seconds_per_step)]
        table.add_row(f"{row.images:,}", row.held_as, *cells)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(ManyImages).main()
