"""Checkpoints as dictionaries: reading them, and fitting what they hold to our model before a key is loaded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jacobinerf_ns.errors import UserError, visible

MODEL_PREFIX = "_model."
OWN_BUFFERS = ("pair_threshold", "first_shaping_step")
BRANCH_PREFIXES = ("field.entity_branch.", "field.colour_branch.")
_NERFACTO_HEAD = re.compile(r"field\.mlp_head\.layers\.(\d+)\.(weight|bias)")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a nerfstudio checkpoint.

    Stock methods leave numpy floats in it, which torch >= 2.6 refuses; those (and nothing else) are let through.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: give a file step-*.ckpt of a run's nerfstudio_models folder")
    scalar = np.float64(0).__reduce__()[0]  # numpy 2 and numpy 1 keep it in different modules
    allowed = [scalar, np.dtype, type(np.dtype(np.float64))]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types for a damaged file
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint ({visible(first_line)}): use an earlier one of the run"
        ) from error
    state = content.get("pipeline") if isinstance(content, dict) else None
    whole = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not isinstance(content, dict) or not whole or type(content.get("step")) is not int:
        raise UserError(
            f"{path} is no checkpoint of a run: expected the step and the tensors of a pipeline: use another one"
        )
    return content


def latest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint with the highest step in a `nerfstudio_models` folder."""
    found = sorted(folder.glob("step-*.ckpt"))
    if not found:
        raise UserError(f"no step-*.ckpt in {folder}: give a run's nerfstudio_models folder, or --load-checkpoint FILE")
    return found[-1]


def model_state(pipeline_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the model's entries of a pipeline's state, without prefixes and without what is not the model's own.

    The datamanager's buffers are made from the capture, and LPIPS weights (in checkpoints of stock methods) are public.
    """
    state = {}
    for key, value in pipeline_state.items():
        key = key.removeprefix("module.")
        if key.startswith(MODEL_PREFIX):
            state[key.removeprefix(MODEL_PREFIX).removeprefix("module.")] = value
    return {key: value for key, value in state.items() if not key.startswith("lpips.")}


def unwrapped(pipeline_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a pipeline's state as one process has it: without the `module.` that several put into names."""
    return {key.replace(f"{MODEL_PREFIX}module.", MODEL_PREFIX): value for key, value in pipeline_state.items()}


def is_nerfacto(state: Mapping[str, Tensor]) -> bool:
    """Whether a model's state is that of plain nerfacto, whose colour head is one piece."""
    return any(key.startswith(("field.mlp_head.layers.", "field.mlp_head.tcnn_encoding")) for key in state)


def from_nerfacto(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain nerfacto's state with our names: the last layer of its colour head becomes the RGB layer.

    What only a shaped model has keeps the value it has in `expected`. The RGB layer's weights that read a
    branch begin at zero, so that colours are nerfacto's until training moves them.
    """
    if _is_tcnn(state):
        raise UserError(
            "the nerfacto checkpoint was trained with tiny-cuda-nn, which hides the last colour layer: "
            "train nerfacto with --pipeline.model.implementation torch, or train jacobinerf from scratch"
        )
    if _is_tcnn(expected):
        raise UserError(
            "the nerfacto checkpoint was trained without tiny-cuda-nn, and this model uses it: "
            "add --pipeline.model.implementation jit"
        )
    head = [int(match.group(1)) for key in state if (match := _NERFACTO_HEAD.fullmatch(key))]
    renamed = {k: v for k, v in expected.items() if k in OWN_BUFFERS or k.startswith(BRANCH_PREFIXES)}
    for key, value in state.items():
        match = _NERFACTO_HEAD.fullmatch(key)
        if match is None:
            renamed[key] = value
        elif int(match.group(1)) == max(head):
            name = f"field.mlp_head.rgb_layer.{match.group(2)}"
            renamed[name] = _widened(value, expected[name]) if match.group(2) == "weight" else value
        else:
            renamed[f"field.mlp_head.trunk.layers.{match.group(1)}.{match.group(2)}"] = value
    return renamed


def _widened(weight: Tensor, expected: Tensor) -> Tensor:
    missing = expected.shape[1] - weight.shape[1]
    return torch.nn.functional.pad(weight, (0, missing)) if missing > 0 else weight


def _is_tcnn(state: Mapping[str, Tensor]) -> bool:
    return any("tcnn" in key or key.endswith(".params") for key in state)


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise a `UserError` unless a state has exactly the model's keys and shapes.

    nerfstudio tolerates missing and extra keys in silence, and a model then runs on weights that were never trained.
    """
    advice = "load it with the options in its config.yml (ns-train jacobinerf --load-config config.yml)"
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    for keys, problem in ((missing, "lacks"), (extra, "has, and this model has not,")):
        if keys:
            raise UserError(f"the checkpoint {problem} {len(keys)} parameters (first: {keys[0]}): {advice}")
    wrong = [key for key, value in expected.items() if state[key].shape != value.shape]
    if wrong:
        found, wanted = tuple(state[wrong[0]].shape), tuple(expected[wrong[0]].shape)
        raise UserError(
            f"the checkpoint's {wrong[0]} has shape {found}, this model's has {wanted} "
            f"({len(wrong)} of {len(expected)} differ): {advice}"
        )
