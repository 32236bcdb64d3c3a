"""What the benchmarks train: recipes (configs/*.yml), methods, and one training in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from jacobinerf_ns.compat.checkpoints import latest_checkpoint
from jacobinerf_ns.config import jacobinerf, jacobinerf_lite, jacobinerf_paper
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.dataparsers.replica_data import ReplicaDataParserConfig
from jacobinerf_ns.dataparsers.scannet_labels import ScanNetLabelsParserConfig
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.choices import ExtractorConfig
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig
from jacobinerf_ns.features.surfaces import SurfacesConfig
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.run.opened import open_run
from jacobinerf_ns.trainer import JacobiNeRFTrainer, JacobiNeRFTrainerConfig
from jacobinerf_ns.training import train

Variant = Literal["plain", "shaped"]
JOB_FLAG = "--job"
EXTRACTORS = {
    "dino": DinoConfig,
    "handcrafted": HandcraftedConfig,
    "oracle": OracleConfig,
    "precomputed": PrecomputedConfig,
    "surfaces": SurfacesConfig,
}
PARSERS = {
    "jacobinerf-data": JacobiNeRFDataParserConfig,
    "replica-data": ReplicaDataParserConfig,
    "scannet-labels": ScanNetLabelsParserConfig,
}
STOCK = {"entity_units": 0, "shaped_layers": "rgb", "background_color": "last_sample"}
"""What the model of a plain run has of nerfacto, whatever the method says."""
METHODS = {str(method.config.method_name): method.config for method in (jacobinerf, jacobinerf_lite, jacobinerf_paper)}


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
    """What to train; plain is the method as nerfacto has it: without shaping, without branches, and with nerfacto's own
    background. With ours such a field, which has no coarse branch, may end as fog before every camera."""
    steps: int | None = None
    """Training steps (none: the method's)."""
    downscale_factor: int | None = None
    """Image sizes are divided by this whole number."""
    parser: str = "jacobinerf-data"
    """Dataparser that reads the capture."""
    parser_options: dict[str, Any] = field(default_factory=dict)
    """Fields of the dataparser's config that differ from its defaults."""
    rays: int | None = None
    """Rays per training step (none: the method's)."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the method's model config that differ from its defaults."""
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
        return EXTRACTORS[kind](**typed_options(EXTRACTORS[kind], options, f"teacher {kind}"))

    def make_config(self, variant: Variant, seed: int) -> JacobiNeRFTrainerConfig:
        """The method's config with what this recipe changes. Errors: `UserError`, an unknown or wrong option."""
        config = deepcopy(METHODS[self.method])
        assert isinstance(config, JacobiNeRFTrainerConfig)
        config.machine.seed = seed
        config.timestamp, config.experiment_name = f"{variant}-{seed}", self.name
        config.max_num_iterations = self.steps or config.max_num_iterations
        data = config.pipeline.datamanager
        data.train_num_rays_per_batch = self.rays or data.train_num_rays_per_batch
        data.extractor = self.make_extractor()
        parser = PARSERS[self.parser]
        options = {"downscale_factor": self.downscale_factor, **self.parser_options}
        data.dataparser = parser(**typed_options(parser, options, f"parser {self.parser}"))
        model, where = config.pipeline.model, f"method {self.method}"
        shaping = typed_options(type(model.shaping), self.shaping, f"{where}, shaping")
        plain = variant == "plain"
        off = {"mig_loss_mult": 0.0, "norm_loss_mult": 0.0} if plain else {}
        config.pipeline.model = replace(
            model,
            **{**typed_options(type(model), self.model, f"{where}, model"), **(STOCK if plain else {})},
            shaping=replace(model.shaping, **{**shaping, **off}),
        )
        return config


def typed_options(config: type, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of a config as a YAML file has them, in the types of its fields. Errors: `UserError` naming `where`."""
    names, hints = {entry.name for entry in fields(config)} - {"_target"}, get_type_hints(config)
    found = {}
    for key, value in options.items():
        if key not in names:
            raise UserError(f"{where} has no option {key}: expected one of {', '.join(sorted(names))}")
        try:
            found[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            raise UserError(f"{where}, {key}: found {value!r}: {error.errors()[0]['msg']}") from error
        except PydanticUserError as error:
            raise UserError(f"{where}, {key}: cannot be set in a file") from error
    return found


def read_recipe(path: Path) -> Recipe:
    """A recipe from its YAML file; unknown keys are errors."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
        return Recipe(**fields)
    except (OSError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no recipe ({error}): see configs/nook-oracle.yml") from error


def run_folder(work_dir: Path, recipe: Recipe, variant: Variant, seed: int) -> Path:
    """Where a run lies."""
    return work_dir / recipe.name / recipe.method / f"{variant}-{seed}"


def steps_done(folder: Path) -> int:
    """Training steps of a run's last checkpoint; 0 where there is none."""
    checkpoints = folder / "nerfstudio_models"
    if not any(checkpoints.glob("step-*.ckpt")):
        return 0
    return int(latest_checkpoint(checkpoints).stem.removeprefix("step-")) + 1


def is_trained(work_dir: Path, recipe: Recipe, variant: Variant, seed: int) -> bool:
    """Whether a run is there, and trained to its last step."""
    steps = recipe.steps or METHODS[recipe.method].max_num_iterations
    return steps_done(run_folder(work_dir, recipe, variant, seed)) >= steps


def train_variant(
    recipe: Recipe, data: Path, work_dir: Path, variant: Variant, seed: int, resume: bool = False
) -> JacobiNeRFTrainer:
    """One training of a recipe, in this process; `resume` goes on from the checkpoint of a run that was interrupted."""
    config = recipe.make_config(variant, seed)
    folder = run_folder(work_dir, recipe, variant, seed)
    done = steps_done(folder) if resume else 0
    if done:
        config.load_dir = folder / "nerfstudio_models"
        config.max_num_iterations -= done  # nerfstudio counts from where it goes on.
    return train(config, f"{variant}, seed {seed}", data.absolute(), work_dir.absolute())


def open_variant(work_dir: Path, recipe: Recipe, variant: Variant, seed: int) -> JacobiNeRFPipeline:
    """The trained pipeline of a run. Errors: `UserError`, there is none."""
    folder = run_folder(work_dir, recipe, variant, seed)
    latest_checkpoint(folder / "nerfstudio_models")
    return open_run(folder / "config.yml", load_photos=True).pipeline


def run_apart(script: str, job: list[Any], log_path: Path | None, jobs: int) -> None:
    """Runs a job of a script in a process of its own: own seed state, threads and memory.

    Args:
        script: file to run.
        job: what follows JOB_FLAG.
        log_path: its suffix becomes .log and takes what the job prints; none lets it print here.
        jobs: processes side by side; with several, each has one thread.

    Raises:
        UserError: the job failed; with its last line, where that is in a log.
    """
    threads = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
    command, environment = [sys.executable, script, JOB_FLAG, *map(str, job)], {**os.environ, **threads}
    if log_path is None:
        if subprocess.run(command, env=environment).returncode:
            raise UserError("failed, see above")
        return
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.with_suffix(".log").open("w+", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    if code:
        reason = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
        raise UserError(f"failed: {reason} (all of it is in {log.name})")
