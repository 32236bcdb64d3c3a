"""What shaping costs: step time with it, without it, and by one autograd call per ray, on the same batches.

    python benchmarks/step_time.py                    # jacobinerf-lite's field, 1024 rays, CPU or GPU
    python benchmarks/step_time.py --method jacobinerf --rays 4096

The variants take turns within one process, so that a machine whose speed drifts slows all of them alike; medians.
"""

import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jacobinerf_ns.config import FULL_MODEL, LITE_MODEL
from jacobinerf_ns.files import atomic_write
from jacobinerf_ns.model import WHOLE_BATCH, JacobiNeRFModel, JacobiNeRFModelConfig

LOOP_RAYS = (64, 256, 1024)
FEATURE_DIM = 384


@dataclass
class StepTime:
    """Times training steps with and without shaping, all rays being anchors."""

    method: Literal["jacobinerf-lite", "jacobinerf"] = "jacobinerf-lite"
    """Whose field is trained."""
    rays: int = 1024
    """Rays per batch, all of them anchors."""
    repeats: int = 15
    """Steps of each variant that are timed."""
    loop_repeats: int = 3
    """Steps by one autograd call per ray that are timed, for each number of rays."""
    output: Path = Path("benchmarks/results/step_time.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Times all variants, prints a table and writes the JSON file."""
        device = torch.device(torch.cuda.current_device() if torch.cuda.is_available() else "cpu")
        bench = Bench(LITE_MODEL if self.method == "jacobinerf-lite" else FULL_MODEL, device)
        times = bench.alternate({"off": self.rays, "on": self.rays, "on, whole gradient": self.rays}, self.repeats)
        numbers = {
            "method": self.method,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "rays": self.rays,
            "seconds_off": times["off"],
            "seconds_on": times["on"],
            "on_over_off": times["on"] / times["off"],
            "on_with_whole_gradient_over_off": times["on, whole gradient"] / times["off"],
            "loop_over_ours": {},
        }
        for rays in LOOP_RAYS:
            pair = bench.alternate({"on": rays, "loop": rays}, self.loop_repeats)
            numbers["loop_over_ours"][str(rays)] = pair["loop"] / pair["on"]
        with atomic_write(self.output) as temporary:
            temporary.write_text(json.dumps(numbers, indent=2) + "\n")
        table = Table(title=f"{self.method}, {device}, medians")
        table.add_column("what")
        table.add_column("ratio", justify="right")
        table.add_row(f"shaping on ÷ off, {self.rays} rays", f"{numbers['on_over_off']:.3f}")
        whole = numbers["on_with_whole_gradient_over_off"]
        table.add_row(
            f"the same with shaping-gradient-below 1 (no second trunk pass), {self.rays} rays", f"{whole:.3f}"
        )
        for rays, ratio in numbers["loop_over_ours"].items():
            table.add_row(f"step by an autograd call per ray ÷ ours, {rays} rays", f"{ratio:.1f}")
        Console().print(table)


class Bench:
    """One model and its optimiser, and steps of three kinds on random rays through a unit box."""

    def __init__(self, config: JacobiNeRFModelConfig, device: torch.device) -> None:
        torch.manual_seed(0)
        box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
        config = replace(config, num_shaping_rays=WHOLE_BATCH, shaping_start_step=1)
        model = config.setup(scene_box=box, num_train_data=40, metadata={}, device=device, grad_scaler=None)
        self.model: JacobiNeRFModel = model.to(device).train()
        groups = self.model.get_param_groups()
        parameters = [parameter for group in groups.values() for parameter in group]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-3, eps=1e-15)
        self.device = device

    def alternate(self, variants: dict[str, int], repeats: int) -> dict[str, float]:
        """Median seconds of a step per variant (kind to rays), the variants taking turns on the same batches."""
        seconds: dict[str, list[float]] = {kind: [] for kind in variants}
        for repeat in track(range(repeats + 2), description=f"{'/'.join(variants)}, {max(variants.values())} rays"):
            for kind, rays in variants.items():
                elapsed = self._timed_step(kind, rays, seed=repeat)
                if repeat >= 2:  # the first steps allocate
                    seconds[kind].append(elapsed)
        return {kind: statistics.median(values) for kind, values in seconds.items()}

    def _timed_step(self, kind: str, rays: int, seed: int) -> float:
        bundle, batch = self._batch(rays, seed)
        self._wait()
        start = time.perf_counter()
        self.model.step = 1 if kind.startswith("on") else 0
        whole = kind == "on, whole gradient"
        self.model.field.mlp_head.gradient_below = 1.0 if whole else self.model.config.shaping_gradient_below
        # Proposal networks learn in every other step only; both kinds must get the same share of those steps.
        self.model.proposal_sampler._steps_since_update = 10
        self.model.proposal_sampler._step = 100
        outputs = self.model(bundle)
        if kind == "loop":
            outputs["jacobians"] = self._jacobians_by_autograd(outputs["rgb"])
            outputs["anchors"] = slice(None)
        metrics = self.model.get_metrics_dict(outputs, batch)
        loss = torch.stack(list(self.model.get_loss_dict(outputs, batch, metrics).values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - start

    def _jacobians_by_autograd(self, rgb: torch.Tensor) -> torch.Tensor:
        """As the release does it: one gradient with its graph per ray, differentiated again by the loss."""
        weight = self.model.field.mlp_head.rgb_layer.weight
        rows = [torch.autograd.grad(pixel.mean(), weight, create_graph=True)[0].flatten() for pixel in rgb]
        return torch.stack(rows)

    def _batch(self, rays: int, seed: int) -> tuple[RayBundle, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        directions = torch.nn.functional.normalize(torch.randn(rays, 3, generator=generator), dim=-1)
        bundle = RayBundle(
            origins=0.1 * torch.randn(rays, 3, generator=generator),
            directions=directions,
            pixel_area=torch.full((rays, 1), 1e-4),
            camera_indices=torch.randint(0, 40, (rays, 1), generator=generator),
        )
        batch = {
            "image": torch.rand(rays, 3, generator=generator),
            "features": torch.randn(rays, FEATURE_DIM, generator=generator),
        }
        return bundle.to(self.device), {name: value.to(self.device) for name, value in batch.items()}

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.cuda.synchronize()


if __name__ == "__main__":
    tyro.cli(StepTime).main()
