"""The distilled feature field of a run, kept beside its `config.yml` and bound to the weights it was made on."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import fingerprint_of
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.digests import digest, tensor_bytes
from jacobinerf_ns.run.opened import Run
from jacobinerf_ns.tasks.feature_field.field import FeatureField, FeatureFieldShape

FILE_NAME = "feature_field.pt"
VERSION = 1


@dataclass(frozen=True)
class Origin:
    """What a feature field was distilled from."""

    step: int
    """Training step of the checkpoint."""
    weights: str
    """Hash of all weights of the model: a run can be trained again to the same step."""
    settings: str
    """Hash of the teacher's settings, known without its weights."""
    teacher: str
    """The teacher's fingerprint, which counts its weights too."""


def feature_field_path(run: Run) -> Path:
    """Return where the feature field of a run lies."""
    return run.folder / FILE_NAME


def save_feature_field(run: Run, feature_field: FeatureField, overwrite: bool = False) -> Path:
    """Write the feature field of a run, with what it was made of.

    Returns:
        The file.

    Raises:
        UserError: there is one, or it cannot be written.
    """
    extractor = run.pipeline.datamanager.config.extractor
    origin = Origin(run.step, _digest(run.pipeline.model), _settings(run), extractor.setup().fingerprint())
    content = {
        "version": VERSION,
        "origin": asdict(origin),
        "shape": asdict(feature_field.shape),
        "dims": feature_field.dims,
        "state": {name: tensor.cpu() for name, tensor in feature_field.state_dict().items()},
    }
    path = feature_field_path(run)
    with writing(path, overwrite) as temporary:
        torch.save(content, temporary)
    return path


def load_feature_field(run: Run, teacher: str | None = None) -> FeatureField:
    """Return the feature field of a run, on the run's device.

    Args:
        run: an opened run.
        teacher: fingerprint of the teacher that makes the queries; none where the teacher takes no part.

    Raises:
        UserError: there is none, it is damaged, or made of another checkpoint or teacher.
    """
    path = feature_field_path(run)
    content = _read(path)
    try:
        origin = Origin(**content["origin"])
        feature_field = FeatureField(run.pipeline.model.field, content["dims"], FeatureFieldShape(**content["shape"]))
        feature_field.load_state_dict(content["state"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(path) from error
    _check(path, origin, run, teacher)
    return feature_field.to(run.pipeline.model.device).requires_grad_(False).eval()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is not there: run jacobinerf distil first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways on a damaged file.
        raise _unreadable(path) from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise _unreadable(path)
    return content


def _check(path: Path, origin: Origin, run: Run, teacher: str | None) -> None:
    again = "run jacobinerf distil again, with --overwrite"
    if origin.step != run.step:
        raise UserError(f"{path} was distilled at step {origin.step}, the run's checkpoint is of {run.step}: {again}")
    if origin.weights != _digest(run.pipeline.model):
        raise UserError(f"{path} was distilled from other weights than the run's checkpoint now holds: {again}")
    if origin.settings != _settings(run) or (teacher is not None and origin.teacher != teacher):
        raise UserError(f"{path} was distilled from another teacher than the run's config.yml now names: {again}")


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path} is damaged or made by another version: run jacobinerf distil again, with --overwrite")


def _settings(run: Run) -> str:
    extractor = run.pipeline.datamanager.config.extractor
    # Fields of earlier versions, which had no embeddings by name, stay usable.
    later = () if getattr(extractor, "by_name", False) else ("by_name",)
    return fingerprint_of(type(extractor).__name__, extractor, ignore=(*later, "texts"))  # texts make no features


def _digest(model: nn.Module) -> str:
    return digest(map(tensor_bytes, model.state_dict().values()))
