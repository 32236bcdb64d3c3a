"""How long an unmoved view takes to show what a click or a slider changed, on the server's side.

    python benchmarks/viewer_latency.py --load-config RUN/config.yml --size 320 240

Counts from the change of the annotations, file and all, to the finished colours of the frame: what the panel does
between a click and sending the picture. Each number is the median of many; the field's own frame is measured beside
them, in the same process.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils import colormaps
from rich.console import Console
from rich.table import Table

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.rays import world_click
from jacobinerf_ns.annotations.schema import Annotations, Edit
from jacobinerf_ns.annotations.store import ANNOTATIONS_NAME, AnnotationStore
from jacobinerf_ns.labels.views import SCREEN, KeptViews, Screen
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.run.opened import open_run


@dataclass
class ViewerLatency:
    """Median times of clicks and settings on a view whose camera does not move."""

    load_config: Path
    """config.yml of a trained run."""
    size: tuple[int, int] = (320, 240)
    """Width and height of the frame, in pixels."""
    rounds: int = 50
    """Clicks or changes per number."""

    def main(self) -> None:
        """Measures, and prints a table."""
        with tempfile.TemporaryDirectory() as folder:
            annotations = Path(folder) / ANNOTATIONS_NAME
            run = open_run(self.load_config, annotations)
            rows = Measurement(run.pipeline, AnnotationStore(annotations), self.size, self.rounds).rows()
            shutil.rmtree(folder, ignore_errors=True)
        table = Table(title=f"{self.size[0]}x{self.size[1]}, {run.pipeline.device}, {torch.get_num_threads()} threads")
        for heading in ("what", "median ms", "largest ms", "rays asked of the field"):
            table.add_column(heading)
        for name, times, rays in rows:
            table.add_row(name, f"{statistics.median(times):.0f}", f"{max(times):.0f}", f"{rays}")
        Console(width=110).print(table)


class Measurement:
    """A view of the first training camera, on a screen that nobody looks at."""

    def __init__(
        self, pipeline: JacobiNeRFPipeline, store: AnnotationStore, size: tuple[int, int], rounds: int
    ) -> None:
        """`store` is the pipeline's own annotation file."""
        self.pipeline, self.size, self.rounds = pipeline, size, rounds
        pipeline.eval()
        self.store, self.keeper = store, pipeline.labels
        assert self.keeper is not None
        self.keeper.store = store
        camera = pipeline.datamanager.train_dataset.cameras[0:1]
        width, height = size
        self.camera = Cameras(
            camera.camera_to_worlds, width / 2.0, width / 2.0, width / 2.0, height / 2.0, width, height
        ).to(pipeline.device)
        self.output = "resonance"
        self.screen = Screen(KeptViews(), lambda name: name == self.output, lambda _: None)
        self.random = torch.Generator().manual_seed(0)

    def rows(self) -> list[tuple[str, list[float], int]]:
        """Name, milliseconds and rays asked of the field (without the clicks' own), of every kind of change."""
        token = SCREEN.set(self.screen)
        try:
            first = self._timed("first frame of a view", lambda now, _: changes.add_label(now, "first")[0], rounds=1)
            rows = [first, self._timed("click", self._click)]
            self.store.change(lambda _: changes.add_label(Annotations(), "first")[0])
            self.store.change(lambda now: self._click(now, 0))
            rows += [
                self._timed("threshold", lambda now, n: self._set(now, threshold=0.5 + 0.4 * n / self.rounds)),
                self._timed("opacity", lambda now, n: changes.set_view(now, opacity=n / self.rounds)),
                self._timed("2D/3D", lambda now, n: self._set(now, space=("3d", "2d")[n % 2])),
            ]
            self.store.change(lambda now: self._set(now, refine=10, smooth=0.5))
            rows += [self._timed("click, refined by the scene: first", self._click, rounds=1)]
            rows += [self._timed("click, refined by the scene", self._click, rounds=10)]
            self.store.change(lambda now: self._set(now, refine=0, smooth=0.0))
            self.output = "edited"
            edit = Edit(kind="recolour", label=self.store.snapshot()[1].labels[0].id)
            rows += [self._timed("first recolouring", lambda now, _: changes.add_edit(now, edit), rounds=1)]
            rows += [self._timed("recolouring, other strength", self._strength, rounds=10)]
        finally:
            SCREEN.reset(token)
        return rows

    def _timed(
        self, name: str, change: Callable[[Annotations, int], Annotations], rounds: int | None = None
    ) -> tuple[str, list[float], int]:
        before, times = self.screen.queried, []
        for number in range(rounds or self.rounds):
            start = time.perf_counter()
            self.store.change(lambda now, number=number: change(now, number))
            self._frame()
            times.append(1000 * (time.perf_counter() - start))
        return name, times, self.screen.queried - before

    @torch.no_grad()
    def _frame(self) -> None:
        """What nerfstudio's render thread does for one frame."""
        outputs = self.pipeline.model.get_outputs_for_camera(self.camera)
        colours = colormaps.apply_colormap(outputs[self.output])
        (colours * 255).type(torch.uint8).cpu().numpy()

    def _click(self, now: Annotations, _: int) -> Annotations:
        row, col = (float(torch.rand(1, generator=self.random)) * side for side in self.size[::-1])
        rays = self.camera.generate_rays(camera_indices=0, coords=torch.tensor([[row, col]]).to(self.pipeline.device))
        label = now.labels[0].id
        return changes.add_seed(now, world_click(self.pipeline.world, rays.origins[0], rays.directions[0], label))

    def _set(self, now: Annotations, **settings: object) -> Annotations:
        return changes.set_view(now, propagation=replace(now.view.propagation, **settings))  # pyright: ignore

    def _strength(self, now: Annotations, number: int) -> Annotations:
        edit = now.edits[0].model_copy(update={"strength": 0.1 + 0.08 * number})
        return changes.set_edit(now, edit)


if __name__ == "__main__":
    tyro.cli(ViewerLatency).main()
