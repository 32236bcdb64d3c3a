"""What labels cost: rendering twenty labels against one, and propagation against the paper's way.

    python benchmarks/label_cost.py --load-config RUN/config.yml

The paper's way renders a view once as it is and once more per label with perturbed weights (W + t·G), and compares the
colours. Ours renders it once and gets all labels from the same samples; both give the paper's exact 2D response. All in
one process, in turns, medians.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from nerfstudio.cameras.rays import RayBundle
from rich.console import Console
from rich.table import Table

from jacobinerf_ns.annotations.schema import PALETTE, Annotations, Click, Label, ViewSettings
from jacobinerf_ns.core.propagation import PAPER_PROPAGATION, PropagationConfig
from jacobinerf_ns.errors import one_line_exit
from jacobinerf_ns.files.atomic import atomic_write
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.labels.tracer import chunks
from jacobinerf_ns.labels.views import label_view
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.run.opened import open_run

MANY, PAPER_LABELS = 20, 12


@dataclass
class LabelCost:
    """Measures both ratios on a trained run."""

    load_config: Path
    """The run's config.yml."""
    views: int = 4
    """Views, the first of which is a warm-up."""
    results: Path = Path("benchmarks/results/label_cost.json")
    """File of the numbers."""

    def main(self) -> None:
        """Prints and writes the ratios."""
        pipeline = open_run(self.load_config).pipeline
        cameras = pipeline.datamanager.eval_dataset.cameras
        views = [
            cameras[(k := i % len(cameras)) : k + 1].generate_rays(camera_indices=0, keep_shape=True)
            for i in range(self.views)
        ]
        in_space = PropagationConfig(space="3d")

        def shown(count: int, config: PropagationConfig | None = None) -> list[Callable[[], object]]:
            return [lambda v=view: show(pipeline, v, count, config) for view in views]

        paper: list[Callable[[], object]] = [lambda v=view: paper_way(pipeline, v, PAPER_LABELS) for view in views]
        times = medians(
            {
                "one": shown(1),
                "many": shown(MANY),
                "one_3d": shown(1, in_space),
                "many_3d": shown(MANY, in_space),
                "ours_cosine": shown(PAPER_LABELS),
                "ours_exact": shown(PAPER_LABELS, PAPER_PROPAGATION),
                "paper": paper,
            }
        )
        found = {
            "20 labels ÷ 1, 2D": times["many"] / times["one"],
            "20 labels ÷ 1, 3D": times["many_3d"] / times["one_3d"],
            "12 labels, ours by cosine ÷ the paper's way": times["ours_cosine"] / times["paper"],
            "12 labels, ours exact ÷ the paper's way": times["ours_exact"] / times["paper"],
        }
        size = f"{views[0].origins.shape[1]}x{views[0].origins.shape[0]}"
        content = {"views": self.views, "size": size, "threads": torch.get_num_threads(), **found}
        with atomic_write(self.results) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
        table = Table("ratio of medians", "")
        for name, value in found.items():
            table.add_row(name, f"{value:.3f}")
        Console().print(table)


def show(pipeline: JacobiNeRFPipeline, view: RayBundle, count: int, config: PropagationConfig | None = None) -> None:
    """Renders a view with labels as a user would; seeds are rendered the first time only."""
    snapshot = labelled_snapshot(pipeline, count, config or PropagationConfig())
    label_view(pipeline.model, view, snapshot)


_snapshots: dict[tuple[int, PropagationConfig], LabelSnapshot] = {}


def labelled_snapshot(pipeline: JacobiNeRFPipeline, count: int, config: PropagationConfig) -> LabelSnapshot:
    """So many labels, a click each, spread over the first photo; made once."""
    if (count, config) not in _snapshots:
        image = pipeline.datamanager.train_dataparser_outputs.image_filenames[0]
        height, width = pipeline.datamanager.frames("train")[0].size
        spots = [((7 * i) % width, (11 * i) % height) for i in range(count)]
        labels = tuple(Label(id=i + 1, name=f"label {i}", colour=PALETTE[i % len(PALETTE)]) for i in range(count))
        seeds = tuple(
            Click(label=i + 1, image=str(image), width=width, height=height, pixel=spot) for i, spot in enumerate(spots)
        )
        annotations = Annotations(labels=labels, seeds=seeds, view=ViewSettings(propagation=config))
        snapshot = pipeline.label_maker().snapshot_of(annotations, Path())
        assert snapshot is not None
        _snapshots[count, config] = snapshot
    return _snapshots[count, config]


@torch.no_grad()
def paper_way(pipeline: JacobiNeRFPipeline, view: RayBundle, count: int) -> torch.Tensor:
    """Response of each pixel to each label by rendering the view again with perturbed weights, label by label."""
    model = pipeline.model
    model.label_source = None
    snapshot = labelled_snapshot(pipeline, count, PAPER_PROPAGATION)
    vectors = snapshot.prototypes.vectors
    layer = model.field.mlp_head.rgb_layer
    original, before = layer.weight.clone(), _colours(pipeline, view)
    found = []
    for vector in vectors:
        layer.weight.copy_(original + PAPER_PROPAGATION.step * vector[: original.numel()].view_as(original))
        found.append((_colours(pipeline, view) - before).abs().mean(-1))
    layer.weight.copy_(original)
    return torch.stack(found, dim=-1)


def _colours(pipeline: JacobiNeRFPipeline, view: RayBundle) -> torch.Tensor:
    """Nerfacto's own rendering, without anything of ours."""
    model = pipeline.model
    parts = [super(type(model), model).get_outputs(model.collider(chunk)) for chunk in chunks(model, view.flatten())]
    return torch.cat([part["rgb"] for part in parts])


def medians(jobs: dict[str, list[Callable[[], object]]]) -> dict[str, float]:
    """Median time of each kind of job in seconds, measured in turns; the first turn is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in zip(*jobs.values(), strict=True):
        for name, job in zip(jobs, turn, strict=True):
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(kept[1:]) for name, kept in times.items()}


if __name__ == "__main__":
    with one_line_exit():
        tyro.cli(LabelCost).main()
