"""One tree's training steps, timed on request: `step_time.py` starts it with that tree first on PYTHONPATH.

Reads lines "RAYS off" or "RAYS on" (shaping) and answers each with the seconds that a step took, mean of a turn. Uses
of the package only what its older commits have too, so that those can be timed beside it.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import writer
from torch.cuda.amp.grad_scaler import GradScaler

import jacobinerf_ns
from jacobinerf_ns import config as methods
from jacobinerf_ns import shaping

STEPS = 6
"""Steps of a turn: proposal networks learn in every first, second, third or sixth step, so all turns do the same."""
CAMERAS, FEATURE_DIM = 40, 384
NEVER = 1 << 40


class Worker:
    """A method's model on random rays through a unit box, taken through the trainer's own iteration."""

    def __init__(self, method: str, threads: int) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        found: Any = {"jacobinerf-lite": methods.jacobinerf_lite, "jacobinerf": methods.jacobinerf}[method].config
        self.device = torch.device(torch.cuda.current_device() if torch.cuda.is_available() else "cpu")
        box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
        config = replace(found.pipeline.model)
        model: Any = config.setup(
            scene_box=box, num_train_data=CAMERAS, metadata={}, device=self.device, grad_scaler=None
        )
        self.model = model.to(self.device).train()
        if hasattr(self.model, "log_every"):
            self.model.log_every = found.logging.steps_per_log
        mixed = found.mixed_precision and self.device.type != "cpu"
        optimizers = Optimizers(found.optimizers, self.model.get_param_groups())
        self.trainer: Any = SimpleNamespace(
            config=found,
            device=str(self.device),
            mixed_precision=mixed,
            grad_scaler=GradScaler(enabled=mixed),
            optimizers=optimizers,
            gradient_accumulation_steps=dict.fromkeys(optimizers.parameters, 1),
            pipeline=SimpleNamespace(get_train_loss_dict=self._losses, model=self.model),
        )
        self.callbacks = self.model.get_training_callbacks(
            TrainingCallbackAttributes(optimizers=optimizers, grad_scaler=None, pipeline=None, trainer=None)
        )
        # As many proposal updates as in the middle of training.
        self.step = found.max_num_iterations // 2
        self.rays = 0

    def turn(self, rays: int, shaped: bool) -> float:
        """Mean seconds of a step over one turn."""
        self.rays = rays
        self.model.config.shaping_start_step = 0 if shaped else NEVER
        self._wait()
        start = time.perf_counter()
        for _ in range(STEPS):
            self._run_callbacks(TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
            Trainer.train_iteration(self.trainer, self.step)
            self._run_callbacks(TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
            self.step += 1
        self._wait()
        writer.EVENT_STORAGE.clear()
        return (time.perf_counter() - start) / STEPS

    def _run_callbacks(self, location: TrainingCallbackLocation) -> None:
        for callback in self.callbacks:
            callback.run_callback_at_location(self.step, location=location)

    def _losses(self, step: int) -> tuple[Any, Any, Any]:
        """What nerfstudio's pipeline does with a batch."""
        bundle, batch = self._batch(step)
        outputs = self.model(bundle)
        metrics = self.model.get_metrics_dict(outputs, batch)
        return outputs, self.model.get_loss_dict(outputs, batch, metrics), metrics

    def _batch(self, seed: int) -> tuple[RayBundle, dict[str, torch.Tensor]]:
        generator, rays = torch.Generator().manual_seed(seed), self.rays
        bundle = RayBundle(
            origins=0.1 * torch.randn(rays, 3, generator=generator),
            directions=torch.nn.functional.normalize(torch.randn(rays, 3, generator=generator), dim=-1),
            pixel_area=torch.full((rays, 1), 1e-4),
            camera_indices=torch.randint(0, CAMERAS, (rays, 1), generator=generator),
        )
        anchors = slice(None)
        if hasattr(shaping, "anchor_rays"):
            anchors = shaping.anchor_rays(rays, self.model.num_anchors)
        batch = {
            "image": torch.rand(rays, 3, generator=generator),
            "features": torch.randn(rays, FEATURE_DIM, generator=generator)[anchors],
        }
        return bundle.to(self.device), {name: value.to(self.device) for name, value in batch.items()}

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.cuda.synchronize()


def main() -> None:
    """Answers until the input ends; the first answer is the device."""
    tree, method, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    assert Path(jacobinerf_ns.__file__ or "").is_relative_to(tree), "another tree's package came first"
    worker = Worker(method, threads)
    print(worker.device, file=answers, flush=True)
    for line in sys.stdin:
        rays, kind = line.split()
        print(worker.turn(int(rays), kind == "on"), file=answers, flush=True)


if __name__ == "__main__":
    main()
