"""From the scores of many units to the tables of a paper: means over scenes, with the range over trainings' seeds."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from paper_files import TASKS, Benchmark
from tables import Table, mean_and_range

from jacobinerf_ns.evaluation import labels
from jacobinerf_ns.evaluation.registry import CONTENDERS

TaskScores = dict[str, Any]
"""Content of one file of scores."""
MEASURES = {
    name: labels.MEASURES[name] for name in ("miou", "miou_labelled", "class_average_accuracy", "total_accuracy")
}
LISTED = "mIoU, listed"
CAPTIONS = {
    "semantic-sparse": "Classes, one click per class in one view",
    "semantic-dense": "Classes, one view labelled whole",
    "instance-sparse": "Instances, one click per instance in one view",
    "instance-dense": "Instances, one view labelled whole",
}
NONE = "–"
HEADER = (
    "Written by `benchmarks/paper_protocol.py`. Means over scenes of means over trainings and draws of the annotator; "
    "in brackets the smallest and the largest mean of one training seed. Trainings: pairs of scene and seed."
)


class Value(NamedTuple):
    """One number of one training."""

    scene: str
    seed: int
    number: float


def all_tables(benchmark: Benchmark, scores: Sequence[TaskScores]) -> list[Table]:
    """PSNR, then for every task the means over scenes and the mIoU of every scene; tables without numbers are left out.

    Args:
        benchmark: says the order of scenes and methods, and the listed classes.
        scores: of any units; those that are not there yet are missing in the counts of trainings.
    """
    scenes = _in_order(benchmark.scenes, [entry["scene"] for entry in scores])
    methods = _in_order(tuple(benchmark.methods), [entry["method"] for entry in scores])
    scores = sorted(scores, key=lambda entry: (methods.index(entry["method"]), scenes.index(entry["scene"])))
    tables = [psnr_table(scores, scenes)] if scores else []
    for task in TASKS:
        found = [entry for entry in scores if entry["task"] == task]
        if found:
            tables += [task_table(task, found, benchmark.classes), scene_table(task, found, scenes)]
    return tables


def description(benchmark: Benchmark, scores: Sequence[TaskScores]) -> list[str]:
    """What the tables have to say with them: how they are made, the teacher, the trainings' lengths, absent classes."""
    lines = [HEADER]
    kind = benchmark.extractor["kind"]
    options = "".join(f", {key} {value}" for key, value in benchmark.extractor.items() if key != "kind")
    oracle = "; made from the ground truth itself, it stands in for a real teacher" if kind == "oracle" else ""
    lines.append(f"Teacher: {kind}{options}{oracle}.")
    trained = {entry["method"]: entry["settings"] for entry in scores}
    for method, settings in trained.items():
        start = settings["model"]["shaping_start_step"]
        lines.append(f"{method}: {settings['steps']} steps, shaped fields from step {start} on.")
    absent = absent_classes(scores, benchmark.classes or ())
    if absent:
        lines.append(f"Listed classes that occur in none of these scenes: {', '.join(absent)}.")
    return lines


def psnr_table(scores: Sequence[TaskScores], scenes: Sequence[str]) -> Table:
    """Held-out PSNR of plain and shaped fields, per scene and in the mean."""
    values: dict[tuple[str, str], dict[tuple[str, int], float]] = defaultdict(dict)
    for entry in scores:
        for field, key in (("plain", "psnr_unshaped"), ("shaped", "psnr")):
            if entry[key] is not None:
                values[entry["method"], field][entry["scene"], entry["seed"]] = entry[key]
    rows = []
    for (method, field), found in values.items():
        numbers = [Value(scene, seed, number) for (scene, seed), number in found.items()]
        rows.append([method, field, *_by_scene(numbers, scenes, 2), summary(numbers, 2), str(len(numbers))])
    return Table("PSNR of held-out views (dB)", ["method", "field", *scenes, "mean", "trainings"], rows, 2)


def task_table(task: str, scores: Sequence[TaskScores], classes: Sequence[str] | None) -> Table:
    """Every measure of every contender, means over scenes."""
    measures: dict[str, Callable[[TaskScores], float | None]] = {
        title: lambda entry, measure=measure: entry["mean"][measure] for measure, title in MEASURES.items()
    }
    if classes is not None and task.startswith("semantic"):
        measures[LISTED] = lambda entry: miou_of(entry["class_iou"], classes)
    rows = []
    for (method, contender), found in _by_row(scores).items():
        row = [method, CONTENDERS[contender].title]
        for measure in measures.values():
            numbers = [
                Value(scene, seed, value) for scene, seed, entry in found if (value := measure(entry)) is not None
            ]
            row.append(summary(numbers) if numbers else NONE)
        rows.append([*row, str(len(found))])
    return Table(f"{CAPTIONS[task]}: mean over scenes", ["method", "contender", *measures, "trainings"], rows, 2)


def scene_table(task: str, scores: Sequence[TaskScores], scenes: Sequence[str]) -> Table:
    """mIoU of every contender on every scene."""
    rows = []
    for (method, contender), found in _by_row(scores).items():
        numbers = [Value(scene, seed, entry["mean"]["miou"]) for scene, seed, entry in found]
        rows.append([method, CONTENDERS[contender].title, *_by_scene(numbers, scenes, 3)])
    return Table(f"{CAPTIONS[task]}: mIoU per scene", ["method", "contender", *scenes], rows, 2)


def miou_of(class_iou: dict[str, list[float | None]], classes: Sequence[str]) -> float | None:
    """Mean over draws of the mean IoU of those listed classes that occur; nothing where none does."""
    columns = [class_iou[name] for name in classes if name in class_iou]
    draws = [[value for value in draw if value is not None] for draw in zip(*columns, strict=True)]
    means = [statistics.mean(draw) for draw in draws if draw]
    return statistics.mean(means) if means else None


def absent_classes(scores: Sequence[TaskScores], classes: Sequence[str]) -> list[str]:
    """Listed classes that occur in no scene: perhaps written otherwise there."""
    seen = {
        name
        for entry in scores
        if entry["task"].startswith("semantic")
        for method in entry["methods"].values()
        for name in method["class_iou"]
    }
    return [name for name in classes if name not in seen]


def summary(values: Sequence[Value], digits: int = 3) -> str:
    """Mean over scenes of the mean over seeds, and the range of single seeds' means over scenes.

    Only seeds that have all of these scenes take part in the range: means over other scenes cannot be compared.
    """
    by_scene, by_seed = defaultdict(list), defaultdict(dict)
    for value in values:
        by_scene[value.scene].append(value.number)
        by_seed[value.seed][value.scene] = value.number
    mean = statistics.mean(statistics.mean(numbers) for numbers in by_scene.values())
    whole = [statistics.mean(found.values()) for found in by_seed.values() if len(found) == len(by_scene)]
    spread = f" ({min(whole):.{digits}f}–{max(whole):.{digits}f})" if len(whole) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def _by_scene(values: Sequence[Value], scenes: Sequence[str], digits: int) -> list[str]:
    cells = []
    for scene in scenes:
        numbers = [value.number for value in values if value.scene == scene]
        cells.append(mean_and_range(numbers, digits) if numbers else NONE)
    return cells


def _by_row(scores: Sequence[TaskScores]) -> dict[tuple[str, str], list[tuple[str, int, TaskScores]]]:
    """(scene, seed, a contender's scores) by method and contender, contenders in the order of their names' list."""
    rows = defaultdict(list)
    for entry in scores:
        for contender, found in entry["methods"].items():
            rows[entry["method"], contender].append((entry["scene"], entry["seed"], found))
    methods, order = list(dict.fromkeys(method for method, _ in rows)), list(CONTENDERS)
    return dict(sorted(rows.items(), key=lambda row: (methods.index(row[0][0]), order.index(row[0][1]))))


def _in_order(first: Sequence[str], found: Sequence[str]) -> list[str]:
    """What was found, in the order of the file; what the file does not name comes last."""
    return [name for name in dict.fromkeys((*first, *sorted(found))) if name in found]
