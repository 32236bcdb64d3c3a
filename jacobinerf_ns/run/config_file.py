"""A run's `config.yml`, read without running anything that it names.

nerfstudio writes its configs as Python objects and reads them with PyYAML's full loader, which calls whatever a file
says. Here a file can only name what a config is made of: config classes, what they set up, enumerations and paths, of
nerfstudio, of torch's optimisers and of this package. The `ns-*` commands go on trusting the file (docs/limits.md).
"""

import importlib
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

import yaml
from nerfstudio.engine.trainer import TrainerConfig

from jacobinerf_ns.errors import UserError, reason
from jacobinerf_ns.files.outside import check_regular, shortened

MAX_CONFIG_BYTES = 1 << 17
"""Bytes of a config.yml; nerfstudio's have ten thousand."""
MAX_BRACKETS = 500
"""Of a config.yml, where only what is empty has any: PyYAML's time grows with their square."""

_PACKAGES = ("nerfstudio", "jacobinerf_ns", "torch.optim")
_FUNCTIONS = ("nerfstudio.data.utils.nerfstudio_collate.nerfstudio_collate",)
"""Functions that configs name; all else that they name are classes."""
_PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
_CHOICES = ("Literal[", "typing.Literal[")
_TAG = "tag:yaml.org,2002:python/"


def read_config(path: Path) -> Any:
    """Return the config of a run as training wrote it.

    Raises:
        UserError: the file is missing, damaged, names anything else than configs are made of, or a value is of another
            type than its default.
    """
    advice = "give --load-config a run's config.yml"
    try:
        check_regular(path, "the config.yml that training wrote", MAX_CONFIG_BYTES)
        text = path.read_bytes().decode("utf-8")
        if sum(map(text.count, "[{")) > MAX_BRACKETS:
            raise ValueError(f"more than {MAX_BRACKETS} brackets")
        # The tags decide what is built, and ours build configs, paths and enumerations only.
        config = yaml.load(text, Loader=_ConfigLoader)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): {advice}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is not a config.yml that training wrote ({reason(error)}): {advice}") from error
    if not is_dataclass(config) or isinstance(config, type) or not hasattr(config, "pipeline"):
        raise UserError(f"{path} is not a config.yml that training wrote: {advice}")
    _check_whole(config, path)
    _check_types(config, path, "")
    return config


class _ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader, and the tags of configs."""

    def build(self, suffix: str, node: yaml.Node) -> Iterator[Any]:
        """Yield an instance of a config class, and fill it afterwards: parts may name the whole."""
        made = _named(suffix)
        if not (isinstance(made, type) and is_dataclass(made)):
            raise yaml.YAMLError(f"it holds a {suffix}, which is no config")
        if not isinstance(node, yaml.MappingNode):
            raise yaml.YAMLError(f"its {suffix} has no entries")
        instance = object.__new__(made)
        yield instance
        content: dict[Any, Any] = self.construct_mapping(node, deep=True)
        if not all(isinstance(key, str) and not key.startswith("__") for key in content):
            raise yaml.YAMLError(f"its {suffix} has entries without a name")
        instance.__dict__.update(content)

    def apply(self, suffix: str, node: yaml.Node) -> Any:
        """Return a path from its parts, or a member of an enumeration from its value."""
        if not isinstance(node, yaml.SequenceNode):
            raise yaml.YAMLError(f"it calls {suffix}")
        values = self.construct_sequence(node, deep=True)
        module, _, name = suffix.rpartition(".")
        if module in ("pathlib", "pathlib._local") and name in _PATHS and all(isinstance(part, str) for part in values):
            return pathlib.Path(*values)
        made = _named(suffix)
        if not (isinstance(made, type) and issubclass(made, Enum) and len(values) == 1):
            raise yaml.YAMLError(f"it calls {suffix}")
        return made(values[0])


def _construct(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda loader, suffix, node: method(loader, suffix, node)


_ConfigLoader.add_multi_constructor(f"{_TAG}object:", _construct(_ConfigLoader.build))
_ConfigLoader.add_multi_constructor(f"{_TAG}object/apply:", _construct(_ConfigLoader.apply))
_ConfigLoader.add_multi_constructor(f"{_TAG}name:", lambda loader, suffix, node: _named(suffix))
_ConfigLoader.add_constructor(
    f"{_TAG}tuple", lambda loader, node: tuple(loader.construct_sequence(cast(yaml.SequenceNode, node), deep=True))
)


def _named(name: str) -> Any:
    """Return the class, or one of the few functions, that configs may name."""
    module, _, attribute = name.rpartition(".")
    if not any(module == package or module.startswith(f"{package}.") for package in _PACKAGES):
        raise yaml.YAMLError(f"it names {name}, which is no part of a config")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise yaml.YAMLError(f"it names {name}, which this version does not have") from error
    # What a module has only imported is not the package's own: `nerfstudio.x.subprocess` must not be reached.
    own = isinstance(found, type) and str(found.__module__).startswith(_PACKAGES)
    if not own and name not in _FUNCTIONS:
        raise yaml.YAMLError(f"it names {name}, which is no part of a config")
    return found


def _check_whole(config: Any, path: Path) -> None:
    """Find out whether a config was cut where what is left of it is still YAML.

    Only nerfstudio's own entries must be there, which are the same in every run; ours have grown with time.
    """
    gone = [entry.name for entry in fields(TrainerConfig) if entry.name not in vars(config)]
    if isinstance(config, TrainerConfig) and gone:
        raise UserError(f"{path} was cut: it lacks {', '.join(gone[:3])}: give a config.yml as training wrote it")


def _check_types(config: Any, path: Path, where: str) -> None:
    """Check every value of a config against its default, and the configs inside of it."""
    for entry in fields(config):
        if entry.name not in vars(config):
            continue
        value, place = vars(config)[entry.name], f"{where}{entry.name}"
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if not _alike(value, default, str(entry.type)):
            expected = _kind(default, str(entry.type))
            raise UserError(
                f"{path}: {place} is {shortened(value)}, expected {expected}: give a config.yml as training wrote it"
            )
        if is_dataclass(value) and not isinstance(value, type):
            _check_types(value, path, f"{place}.")


def _alike(value: Any, default: Any, annotation: str) -> bool:
    if default is None or default is MISSING:
        return True
    if value is None:
        return "None" in annotation or "Optional" in annotation
    if isinstance(default, type) or callable(default):
        return callable(value)
    if is_dataclass(default):
        return is_dataclass(value) and not isinstance(value, type)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float) or "str" in annotation or "Literal" in annotation
    if isinstance(default, str):
        if annotation.startswith(_CHOICES):
            return repr(value) in annotation.replace('"', "'")
        return isinstance(value, str) or "int" in annotation or "float" in annotation
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    return not isinstance(default, Path | dict) or isinstance(value, Path if isinstance(default, Path) else dict)


def _kind(default: Any, annotation: str) -> str:
    if annotation.startswith(_CHOICES):
        return f"one of {annotation[annotation.index('[') + 1 : -1]}"
    if isinstance(default, type) or callable(default):
        return "a class"
    return f"a {type(default).__name__}"
