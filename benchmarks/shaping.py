"""Plain against shaped: the same method, steps and seeds, on one capture, measured on its held-out views.

    python benchmarks/shaping.py configs/nook-oracle.yml --data nook
    python benchmarks/shaping.py configs/fox-handcrafted.yml --data fox

The recipe is a small YAML file (configs/). Where the capture has label maps: cosines of same-class and of other
pixel pairs, and mIoU by one click per class (4 click seeds) and by one labelled view, nearest prototype by cosine;
and the same of the teacher's own features.
"""

import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from recipes import JOB_FLAG, Recipe, Variant, is_trained, open_variant, read_recipe, run_apart, train_variant
from rich.console import Console
from rich.table import Table

from jacobinerf_ns.errors import one_line_exit
from jacobinerf_ns.evaluation import shaping_quality
from jacobinerf_ns.files.atomic import atomic_write

ROWS = {
    "psnr": "held-out PSNR (dB)",
    "cosine_same": "cosine, same class",
    "cosine_different": "cosine, different class",
    "cosine_gap": "same − different",
    "mean_click_miou": "mIoU, one click per class",
    "dense_miou": "mIoU, whole view labelled",
}


@dataclass
class Shaping:
    """Trains each variant with each seed, evaluates, and writes one JSON file with all numbers."""

    recipe: tyro.conf.Positional[Path]
    """What to compare, a file in configs/."""
    data: Path
    """Capture."""
    jobs: int = 2
    """Trainings side by side, one thread each; with 1, a training has all threads."""
    work_dir: Path = Path("outputs/benchmarks")
    """Runs and their reports, shared with `propagation.py`; what is there already is not made again."""
    results: Path = Path("benchmarks/results")
    """Folder of the result."""

    def main(self) -> None:
        """Runs what is missing, then prints and writes the table."""
        recipe = read_recipe(self.recipe)
        runs = [(variant, seed) for seed in recipe.seeds for variant in recipe.variants]
        with ThreadPoolExecutor(self.jobs) as pool:
            reports = list(pool.map(lambda run: self._run_apart(recipe, *run), runs))
        by_variant: dict[str, list[dict[str, Any]]] = {variant: [] for variant in recipe.variants}
        for (variant, _), report in zip(runs, reports, strict=True):
            by_variant[variant].append(report)
        with atomic_write(self.results / f"shaping-{recipe.name}.json") as temporary:
            temporary.write_text(json.dumps({"recipe": asdict(recipe), "runs": by_variant}, indent=2) + "\n")
        print_table(recipe.name, by_variant)

    def _run_apart(self, recipe: Recipe, variant: Variant, seed: int) -> dict[str, Any]:
        """Trains in a process of its own: its own seed state, threads and memory."""
        report = self.work_dir / recipe.name / f"{variant}-{seed}.json"
        if not report.exists():
            job = [self.recipe, self.data, self.work_dir, report, variant, seed]
            run_apart(__file__, job, report, self.jobs)
        return json.loads(report.read_text())


def run_job(recipe_path: str, data: str, work_dir: str, report_path: str, variant: str, seed: str) -> None:
    """One training and its report, in this process."""
    assert variant in ("plain", "shaped")
    recipe, work = read_recipe(Path(recipe_path)), Path(work_dir)
    if not is_trained(work, recipe, variant, int(seed)):
        train_variant(recipe, Path(data), work, variant, int(seed), resume=True)
    pipeline = open_variant(work, recipe, variant, int(seed))
    data_manager = pipeline.datamanager
    if data_manager.frames("eval")[0].semantics is None:
        report: dict[str, Any] = {"psnr": shaping_quality.held_out_psnr(pipeline)}
    else:
        report = shaping_quality.evaluate_one_click(pipeline).as_dict()
        report["teacher"] = shaping_quality.evaluate_teacher(data_manager)
    with atomic_write(Path(report_path)) as temporary:
        temporary.write_text(json.dumps(report, indent=2))


def print_table(name: str, by_variant: dict[str, list[dict[str, Any]]]) -> None:
    """Mean over seeds and, in brackets, smallest and largest."""
    table = Table(title=f"{name}: mean over seeds [smallest … largest]")
    table.add_column("")
    for variant in by_variant:
        table.add_column(variant, justify="right")
    for key, title in ROWS.items():
        cells = []
        for reports in by_variant.values():
            values = [report[key] for report in reports if key in report]
            spread = f"{statistics.mean(values):.3f} [{min(values):.3f} … {max(values):.3f}]" if values else "–"
            cells.append(spread)
        table.add_row(title, *cells)
    Console().print(table)


if __name__ == "__main__":
    with one_line_exit():
        if sys.argv[1:2] == [JOB_FLAG]:
            run_job(*sys.argv[2:])
        else:
            tyro.cli(Shaping).main()
