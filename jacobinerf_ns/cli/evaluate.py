"""`jacobinerf evaluate`: how good labels propagate, against ground truth and against rivals."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from jacobinerf_ns.errors import UserError

if TYPE_CHECKING:
    from jacobinerf_ns.evaluating import Report


@dataclass
class Evaluate:
    """Simulate an annotator from the ground truth, propagate, and score all methods on the held-out views."""

    load_config: Path
    """The run's config.yml. Its capture needs ground-truth label maps."""
    protocol: Literal["sparse", "dense", "clicks", "instances"] = "sparse"
    """What is labelled, in one training view: one pixel per class, everything, `clicks` pixels per class, or one pixel
    per instance."""
    methods: tuple[
        Literal[
            "2d",
            "3d",
            "plus",
            "network",
            "paper",
            "unshaped",
            "unshaped-plus",
            "teacher",
            "dff",
            "semantic-nerf",
            "probe",
        ],
        ...,
    ] = ("2d", "3d", "plus", "teacher")
    """Ours: responses of pixels (2d) or samples (3d), refined and smoothed over the scene (plus), by an aggregator
    network (for dense), with the paper's decision. Rivals on the same scene and seeds: the field without shaping, the
    teacher's features in 2D, distilled features (dff), a semantic head, a linear probe."""
    unshaped_config: Path | None = None
    """config.yml of the same method trained without shaping, for `unshaped`."""
    clicks: int = 3
    """Pixels per class for `clicks`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the simulated annotator."""
    stride: int = 1
    """Score every stride-th pixel in both directions; 1 is all."""
    pictures: int = 3
    """Held-out views on the picture sheet."""
    output_dir: Path | None = None
    """Folder for PROTOCOL.json and PROTOCOL.png; None is `evaluation` beside config.yml."""

    def main(self) -> "Report":
        """Prints the tables and writes numbers and pictures. Errors: `UserError`."""
        from jacobinerf_ns.contenders import Scene
        from jacobinerf_ns.evaluating import evaluate
        from jacobinerf_ns.protocols import Annotator
        from jacobinerf_ns.reports import class_table, table, write_report
        from jacobinerf_ns.runs import open_run

        for name, value in (("clicks", self.clicks), ("stride", self.stride), ("seeds", len(self.seeds))):
            if value < 1:
                raise UserError(f"--{name} {value}: expected at least 1")
        wants_plain = any(method.startswith("unshaped") for method in self.methods)
        if wants_plain and self.unshaped_config is None:
            raise UserError(
                "method unshaped needs --unshaped-config RUN/config.yml: train one with "
                "--pipeline.model.shaping.mig-loss-mult 0 --pipeline.model.shaping.norm-loss-mult 0"
            )
        run = open_run(self.load_config)
        plain = open_run(self.unshaped_config).pipeline if wants_plain and self.unshaped_config else None
        scene = Scene(run.pipeline, plain)
        annotator = Annotator(self.protocol, self.clicks if self.protocol == "clicks" else 1)
        report = evaluate(scene, annotator, self.methods, self.seeds, self.stride, self.pictures)
        console = Console()
        console.print(table(report))
        console.print(class_table(report))
        for path in write_report(report, self.output_dir or run.folder / "evaluation", self.protocol):
            console.print(str(path), soft_wrap=True, highlight=False)
        return report
