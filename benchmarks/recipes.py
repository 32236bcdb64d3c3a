"""What the benchmarks train: recipes (configs/*.yml), methods, and one training in a process of its own."""

import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from jacobinerf_ns.config import jacobinerf, jacobinerf_lite, jacobinerf_paper
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.choices import ExtractorConfig
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig
from jacobinerf_ns.trainer import JacobiNeRFTrainer, JacobiNeRFTrainerConfig
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
    unshaped: str | None = None
    """Recipe on the same capture whose plain runs are the unshaped field, to save training them twice (none: this)."""
    stride: int = 1
    """Propagation is scored on every stride-th pixel of every stride-th row of the held-out views."""

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


def train_variant(recipe: Recipe, data: Path, work_dir: Path, variant: Variant, seed: int) -> JacobiNeRFTrainer:
    """One training of a recipe, in this process; its run lies in WORK_DIR/RECIPE/METHOD/VARIANT-SEED."""
    config = deepcopy(METHODS[recipe.method])
    assert isinstance(config, JacobiNeRFTrainerConfig)
    config.machine.seed = seed
    config.timestamp, config.experiment_name = f"{variant}-{seed}", recipe.name
    config.max_num_iterations = recipe.steps or config.max_num_iterations
    config.pipeline.datamanager.extractor = recipe.make_extractor()
    config.pipeline.datamanager.dataparser = JacobiNeRFDataParserConfig(downscale_factor=recipe.downscale_factor)
    model = config.pipeline.model
    off = {"mig_loss_mult": 0.0, "norm_loss_mult": 0.0} if variant == "plain" else {}
    model.shaping = replace(model.shaping, **{**recipe.shaping, **off})
    return train(config, f"{variant}, seed {seed}", data.absolute(), work_dir.absolute())


def run_apart(script: str, job: list[Any], report: Path, jobs: int) -> None:
    """Runs a job of a script in a process of its own: own seed state, threads and memory; its log is beside REPORT."""
    report.parent.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
    with report.with_suffix(".log").open("w") as log:
        command = [sys.executable, script, JOB_FLAG, *(str(part) for part in job)]
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, **threads})
