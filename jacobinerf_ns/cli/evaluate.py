"""`jacobinerf evaluate`: how good labels propagate, against ground truth and against rivals."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.registry import Method, draws_batches, methods_help, needs_unshaped_run
from jacobinerf_ns.progress import PlainConsole

if TYPE_CHECKING:
    from jacobinerf_ns.evaluation.exercise import TrainedFields
    from jacobinerf_ns.evaluation.labels import Report
    from jacobinerf_ns.evaluation.objects import ObjectReport, ObjectTask
    from jacobinerf_ns.run.opened import Run
    from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig


@dataclass
class Evaluate:
    """Simulate an annotator from the ground truth, propagate, and score all methods on views that were not marked."""

    load_config: tuple[Path, ...]
    """The run's config.yml. Its capture needs ground-truth label maps; for `object`, --masks instead, and there may be
    several runs, one per scene."""
    protocol: Literal["sparse", "dense", "clicks", "instances", "object"] = "sparse"
    """What is labelled, in one training view: one pixel per class, everything, `clicks` pixels per class, or one pixel
    per instance. `object`: strokes or clicks on one object, whose masks in other views are scored."""
    methods: Annotated[tuple[Method, ...], tyro.conf.arg(help=methods_help())] = ("2d", "3d", "plus", "teacher")
    unshaped_config: tuple[Path, ...] = ()
    """config.yml of the same method trained without shaping, for `unshaped`; one per run."""
    clicks: int = 3
    """Pixels per class for `clicks`, and of the object for `object` without scribbles."""
    label_dir: Path | None = None
    """Folder of ground-truth label maps, named like the capture's images, for a run that was trained without them."""
    masks: tuple[Path, ...] = ()
    """For `object`: folder of black-and-white masks named like the capture's images; one per run."""
    reference: tuple[str, ...] = ()
    """For `object`: name of the image that is marked, one per run; by default the training image that shows most of the
    object. It is not scored."""
    scribbles: tuple[Path, ...] = ()
    """For `object`: pictures of white strokes in the reference, with `pos` (on the object) or `neg` (beside it) in
    their names, or their folder; with several runs one folder per run. Without, `clicks` pixels of the reference mask
    are clicked."""
    threshold: float | Literal["own"] = "own"
    """For `object`: response (0..1) from which on a pixel is the object's; `own`: found in the scene, as a click's
    is."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the simulated annotator."""
    stride: int = 1
    """Score every stride-th pixel in both directions; 1 is all."""
    pictures: int = 3
    """Held-out views on the picture sheet."""
    output_dir: Path | None = None
    """Folder for PROTOCOL.json and PROTOCOL.png; None is `evaluation` beside config.yml. With several runs it gets a
    folder per scene, and objects.json with the means."""

    def main(self) -> "Report | list[ObjectReport]":
        """Print the tables, and write numbers and pictures.

        Raises:
            UserError: options do not fit together, or something that they name cannot be used.
        """
        for name, value in (("clicks", self.clicks), ("stride", self.stride), ("seeds", len(self.seeds))):
            if value < 1:
                raise UserError(f"--{name} {value}: expected at least 1")
        if self._wants_plain and not self.unshaped_config:
            raise UserError(
                "method unshaped needs --unshaped-config RUN/config.yml: train one with "
                "--pipeline.model.shaping.mig-loss-mult 0 --pipeline.model.shaping.norm-loss-mult 0"
            )
        return self._evaluate_objects() if self.protocol == "object" else self._evaluate_labels()

    @property
    def _wants_plain(self) -> bool:
        return any(needs_unshaped_run(method) for method in self.methods)

    def _open(self, position: int) -> "tuple[Run, TrainedFields]":
        from jacobinerf_ns.evaluation.exercise import TrainedFields
        from jacobinerf_ns.run.opened import open_run

        def give_labels(config: "JacobiNeRFTrainerConfig") -> None:
            if self.label_dir is not None:
                config.pipeline.datamanager.label_dir = self.label_dir

        photos = any(draws_batches(method) for method in self.methods)
        run = open_run(self.load_config[position], change=give_labels, load_photos=photos)
        plain = open_run(self.unshaped_config[position]).pipeline if self._wants_plain else None
        return run, TrainedFields(run.pipeline, plain)

    def _evaluate_labels(self) -> "Report":
        from jacobinerf_ns.evaluation.annotators import Annotator
        from jacobinerf_ns.evaluation.labels import evaluate
        from jacobinerf_ns.evaluation.reports import class_table, table, write_report

        assert self.protocol != "object"
        if len(self.load_config) != 1:
            raise UserError(f"{len(self.load_config)} runs: --protocol {self.protocol} takes one, `object` several")
        if self.masks or self.reference or self.scribbles:
            raise UserError("--masks, --reference and --scribbles are for --protocol object: add it, or leave them out")
        run, fields = self._open(0)
        annotator = Annotator(self.protocol, self.clicks if self.protocol == "clicks" else 1)
        report = evaluate(fields, annotator, self.methods, self.seeds, self.stride, self.pictures)
        console = PlainConsole()
        console.print(table(report))
        console.print(class_table(report))
        _say(write_report(report, self.output_dir or run.folder / "evaluation", self.protocol))
        return report

    def _evaluate_objects(self) -> "list[ObjectReport]":
        from jacobinerf_ns.evaluation.objects import evaluate_object
        from jacobinerf_ns.evaluation.reports import object_table, write_object_means, write_report

        if self.label_dir is not None:
            raise UserError("--label-dir is for label maps, which --protocol object does not read: give --masks only")
        tasks, several = self._tasks(), len(self.load_config) > 1
        reports: dict[str, ObjectReport] = {}
        for i, task in enumerate(tasks):
            run, fields = self._open(i)
            data = run.config.pipeline.datamanager.dataparser.data
            name = (data.parent if data.suffix == ".json" else data).name
            name = f"{name}-{i + 1}" if name in reports else name
            report = evaluate_object(fields, task, self.methods, self.seeds, self.stride, self.pictures)
            reports[name] = report
            folder = self.output_dir / name if self.output_dir and several else self.output_dir
            _say(write_report(report, folder or run.folder / "evaluation", "object"))
        PlainConsole().print(object_table(reports))
        if several and self.output_dir is not None:
            write_object_means(reports, self.output_dir / "objects.json")
            _say([self.output_dir / "objects.json"])
        return list(reports.values())

    def _tasks(self) -> "list[ObjectTask]":
        """Return what is given of each run's object."""
        from jacobinerf_ns.evaluation.objects import ObjectTask

        runs = len(self.load_config)
        scribbles = [self.scribbles] if runs == 1 else [(place,) for place in self.scribbles]
        given = {"masks": self.masks, "reference": self.reference, "scribbles": scribbles}
        if self._wants_plain:
            given["unshaped-config"] = self.unshaped_config
        for name, values in given.items():
            if len(values) != runs and (len(values) or name == "masks"):
                raise UserError(f"--{name}: {len(values)} given for {runs} runs (--load-config), expected one per run")
        if self.threshold != "own" and not 0 <= self.threshold <= 1:
            raise UserError(f"--threshold {self.threshold:g}: expected a response in 0..1")
        return [
            ObjectTask(
                self.masks[i],
                self.reference[i] if self.reference else None,
                scribbles[i] if scribbles else (),
                self.clicks,
                self.threshold,
            )
            for i in range(runs)
        ]


def _say(written: list[Path]) -> None:
    for path in written:
        PlainConsole().print(str(path), soft_wrap=True, highlight=False)
