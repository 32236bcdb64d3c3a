"""The paper's tables as one command: plain and shaped fields, sparse and dense labels, ours and every rival.

    python benchmarks/paper_protocol.py configs/paper-replica.yml --data Replica_Dataset
    python benchmarks/paper_protocol.py configs/paper-scannet.yml --data ScanNet --scenes scene0000_00
    python benchmarks/paper_protocol.py configs/paper-replica.yml --data Replica_Dataset --steps-scale 0.01 --seeds 0

The file says which scenes, splits, methods and contenders there are. What was trained or scored before is not made
again, and an interrupted training goes on from its last checkpoint. The results are RESULTS/NAME.json, and, made from
it alone, NAME.md and NAME.tex. See docs/paper-protocol.md.
"""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import tyro
from paper_files import check_contender, check_methods, read_benchmark
from paper_tables import TaskScores, all_tables, description
from paper_units import Place, Unit, run_unit
from recipes import JOB_FLAG, run_apart
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tables import latex, markdown

from jacobinerf_ns.errors import UserError, one_line_exit
from jacobinerf_ns.files.atomic import writing


@dataclass
class PaperProtocol:
    """Trains what is missing, scores what is missing, and writes numbers and tables."""

    benchmark: tyro.conf.Positional[Path]
    """What to run, a file such as configs/paper-replica.yml."""
    data: Path | None = None
    """Folder that has the scenes' folders; not needed with --tables-only."""
    scenes: tuple[str, ...] = ()
    """Scenes of the file to run; all if not given."""
    methods: tuple[str, ...] = ()
    """Methods to train, also such as the file does not name (jacobinerf-lite, for CPUs); those of the file if not
    given."""
    contenders: tuple[str, ...] = ()
    """Contenders of the file to score; all if not given."""
    seeds: tuple[int, ...] = ()
    """Seeds of the training; those of the file if not given."""
    steps_scale: float = 1.0
    """All training schedules are as many times as long: 0.01 tries everything quickly, with results of its own."""
    jobs: int = 1
    """Units (a scene, a method, a seed) side by side; one prints its progress here, several theirs to logs."""
    work_dir: Path = Path("outputs/benchmarks")
    """Runs and scores; what is there already is not made again."""
    results: Path = Path("benchmarks/results")
    """Folder of numbers and tables."""
    tables_only: bool = False
    """Write the tables from the numbers that are there, and run nothing."""

    def main(self) -> None:
        """Runs what is missing, then writes everything. Errors: `UserError`, also when a part failed."""
        place = self._place()
        units = self._units(place)
        failed = [] if self.tables_only else self._run(place, units)
        found = self._collect(place, units)
        if found:
            self._write_tables(place, found)
        if failed or not found:
            reason = f"{len(failed)} of {len(units)} units failed" if failed else "there are no numbers to show"
            raise UserError(f"{place.name}: {reason}: run the same command again for what is missing")

    def _place(self) -> Place:
        for name, value in (("jobs", self.jobs), ("steps-scale", self.steps_scale)):
            if value <= 0:
                raise UserError(f"--{name} {value}: expected more than 0")
        return Place(read_benchmark(self.benchmark), self.work_dir, self.data, self.steps_scale)

    def _units(self, place: Place) -> list[Unit]:
        benchmark = place.benchmark
        check_methods(self.methods)
        for contender in self.contenders:
            check_contender(contender)
        for scene in self.scenes:
            if scene not in benchmark.scenes:
                raise UserError(f"unknown scene {scene}: {self.benchmark} has {', '.join(benchmark.scenes)}")
        chosen = (self.scenes or benchmark.scenes, self.methods or benchmark.methods, self.seeds or benchmark.seeds)
        units = list(
            dict.fromkeys(Unit(scene, method, seed) for seed, scene, method in product(chosen[2], *chosen[:2]))
        )
        for unit in units:
            place.check_settings(unit)
        return units

    def _run(self, place: Place, units: list[Unit]) -> list[Unit]:
        """Runs units that lack anything, and returns those that failed."""
        check_data(place, units)
        contenders = [check_contender(name) for name in self.contenders]
        lacking = [unit for unit in units if not place.is_complete(unit, contenders)]
        print(f"{place.name}: {len(units)} units, {len(units) - len(lacking)} of them done before", flush=True)
        failed: list[Unit] = []

        def run(unit: Unit) -> None:
            log = place.folder(unit) / f"log-{unit.seed}" if self.jobs > 1 else None
            job = [self.benchmark, self.data, self.work_dir, self.steps_scale, *unit, *contenders]
            run_apart(__file__, job, log, self.jobs)

        def tell(unit: Unit, error: UserError) -> None:
            failed.append(unit)
            print(f"error: {unit}: {error}", file=sys.stderr, flush=True)

        (_one_by_one if self.jobs == 1 else _side_by_side)(lacking, run, tell, self.jobs)
        return failed

    def _collect(self, place: Place, units: list[Unit]) -> list[TaskScores]:
        """All scores of the results' file, brought up to date; those that the command asks for are returned."""
        path = self.results / f"{place.name}.json"
        known = read_results(path)
        before = json.dumps(known)
        for unit, task in product(units, place.benchmark.tasks):
            scores = place.read_scores(unit, task)
            if scores is not None:
                known[f"{'/'.join(map(str, unit))}/{task}"] = {"settings": place.settings(unit), **scores}
        for entry in known.values():
            unit = Unit(entry["scene"], entry["method"], entry["seed"])
            if entry["settings"] != place.settings(unit):
                raise UserError(f"{path} has numbers of other settings ({unit}): move it, or rename the benchmark")
        if json.dumps(known) != before:
            with writing(path, overwrite=True) as temporary:
                content = {"benchmark": place.benchmark.model_dump(mode="json"), "scores": known}
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return [scores for scores in known.values() if self._asked_for(scores)]

    def _asked_for(self, scores: TaskScores) -> bool:
        """Whether the command's options leave this in; contenders are left out of the scores themselves."""
        limits = ((self.scenes, "scene"), (self.methods, "method"), (self.seeds, "seed"))
        if self.contenders:
            scores["methods"] = {name: found for name, found in scores["methods"].items() if name in self.contenders}
        return all(not wanted or scores[key] in wanted for wanted, key in limits)

    def _write_tables(self, place: Place, found: list[TaskScores]) -> None:
        tables = all_tables(place.benchmark, found)
        said = description(place.benchmark, found)
        labels = [f"tab:{place.name}-{i}" for i in range(1, len(tables) + 1)]
        formats = {
            "md": "\n".join([f"# {place.name}", "", *(f"{line}\n" for line in said), *map(markdown, tables)]),
            "tex": "\n".join([*(f"% {line}" for line in said), "", *map(latex, tables, labels)]),
        }
        for suffix, content in formats.items():
            path = self.results / f"{place.name}.{suffix}"
            with writing(path, overwrite=True) as temporary:
                temporary.write_text(content, encoding="utf-8")
            Console().print(str(path), soft_wrap=True, highlight=False)


def check_data(place: Place, units: list[Unit]) -> None:
    """Errors: `UserError`, a scene has no folder; one line per scene."""
    if place.data is None:
        raise UserError("no data: give --data the folder of the scenes, or --tables-only")
    missing = [
        f"scene {scene}: no folder {folder}"
        for scene in dict.fromkeys(unit.scene for unit in units)
        if not (folder := place.benchmark.scene_folder(place.data, scene)).is_dir()
    ]
    for line in missing[:-1]:
        print(f"error: {line}", file=sys.stderr)
    if missing:
        raise UserError(f"{missing[-1]}: correct --data, or choose with --scenes")


def read_results(path: Path) -> dict[str, Any]:
    """Scores by scene/method/seed/task; nothing where there is no file. Errors: `UserError`, it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["scores"] if path.exists() else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of scores ({error}): move it away") from error


def _one_by_one(
    units: list[Unit], run: Callable[[Unit], None], tell: Callable[[Unit, UserError], None], jobs: int
) -> None:
    for i, unit in enumerate(units, start=1):
        print(f"{i} of {len(units)}: {unit}", flush=True)
        try:
            run(unit)
        except UserError as error:
            tell(unit, error)


def _side_by_side(
    units: list[Unit], run: Callable[[Unit], None], tell: Callable[[Unit, UserError], None], jobs: int
) -> None:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("units")]
    with ThreadPoolExecutor(jobs) as pool, Progress(*columns, TimeElapsedColumn()) as progress:
        task = progress.add_task("Training and scoring", total=len(units))
        waiting = {pool.submit(run, unit): unit for unit in units}
        for future in as_completed(waiting):
            try:
                future.result()
            except UserError as error:
                tell(waiting[future], error)
            progress.advance(task)


def unit_job(
    benchmark: str, data: str, work_dir: str, steps_scale: str, scene: str, method: str, seed: str, *contenders: str
) -> None:
    """One unit, in this process."""
    place = Place(read_benchmark(Path(benchmark)), Path(work_dir), Path(data), float(steps_scale))
    run_unit(place, Unit(scene, method, int(seed)), [check_contender(name) for name in contenders])


if __name__ == "__main__":
    with one_line_exit():
        if sys.argv[1:2] == [JOB_FLAG]:
            unit_job(*sys.argv[2:])
        else:
            tyro.cli(PaperProtocol).main()
