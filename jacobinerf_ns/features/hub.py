"""Transformers from Hugging Face, by id or from a folder; without network it fails fast and says what to do."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.cache import default_cache_dir
from jacobinerf_ns.files.digests import digest, tensor_bytes

Found = TypeVar("Found")

_CONNECT_TIMEOUT = 5.0
"""Seconds. The hub's own client retries for 23 seconds before it admits that there is no network."""
_UNUSED = ("pooler", "mask_token")
"""Parameters many checkpoints lack, and features never see."""
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_NORMALISATIONS = {"clip": _CLIP, "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
"""By type of model, where a folder does not say; others are taken to have ImageNet's."""
VISION_FILES = "config.json and model.safetensors"
TEXT_FILES = "config.json, preprocessor_config.json, model.safetensors and the tokenizer's files"


@dataclass(frozen=True)
class Backbone:
    """A loaded transformer, in evaluation mode and float32."""

    model: nn.Module
    digest: str
    """Hash of the weights that features depend on."""
    mean: tuple[float, ...]
    """Mean colour of the images it was trained on, RGB 0..1."""
    std: tuple[float, ...]
    """Standard deviation of their colours."""


def models_folder(model: str) -> Path:
    """Return the folder where a model that was downloaded by hand is looked for."""
    return default_cache_dir().parent / "models" / model.strip("/").replace("/", "--")


def load_backbone(model: str, files: str = VISION_FILES) -> Backbone:
    """Load a model from a folder, from `models_folder`, from the hub's cache, or from the hub, in this order.

    `files` is what people are told to put into a folder.

    Raises:
        UserError: it is in none of these, or its weights do not fill the architecture.
    """
    return _find(model, files, lambda source, offline: _load(model, source, offline))


def load_tokenizer(model: str) -> Any:
    """Load the tokenizer of an image-text model, from the same places in the same order.

    Raises:
        UserError: it is in none of these.
    """
    return _find(model, TEXT_FILES, lambda source, offline: _load_tokenizer(source, offline))


def _find(model: str, files: str, load: Callable[[str, bool], Found]) -> Found:
    """Return what `load` makes of a folder or an id, and of whether it may not ask the hub."""
    given = Path(model).expanduser()
    by_hand = models_folder(model)
    local = next((folder for folder in (given, by_hand) if (folder / "config.json").is_file()), None)
    if local is not None:
        return load(str(local), True)
    if given.is_dir() or given.is_absolute() or model.startswith("."):
        found = "has no config.json" if given.is_dir() else "does not exist"
        raise UserError(f"model folder {model} {found}: put {files} of a transformer there")
    try:
        return load(model, True)
    except FileNotFoundError:
        pass
    reason = _why_unreachable(model)
    if reason is None:
        try:
            return load(model, False)
        except FileNotFoundError as error:
            reason = _first_line(error)
    raise UserError(
        f"model {model} was not found on this computer and could not be fetched ({reason}): put {files} "
        f"from https://huggingface.co/{model} into {by_hand}, or give a folder that has them with "
        "--model, or use the handcrafted teacher, which needs no download"
    )


def _load(name: str, source: str, offline: bool) -> Backbone:
    """Load from a folder or an id.

    Raises:
        UserError: `FileNotFoundError`: it is not there; `UserError`: it is no good.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    try:
        with _quiet():
            model, report = AutoModel.from_pretrained(source, local_files_only=offline, output_loading_info=True)
    except OSError as error:
        if Path(source).is_dir():
            raise UserError(f"model folder {source} cannot be loaded ({_first_line(error)}): fill it again") from error
        raise FileNotFoundError(_first_line(error)) from error
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model {name} cannot be loaded ({_first_line(error)}): give a vision transformer") from error
    invented = {key for key in report["missing_keys"] if not _is_unused(key)}
    if invented:
        raise UserError(
            f"the weights of model {name} lack {len(invented)} parameters (first: {min(invented)}): "
            "its config.json and its weights do not belong together"
        )
    mean, std = _normalisation(source, offline, str(getattr(model.config, "model_type", "")))
    model = model.eval().float().requires_grad_(False)
    return Backbone(model, digest_of_weights(model), mean, std)


def _load_tokenizer(source: str, offline: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if Path(source).is_dir():
            raise _no_tokenizer(source, _first_line(error)) from error
        raise FileNotFoundError(_first_line(error)) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made from config.json alone
        raise _no_tokenizer(source, "it knows no words") if Path(source).is_dir() else FileNotFoundError("no tokenizer")
    return tokenizer


def _no_tokenizer(folder: str, reason: str) -> UserError:
    return UserError(f"model folder {folder} has no tokenizer to read words with ({reason}): put {TEXT_FILES} there")


def _is_unused(key: str) -> bool:
    return any(part in _UNUSED for part in key.split("."))


def digest_of_weights(model: nn.Module) -> str:
    """Return a hash over names, shapes and values; parameters that may be drawn at random at loading are left out."""
    used = [(key, tensor) for key, tensor in sorted(model.state_dict().items()) if not _is_unused(key)]
    named = ((f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode(), tensor_bytes(tensor)) for key, tensor in used)
    return digest(part for parts in named for part in parts)


def _normalisation(source: str, offline: bool, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation from the model's image processor, those of its type if it has none."""
    from transformers.utils import cached_file

    try:
        path = cached_file(source, "preprocessor_config.json", local_files_only=offline)
        settings: dict[str, Any] = json.loads(Path(path).read_text()) if path else {}
    except (OSError, ValueError):
        settings = {}
    mean, std = settings.get("image_mean"), settings.get("image_std")
    return (tuple(mean), tuple(std)) if mean and std else _NORMALISATIONS.get(kind, _IMAGENET)


def _why_unreachable(model: str) -> str | None:
    """Ask the hub once about a model. None: it is there."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(model, timeout=_CONNECT_TIMEOUT)
    except Exception as error:  # Network, proxy, refusal, bad id: the client's errors have no common base.
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the load report (it warns of the missing pooler) and the bar over shards; download bars stay."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
