"""Text embeddings that somebody else has made: names and vectors, for models that are not run here (LSeg)."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.words import checked


def read_texts(path: Path) -> dict[str, Float[Tensor, " dim"]]:
    """Read `path`, a .npy of one row per name, and the names beside it: a .txt, one a line, or a .json list.

    Returns:
        The unit vector of each name, in the file's order; names in small letters.

    Raises:
        UserError: a file is missing or damaged, or the two do not fit together.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"is no plain array ({error})"
        raise UserError(f"text embeddings {path} {reason}: save one row per name with numpy.save") from error
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind not in "fiu" or not np.isfinite(rows).all():
        raise UserError(f"{path} holds {rows.dtype} of shape {rows.shape}, expected finite numbers, one row per name")
    names = _names(path)
    if len(names) != len(rows):
        raise UserError(f"{path} has {len(rows)} rows and {len(names)} names beside it: expected one name a row")
    keys = [checked(name).lower() for name in names]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has two rows named {twice!r}: expected every name once")
    vectors = torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float32)), dim=-1)
    return dict(zip(keys, vectors, strict=True))


def look_up(table: Mapping[str, Float[Tensor, " dim"]], words: Sequence[str]) -> Float[Tensor, "texts dim"]:
    """Return the vectors of names; case and outer blanks do not count.

    Raises:
        UserError: a name is not in the table.
    """
    keys = [checked(text).lower() for text in words]
    for key in keys:
        if key not in table:
            close = difflib.get_close_matches(key, table, n=3, cutoff=0.5) or list(table)[:3]
            raise UserError(
                f"{key!r} is not among the {len(table)} text embeddings: use one of their names, "
                f"such as {', '.join(close)}"
            )
    return torch.stack([table[key] for key in keys])


def _names(path: Path) -> list[str]:
    text, listed = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if text.is_file():
            return [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
        names = json.loads(listed.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} has no names: put {text.name} beside it, one name a line") from error
    except (OSError, ValueError) as error:
        raise UserError(f"the names of {path} cannot be read ({type(error).__name__}): write them again") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{listed} is no list of names: expected one name a row of {path.name}")
    return names
