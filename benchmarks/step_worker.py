"""One tree's training steps, timed on request: `step_time.py` starts it with that tree first on PYTHONPATH.

Reads lines "RAYS off" or "RAYS on" (shaping) and answers each with the seconds that a step took, mean of a turn. Uses
of the package only what its older commits have too, so that those can be timed beside it.
"""

import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.utils import writer

import jacobinerf_ns
from jacobinerf_ns import config as methods
from jacobinerf_ns.demo.capture import write_capture
from jacobinerf_ns.features.precomputed import PrecomputedConfig

STEPS = 6
"""Steps of a turn: proposal networks learn in every first, second, third or sixth step, so all turns do the same."""
VIEWS, WIDTH, HEIGHT = 12, 96, 72
GRID, FEATURE_DIM = (36, 48), 384
NEVER = 1 << 40


class Worker:
    """A method's own trainer on a small room, with random features of a teacher's size."""

    def __init__(self, method: str, threads: int, folder: Path) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        known: Any = {"jacobinerf-lite": methods.jacobinerf_lite, "jacobinerf": methods.jacobinerf}[method].config
        config: Any = deepcopy(known)
        config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
        data = config.pipeline.datamanager
        config.data = data.data = write_capture(folder / "room", VIEWS, WIDTH, HEIGHT, num_test=2)
        data.extractor, data.cache_dir = PrecomputedConfig(folder=self._features(folder)), folder / "cache"
        config.output_dir, config.vis = folder, "tensorboard"
        config.set_timestamp()
        self.trainer = config.setup(local_rank=0, world_size=1)
        self.trainer.setup()
        # As many proposal updates as in the middle of training.
        self.step = config.max_num_iterations // 2

    @property
    def device(self) -> torch.device:
        """Where training goes on."""
        return self.trainer.pipeline.model.device

    def turn(self, rays: int, shaped: bool) -> float:
        """Mean seconds of a step over one turn."""
        start_step, data = 0 if shaped else NEVER, self.trainer.pipeline.datamanager
        self.trainer.pipeline.model.config.shaping_start_step = data._from_step = start_step
        data.config.train_num_rays_per_batch = rays
        data.train_pixel_sampler.set_num_rays_per_batch(rays)
        self._wait()
        start = time.perf_counter()
        for _ in range(STEPS):
            self._run_callbacks(TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
            self.trainer.train_iteration(self.step)
            self._run_callbacks(TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
            self.step += 1
        self._wait()
        writer.EVENT_STORAGE.clear()
        return (time.perf_counter() - start) / STEPS

    def _features(self, folder: Path) -> Path:
        """Files of random features, one for each photo."""
        arrays = folder / "arrays"
        arrays.mkdir()
        for photo in sorted((folder / "room" / "images").iterdir()):
            drawn = np.random.default_rng(0).normal(size=(*GRID, FEATURE_DIM))
            np.save(arrays / f"{photo.stem}.npy", drawn.astype(np.float16))
        return arrays

    def _run_callbacks(self, location: TrainingCallbackLocation) -> None:
        for callback in self.trainer.callbacks:
            callback.run_callback_at_location(self.step, location=location)

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.cuda.synchronize()


def main() -> None:
    """Answers until the input ends; the first answer is the device."""
    tree, method, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    assert Path(jacobinerf_ns.__file__ or "").is_relative_to(tree), "another tree's package came first"
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(method, threads, Path(folder))
        print(worker.device, file=answers, flush=True)
        for line in sys.stdin:
            rays, kind = line.split()
            print(worker.turn(int(rays), kind == "on"), file=answers, flush=True)


if __name__ == "__main__":
    main()
