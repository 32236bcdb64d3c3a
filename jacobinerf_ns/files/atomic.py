"""Files that are either whole or not there."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jacobinerf_ns.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, and rename it to `path` when the block ends well.

    A reader sees the old file or the new one, never a part; after an exception the temporary file is gone and `path` is
    as it was. The suffix is kept, since many writers choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Write as `atomic_write` does, but keep what is there and say in one line why it cannot be written.

    Raises:
        UserError: the file is there already, or cannot be written.
    """
    try:
        if not overwrite and path.exists():
            raise UserError(f"{path} is there already: choose another place, or ask to overwrite it")
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): choose a folder that may be written to and has room"
        ) from error


def write_json(path: Path, content: Any, overwrite: bool = False) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        UserError: the file is there already, or cannot be written.
    """
    with writing(path, overwrite) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
