"""What the paper's protocol is run on: the content of configs/paper-*.yml, checked before anything is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from recipes import METHODS, PARSERS, Recipe

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.registry import CONTENDERS
from jacobinerf_ns.evaluation.registry import Method as Contender
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig

Task = Literal["semantic-sparse", "semantic-dense", "instance-sparse", "instance-dense"]
TASKS: tuple[Task, ...] = get_args(Task)


def check_contender(name: Any) -> Any:
    """The name. Errors: `UserError`, nobody is called so."""
    if name not in CONTENDERS:
        raise UserError(f"unknown contender {name}: expected one of {', '.join(CONTENDERS)}")
    return name


class Strict(BaseModel):
    """A part of the file: unknown keys are errors, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodSettings(Strict):
    """What a benchmark changes of a registered method; what is not given stays as the method has it."""

    steps: int | None = Field(default=None, ge=2)
    """Training steps."""
    shaping_start: int | None = Field(default=None, ge=0)
    """First step with shaping; those before it are plain training."""
    rays: int | None = Field(default=None, ge=1)
    """Rays per step."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Fields of the model's config."""
    shaping: dict[str, Any] = Field(default_factory=dict)
    """Fields of the shaping config."""


class Benchmark(Strict):
    """A benchmark of the paper's protocol."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the results' files."""
    parser: str
    """Dataparser that reads the scenes."""
    parser_options: dict[str, Any] = Field(default_factory=dict)
    """Its options: the split, the downscale factor."""
    folder: str = "{scene}"
    """Where a scene lies in the data folder."""
    scenes: tuple[str, ...] = Field(min_length=1)
    """Scenes, by name."""
    extractor: dict[str, Any]
    """Teacher: its kind, and its options."""
    methods: dict[str, MethodSettings] = Field(min_length=1)
    """Methods to train, each plain and shaped."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds of the training."""
    annotators: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds of the simulated annotator, for each training; tasks with a whole view labelled have nothing to draw."""
    tasks: dict[Task, tuple[Annotated[Contender, BeforeValidator(check_contender)], ...]] = Field(min_length=1)
    """What is scored, and by which contenders."""
    classes: tuple[str, ...] | None = None
    """Classes of an mIoU of their own, beside that of all classes."""
    stride: int = Field(default=1, ge=1)
    """Every stride-th pixel of every stride-th row of the held-out views is scored."""

    @field_validator("parser")
    @classmethod
    def _known_parser(cls, value: str) -> str:
        if value not in PARSERS:
            raise ValueError(f"unknown dataparser: expected one of {', '.join(PARSERS)}")
        return value

    @field_validator("folder")
    @classmethod
    def _names_the_scene(cls, value: str) -> str:
        if "{scene}" not in value:
            raise ValueError("expected a folder with {scene} in it")
        return value

    @model_validator(mode="before")
    @classmethod
    def _methods_without_settings(cls, content: Any) -> Any:
        """`jacobinerf:` with nothing behind it takes the method as it is."""
        if isinstance(content, dict) and isinstance(content.get("methods"), dict):
            methods = {name: {} if value is None else value for name, value in content["methods"].items()}
            return {**content, "methods": methods}
        return content

    def scene_folder(self, data: Path, scene: str) -> Path:
        """Where a scene lies."""
        return data / self.folder.format(scene=scene)

    def recipe(self, scene: str, method: str, steps_scale: float = 1.0) -> Recipe:
        """What to train on a scene. `steps_scale` shortens all of the schedule alike. Errors: `UserError`."""
        check_methods([method])
        base, settings = METHODS[method], self.methods.get(method, MethodSettings())
        assert isinstance(base, JacobiNeRFTrainerConfig)
        model, shaping = base.pipeline.model, dict(settings.shaping)
        steps = settings.steps or base.max_num_iterations
        start = model.shaping_start_step if settings.shaping_start is None else settings.shaping_start
        if start >= steps:
            raise UserError(f"method {method}: shaping starts at step {start} of {steps}: set shaping_start below that")
        scaled_steps = max(2, round(steps * steps_scale))
        decay = shaping.get("decay_steps", model.shaping.decay_steps)
        if isinstance(decay, int):
            shaping["decay_steps"] = max(1, round(decay * steps_scale))
        return Recipe(
            name=scene,
            extractor=self.extractor,
            method=method,
            steps=scaled_steps,
            parser=self.parser,
            parser_options=self.parser_options,
            rays=settings.rays,
            model={**settings.model, "shaping_start_step": min(round(start * steps_scale), scaled_steps - 1)},
            shaping=shaping,
            stride=self.stride,
        )


def read_benchmark(path: Path) -> Benchmark:
    """A benchmark from its YAML file. Errors: `UserError` with the key and what was expected."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): see configs/paper-replica.yml") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no YAML ({' '.join(str(error).split())}): see configs/paper-replica.yml") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} has no keys: expected name, scenes and others: see configs/paper-replica.yml")
    try:
        benchmark = Benchmark.model_validate(content)
        for method in benchmark.methods:
            benchmark.recipe(benchmark.scenes[0], method).make_config("shaped", 0)
    except ValidationError as error:
        raise UserError(f"{path}: {_first(error)}: see configs/paper-replica.yml") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return benchmark


def check_methods(methods: Sequence[str]) -> None:
    """Errors: `UserError`, a method is not registered."""
    for method in methods:
        if method not in METHODS:
            raise UserError(f"unknown method {method}: expected one of {', '.join(METHODS)}")


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"] if part != "[key]")
    if found["type"] == "extra_forbidden":
        return f"unknown key {place}"
    if found["type"] == "missing":
        return f"no key {place}"
    value = "" if isinstance(found["input"], dict) else f"found {found['input']!r}: "
    return f"{place + ': ' if place else ''}{value}{found['msg'].removeprefix('Value error, ')}"
