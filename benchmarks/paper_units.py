"""One unit of the paper's protocol: a method, trained plain and shaped with one seed on one scene, and all its scores.

Everything lies in WORK_DIR/BENCHMARK/SCENE/METHOD: runs as VARIANT-SEED, scores as scores-SEED/TASK.json, and
settings.json, which keeps results of other settings from being taken for these.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from paper_files import Benchmark, Task
from recipes import Recipe, Variant, is_trained, open_variant, train_variant

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.annotators import Annotator
from jacobinerf_ns.evaluation.exercise import TrainedFields
from jacobinerf_ns.evaluation.labels import evaluate
from jacobinerf_ns.evaluation.registry import Method as Contender
from jacobinerf_ns.evaluation.registry import needs_unshaped_run
from jacobinerf_ns.files.atomic import write_json
from jacobinerf_ns.labels.truth import Truth

_NOT_SETTINGS = ("name", "method", "seeds", "variants", "unshaped")


class WholeViewOfInstances(Annotator):
    """One view labelled whole, with instances instead of classes."""

    @property
    def truth(self) -> Truth:
        """Which label maps it looks at."""
        return "instances"


ANNOTATORS: dict[Task, Annotator] = {
    "semantic-sparse": Annotator("sparse"),
    "semantic-dense": Annotator("dense"),
    "instance-sparse": Annotator("instances"),
    "instance-dense": WholeViewOfInstances("dense"),
}


class Unit(NamedTuple):
    """What is trained and scored together."""

    scene: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.scene}, {self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Place:
    """A benchmark, its data and the folder of its runs."""

    benchmark: Benchmark
    work_dir: Path
    data: Path | None = None
    """Folder of the scenes; not needed to read scores."""
    steps_scale: float = 1.0
    """All schedules are as many times as long; results go to folders of their own."""

    @property
    def name(self) -> str:
        """Of the results."""
        return self.benchmark.name + ("" if self.steps_scale == 1 else f"-x{self.steps_scale:g}")

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.work_dir / self.name

    def recipe(self, unit: Unit) -> Recipe:
        """What is trained."""
        return self.benchmark.recipe(unit.scene, unit.method, self.steps_scale)

    def folder(self, unit: Unit) -> Path:
        """Of the unit's runs and scores."""
        return self.runs / unit.scene / unit.method

    def scores_path(self, unit: Unit, task: Task) -> Path:
        """File of the scores of one task."""
        return self.folder(unit) / f"scores-{unit.seed}" / f"{task}.json"

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is trained: fields without shaping only where a contender is one."""
        contenders = [contender for wanted in self.benchmark.tasks.values() for contender in wanted]
        return ("plain", "shaped") if any(map(needs_unshaped_run, contenders)) else ("shaped",)

    def settings(self, unit: Unit) -> dict[str, Any]:
        """All that decides about the numbers of a unit, beside its name and seed, as JSON gives it back."""
        recipe = {key: value for key, value in asdict(self.recipe(unit)).items() if key not in _NOT_SETTINGS}
        return json.loads(json.dumps({**recipe, "annotators": self.benchmark.annotators}))

    def check_settings(self, unit: Unit) -> None:
        """Errors: `UserError`, what is there was made with other settings."""
        path = self.folder(unit) / "settings.json"
        if not path.exists():
            return
        there, now = json.loads(path.read_text(encoding="utf-8")), self.settings(unit)
        for key in sorted({*there, *now}):
            if there.get(key) != now.get(key):
                raise UserError(
                    f"{path.parent} was made with {key} {there.get(key)}, the benchmark now has {now.get(key)}: give "
                    "it another name, or choose another --work-dir"
                )

    def missing(self, unit: Unit, contenders: Sequence[Contender] = ()) -> dict[Task, list[Contender]]:
        """Contenders that have no scores yet, by task; `contenders` limits who is wanted."""
        found: dict[Task, list[Contender]] = {}
        for task, wanted in self.benchmark.tasks.items():
            known = (self.read_scores(unit, task) or {"methods": {}})["methods"]
            lacking: list[Contender] = [
                one for one in wanted if one not in known and (not contenders or one in contenders)
            ]
            if lacking:
                found[task] = lacking
        return found

    def is_complete(self, unit: Unit, contenders: Sequence[Contender] = ()) -> bool:
        """Whether everything is trained and scored."""
        trained = all(is_trained(self.runs, self.recipe(unit), variant, unit.seed) for variant in self.variants)
        return trained and not self.missing(unit, contenders)

    def read_scores(self, unit: Unit, task: Task) -> dict[str, Any] | None:
        """Scores of one task, where there are any."""
        path = self.scores_path(unit, task)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def run_unit(place: Place, unit: Unit, contenders: Sequence[Contender] = ()) -> None:
    """Trains and scores what is missing of a unit. Errors: `UserError`."""
    assert place.data is not None
    place.check_settings(unit)
    write_json(place.folder(unit) / "settings.json", place.settings(unit), overwrite=True)
    recipe, data = place.recipe(unit), place.benchmark.scene_folder(place.data, unit.scene)
    for variant in place.variants:
        if not is_trained(place.runs, recipe, variant, unit.seed):
            train_variant(recipe, data, place.runs, variant, unit.seed, resume=True)
    lacking = place.missing(unit, contenders)
    if not lacking:
        return
    pipelines = {variant: open_variant(place.runs, recipe, variant, unit.seed) for variant in place.variants}
    fields = TrainedFields(pipelines["shaped"], pipelines.get("plain"))
    for task, wanted in lacking.items():
        torch.manual_seed(unit.seed)
        annotator, seeds = ANNOTATORS[task], place.benchmark.annotators
        found = evaluate(fields, annotator, wanted, seeds, recipe.stride).as_dict()
        known = (place.read_scores(unit, task) or {"methods": {}})["methods"]
        content = {**unit._asdict(), "task": task, **found, "methods": {**known, **found["methods"]}}
        write_json(place.scores_path(unit, task), content, overwrite=True)
