"""From a few labelled pixels to held-out views: ours against every rival, on the same fields, seeds and pixels.

    python benchmarks/propagation.py --data nook PATH atelier PATH

For each recipe (configs/): trains plain and shaped fields that are not there yet, simulates annotators (sparse: one
click per class in one view, eight draws; dense: that view labelled whole), fits every method and scores the held-out
views. Writes benchmarks/results/propagation-NAME.json and, from these files alone, the tables in docs/measurements.md.
With `--tables-only` nothing is run.
"""

import json
import re
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import tyro
from recipes import (
    JOB_FLAG,
    Recipe,
    Variant,
    is_trained,
    open_variant,
    read_recipe,
    run_apart,
    run_folder,
    train_variant,
)
from tables import mean_and_range

from jacobinerf_ns.errors import UserError, one_line_exit
from jacobinerf_ns.evaluation.annotators import Annotator, Protocol
from jacobinerf_ns.evaluation.exercise import TrainedFields
from jacobinerf_ns.evaluation.labels import evaluate
from jacobinerf_ns.evaluation.registry import CONTENDERS, Method
from jacobinerf_ns.evaluation.reports import write_report
from jacobinerf_ns.files.atomic import atomic_write

UNSHAPED: tuple[Method, ...] = ("unshaped", "unshaped-plus", "teacher")
LEARNT: tuple[Method, ...] = ("dff", "semantic-nerf", "probe")
GROUPS: dict[str, dict[Protocol, tuple[Method, ...]]] = {
    "fields": {"sparse": ("plus", "2d", "3d", "paper", *UNSHAPED), "dense": ("plus", "2d", "3d", "network", *UNSHAPED)},
    "learnt": {"sparse": LEARNT, "dense": LEARNT},
}
"""Methods that are measured in one job, by protocol; what is learnt on top of a field takes longer, and has its own."""
RIVALS = (*UNSHAPED, *LEARNT)
ANNOTATORS = tuple(range(8))
"""Seeds of the simulated annotator in the sparse protocol: where exactly somebody clicks matters much."""
START, END = "<!-- propagation tables: written by benchmarks/propagation.py -->", "<!-- end of propagation tables -->"


@dataclass
class Propagation:
    """Trains what is missing, evaluates what is missing, and writes numbers, pictures and tables."""

    recipes: tyro.conf.Positional[tuple[Path, ...]] = (
        Path("configs/nook-oracle.yml"),
        Path("configs/nook-handcrafted.yml"),
        Path("configs/atelier-oracle.yml"),
        Path("configs/atelier-handcrafted.yml"),
    )
    """What to compare, files in configs/."""
    data: dict[str, Path] | None = None
    """Captures: NAME PATH pairs; a recipe takes the capture that its name begins with."""
    jobs: int = 2
    """Processes side by side, one thread each."""
    work_dir: Path = Path("outputs/benchmarks")
    """Runs and reports; what is there already is not made again."""
    results: Path = Path("benchmarks/results")
    """Folder of the numbers."""
    tables_only: bool = False
    """Write the tables from the numbers that are there, and run nothing."""

    def main(self) -> None:
        """Runs what is missing, then writes everything."""
        recipes = {path: read_recipe(path) for path in self.recipes}
        if not self.tables_only:
            self._run(recipes)
        found = {}
        for recipe in recipes.values():
            path = self.results / f"propagation-{recipe.name}.json"
            if path.exists():
                found[recipe.name] = json.loads(path.read_text())
        write_tables(Path("docs/measurements.md"), found)

    def _run(self, recipes: dict[Path, Recipe]) -> None:
        by_name = {recipe.name: path for path, recipe in recipes.items()}
        trainings: dict[Path, list[Any]] = {}
        for path, recipe in recipes.items():
            for seed in recipe.seeds:
                owner = by_name.get(recipe.unshaped or recipe.name)
                if owner is None:
                    raise UserError(f"recipe {recipe.name} takes its plain runs from {recipe.unshaped}: name it too")
                sources: tuple[tuple[Path, Variant], ...] = ((path, "shaped"), (owner, "plain"))
                for source, variant in sources:
                    trained = read_recipe(source)
                    if not is_trained(self.work_dir, trained, variant, seed):
                        folder = run_folder(self.work_dir, trained, variant, seed)
                        trainings[folder] = ["train", source, self._data(recipe), self.work_dir, variant, seed]
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(lambda t: run_apart(__file__, t[1], t[0] / "training", self.jobs), trainings.items()))
            evaluations = {}
            for (path, recipe), group in product(recipes.items(), GROUPS):
                for seed in recipe.seeds:
                    report = self._report(recipe, group, seed)
                    job = [
                        "evaluate",
                        path,
                        by_name[recipe.unshaped or recipe.name],
                        seed,
                        group,
                        self.work_dir,
                        report,
                    ]
                    if not report.exists():
                        evaluations[report] = job
            list(pool.map(lambda e: run_apart(__file__, e[1], e[0], self.jobs), evaluations.items()))
        for recipe in recipes.values():
            parts = [[json.loads(self._report(recipe, g, s).read_text()) for g in GROUPS] for s in recipe.seeds]
            content = {"recipe": asdict(recipe), "annotators": ANNOTATORS, "runs": [merged(run) for run in parts]}
            with atomic_write(self.results / f"propagation-{recipe.name}.json") as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")

    def _report(self, recipe: Recipe, group: str, seed: int) -> Path:
        return self.work_dir / recipe.name / f"propagation-{group}-{seed}.json"

    def _data(self, recipe: Recipe) -> Path:
        for name, path in (self.data or {}).items():
            if recipe.name.startswith(name):
                return path
        raise UserError(f"no capture for recipe {recipe.name}: add its name and path to --data")


def train_job(recipe: str, data: str, work_dir: str, variant: str, seed: str) -> None:
    """One training, in this process."""
    assert variant in ("plain", "shaped")
    train_variant(read_recipe(Path(recipe)), Path(data), Path(work_dir), variant, int(seed), resume=True)


def evaluate_job(recipe_path: str, unshaped_path: str, seed: str, group: str, work_dir: str, report: str) -> None:
    """Both protocols with one group of methods on one pair of runs, in this process."""
    recipe, unshaped = read_recipe(Path(recipe_path)), read_recipe(Path(unshaped_path))
    work, number = Path(work_dir), int(seed)
    compares = any(method in UNSHAPED for methods in GROUPS[group].values() for method in methods)
    plain = open_variant(work, unshaped, "plain", number) if compares else None
    fields = TrainedFields(open_variant(work, recipe, "shaped", number), plain)
    found = {}
    for protocol, methods in GROUPS[group].items():
        result = evaluate(fields, Annotator(protocol), methods, ANNOTATORS, recipe.stride, pictures=2)
        write_report(result, Path(report).with_suffix(""), protocol)
        found[protocol] = result.as_dict()
    with atomic_write(Path(report)) as temporary:
        temporary.write_text(json.dumps({"seed": number, **found}, indent=1))


def merged(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The methods of all groups of one run together."""
    first = groups[0]
    for protocol in ("sparse", "dense"):
        for other in groups[1:]:
            first[protocol]["methods"].update(other[protocol]["methods"])
    return first


def write_tables(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Puts the tables between their markers in a Markdown file."""
    lines = [START, ""]
    for name, content in found.items():
        lines += [*table(name, content), ""]
    text = path.read_text(encoding="utf-8")
    if START not in text:
        raise UserError(f"{path} has no line {START}: put it where the tables belong")
    marked = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    with atomic_write(path) as temporary:
        temporary.write_text(marked.sub(lambda _: "\n".join([*lines, END]), text), encoding="utf-8")


def table(name: str, content: dict[str, Any]) -> list[str]:
    """A Markdown table of one recipe: mean over trainings of the mean over annotators, and the trainings' range.

    In square brackets: how many trainings a method was measured on, where that is not all.
    """
    runs = content["runs"]
    gained = [run["sparse"]["psnr"] - run["sparse"]["psnr_unshaped"] for run in runs]
    psnr = statistics.mean(run["sparse"]["psnr"] for run in runs)
    lines = [
        f"**`{name}`**, trainings: {len(runs)}; held-out PSNR {psnr:.2f} dB, {statistics.mean(gained):+.2f} dB against "
        f"unshaped ({', '.join(f'{gain:+.2f}' for gain in gained)}).",
        "",
        "| method | sparse mIoU | dense mIoU | sparse accuracy | dense accuracy |",
        "|---|---|---|---|---|",
    ]
    methods = list(dict.fromkeys(m for group in GROUPS.values() for names in group.values() for m in names))
    order = sorted(methods, key=lambda m: -_mean(runs, "sparse", m, "miou"))
    for method in order:
        title = CONTENDERS[method].title if method in RIVALS else f"**{CONTENDERS[method].title}**"
        cells = [
            _cell(runs, protocol, method, measure)
            for measure in ("miou", "total_accuracy")
            for protocol in ("sparse", "dense")
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _values(runs: Sequence[dict[str, Any]], protocol: str, method: str, measure: str) -> list[float]:
    return [run[protocol]["methods"][method]["mean"][measure] for run in runs if method in run[protocol]["methods"]]


def _mean(runs: Sequence[dict[str, Any]], protocol: str, method: str, measure: str) -> float:
    values = _values(runs, protocol, method, measure)
    return statistics.mean(values) if values else -1.0


def _cell(runs: Sequence[dict[str, Any]], protocol: str, method: str, measure: str) -> str:
    values = _values(runs, protocol, method, measure)
    if not values:
        return "–"
    fewer = f" [{len(values)}]" if len(values) < len(runs) else ""
    return f"{mean_and_range(values)}{fewer}"


if __name__ == "__main__":
    with one_line_exit():
        if sys.argv[1:2] == [JOB_FLAG]:
            kind, *arguments = sys.argv[2:]
            (train_job if kind == "train" else evaluate_job)(*arguments)
        else:
            tyro.cli(Propagation).main()
