"""SHA-256 digests as hexadecimal digits: names of cached files, and notes in files of what they were made of.

The values are a file format: with another way to take one, caches are made anew and results refused as foreign.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from jacobinerf_ns.errors import UserError

_BLOCK = 1 << 20
"""Bytes of a file that are read at a time."""


def digest(parts: Iterable[bytes]) -> str:
    """Return the digest of bytes in parts, the same however they are cut."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def digest_of_each(parts: Iterable[bytes]) -> str:
    """Return the digest of the parts' own digests: what moves from one part to the next changes it."""
    return digest(hashlib.sha256(part).digest() for part in parts)


def digest_of_text(text: str) -> str:
    """Return the digest of a text in UTF-8."""
    return digest([text.encode()])


def digest_of_file(path: Path) -> str:
    """Return the digest of a file's bytes.

    Raises:
        UserError: the file is missing.
    """
    try:
        with path.open("rb") as opened:
            return digest(iter(lambda: opened.read(_BLOCK), b""))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): put the file in its place") from error


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's values, wherever it lies."""
    return tensor.detach().cpu().contiguous().numpy().tobytes()
