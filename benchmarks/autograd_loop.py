"""What the closed form saves: a shaped step with it, and by one autograd call per ray, on the same batches.

    python benchmarks/autograd_loop.py                    # jacobinerf-lite's field, CPU or GPU
    python benchmarks/autograd_loop.py --method jacobinerf

The two take turns within one process, so that a machine whose speed drifts slows both alike; medians.
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
from jacobinerf_ns.files.atomic import atomic_write
from jacobinerf_ns.model import JacobiNeRFModel, JacobiNeRFModelConfig
from jacobinerf_ns.shaping import WHOLE_BATCH

LOOP_RAYS = (64, 256, 1024)
FEATURE_DIM = 384


@dataclass
class AutogradLoop:
    """Times shaped training steps by the closed form and by autograd, all rays being anchors."""

    method: Literal["jacobinerf-lite", "jacobinerf"] = "jacobinerf-lite"
    """Whose field is trained."""
    repeats: int = 3
    """Steps of each kind that are timed, for each number of rays."""
    output: Path = Path("benchmarks/results/autograd_loop.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Times both kinds, prints a table and writes the JSON file."""
        device = torch.device(torch.cuda.current_device() if torch.cuda.is_available() else "cpu")
        bench = Bench(LITE_MODEL if self.method == "jacobinerf-lite" else FULL_MODEL, device)
        ratios = {}
        for rays in LOOP_RAYS:
            pair = bench.alternate({"on": rays, "loop": rays}, self.repeats)
            ratios[str(rays)] = pair["loop"] / pair["on"]
        numbers = {"method": self.method, "device": str(device), "threads": torch.get_num_threads()}
        with atomic_write(self.output) as temporary:
            temporary.write_text(json.dumps({**numbers, "loop_over_ours": ratios}, indent=2) + "\n")
        table = Table(title=f"{self.method}, {device}, medians")
        table.add_column("rays", justify="right")
        table.add_column("step by an autograd call per ray ÷ ours", justify="right")
        for rays, ratio in ratios.items():
            table.add_row(rays, f"{ratio:.1f}")
        Console().print(table)


class Bench:
    """One model and its optimiser, and steps of two kinds on random rays through a unit box."""

    def __init__(self, config: JacobiNeRFModelConfig, device: torch.device) -> None:
        torch.manual_seed(0)
        box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
        config = replace(config, num_shaping_rays=WHOLE_BATCH, shaping_start_step=1, shaped_layers="rgb")
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
        self.model.step = 1
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
    tyro.cli(AutogradLoop).main()
