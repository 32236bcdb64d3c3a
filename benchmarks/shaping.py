"""Plain against shaped: the same method, steps and seeds, on one capture, measured on its held-out views.

    python benchmarks/shaping.py configs/nook-oracle.yml --data nook
    python benchmarks/shaping.py configs/fox-handcrafted.yml --data fox

The recipe is a small YAML file (configs/). Where the capture has label maps: cosines of same-class and of other
pixel pairs, and mIoU by one click per class (4 click seeds) and by one labelled view, nearest prototype by cosine;
and the same of the teacher's own features.
"""

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml
from rich.console import Console
from rich.table import Table

from jacobinerf_ns import evaluation
from jacobinerf_ns.config import jacobinerf, jacobinerf_lite, jacobinerf_paper
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.errors import UserError, one_line_exit
from jacobinerf_ns.features.choices import ExtractorConfig
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig
from jacobinerf_ns.files import atomic_write
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig
from jacobinerf_ns.training import train

Variant = Literal["plain", "shaped"]
JOB_FLAG = "--job"
EXTRACTORS = {
    "dino": DinoConfig,
    "handcrafted": HandcraftedConfig,
    "oracle": OracleConfig,
    "precomputed": PrecomputedConfig,
}
METHODS = {method.config.method_name: method.config for method in (jacobinerf, jacobinerf_lite, jacobinerf_paper)}
ROWS = {
    "psnr": "held-out PSNR (dB)",
    "cosine_same": "cosine, same class",
    "cosine_different": "cosine, different class",
    "cosine_gap": "same − different",
    "mean_click_miou": "mIoU, one click per class",
    "dense_miou": "mIoU, whole view labelled",
}


@dataclass(frozen=True)
class Recipe:
    """What is compared: the content of a file in configs/."""

    name: str
    """Name of the result: benchmarks/results/shaping-NAME.json."""
    extractor: dict[str, Any]
    """Teacher: its kind, and its options."""
    method: str = "jacobinerf-lite"
    """Method to train."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the training; the teacher's own noise stays the same."""
    variants: tuple[Variant, ...] = ("plain", "shaped")
    """What to train; plain is the same method with shaping switched off."""
    steps: int | None = None
    """Training steps (none: the method's)."""
    downscale_factor: int | None = None
    """Image sizes are divided by this whole number."""
    shaping: dict[str, Any] = field(default_factory=dict)
    """Fields of the method's shaping config that differ from its defaults."""

    def make_extractor(self) -> ExtractorConfig:
        """The teacher's config."""
        options = dict(self.extractor)
        kind = options.pop("kind", None)
        if kind not in EXTRACTORS:
            raise UserError(f"teacher {kind} in recipe {self.name}: expected one of {', '.join(EXTRACTORS)}")
        return EXTRACTORS[kind](**options)


def read_recipe(path: Path) -> Recipe:
    """A recipe from its YAML file; unknown keys are errors."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
        return Recipe(**fields)
    except (OSError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no recipe ({error}): see configs/nook-oracle.yml") from error


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
    """Runs and their reports; a report that is there already is not made again."""
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
            report.parent.mkdir(parents=True, exist_ok=True)
            job = [str(part) for part in (self.recipe, self.data, self.work_dir, report, variant, seed)]
            threads = {"OMP_NUM_THREADS": "1"} if self.jobs > 1 else {}
            with report.with_suffix(".log").open("w") as log:
                command = [sys.executable, __file__, JOB_FLAG, *job]
                subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, **threads})
        return json.loads(report.read_text())


def run_job(recipe_path: str, data: str, work_dir: str, report_path: str, variant: str, seed: str) -> None:
    """One training and its report, in this process."""
    recipe = read_recipe(Path(recipe_path))
    config = deepcopy(METHODS[recipe.method])
    assert isinstance(config, JacobiNeRFTrainerConfig)
    config.machine.seed = int(seed)
    config.timestamp, config.experiment_name = f"{variant}-{seed}", recipe.name
    config.max_num_iterations = recipe.steps or config.max_num_iterations
    config.pipeline.datamanager.extractor = recipe.make_extractor()
    config.pipeline.datamanager.dataparser = JacobiNeRFDataParserConfig(downscale_factor=recipe.downscale_factor)
    model = config.pipeline.model
    off = {"mig_loss_mult": 0.0, "norm_loss_mult": 0.0} if variant == "plain" else {}
    model.shaping = replace(model.shaping, **{**recipe.shaping, **off})
    trainer = train(config, f"{variant}, seed {seed}", Path(data).absolute(), Path(work_dir).absolute())
    data_manager = trainer.pipeline.datamanager
    if data_manager.frames("eval")[0].semantics is None:
        report: dict[str, Any] = {"psnr": evaluation.held_out_psnr(trainer.pipeline)}
    else:
        report = evaluation.evaluate_one_click(trainer.pipeline).as_dict()
        report["teacher"] = evaluation.evaluate_teacher(data_manager)
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
