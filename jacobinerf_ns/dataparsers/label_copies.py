"""Copies of class maps with other ids, kept in the user's cache folder and never in the data set."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int
from PIL import Image, PngImagePlugin

from jacobinerf_ns.dataparsers.downscale import cache_root
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.atomic import write_json, writing
from jacobinerf_ns.files.digests import digest
from jacobinerf_ns.files.index_maps import VOID_ID, read_label_map
from jacobinerf_ns.progress import track

_Result = TypeVar("_Result")

_STAMP = "jacobinerf-labels"
MAX_ID = 65535


def ids_present(sources: Sequence[Path], size: tuple[int, int]) -> dict[int, Path]:
    """Return every id that occurs in the maps, void left out, with the first map it occurs in; ids ascend.

    The answer is kept in the cache until a map changes, so that a sequence is read through once.

    Args:
        sources: class maps of one folder.
        size: (height, width) in pixels that each must have.

    Raises:
        UserError: a map is missing, damaged or of another size, or the cache cannot be written.
    """
    by_name = {path.name: path for path in sources}
    stamps = [f"{path.name}, {_stamp(path)}" for path in sources]
    notes = folder_of_copies(sources[0].parent) / f"ids-{_digest([*stamps, str(size)])}.json"
    first = _read_notes(notes, by_name)
    if first is None:
        first = {}
        found = _in_threads(lambda path: _ids(read_label_map(path, size).numpy()), sources, "Reading class maps")
        for path, ids in zip(sources, found, strict=True):
            for number in ids:
                first.setdefault(number, path)
        first.pop(VOID_ID, None)
        write_json(notes, {str(number): path.name for number, path in first.items()}, overwrite=True)
    return dict(sorted(first.items()))


def remapped_copies(
    sources: Sequence[Path], size: tuple[int, int], mapping: Mapping[int, int], legend: Path
) -> list[Path]:
    """Return copies of class maps with ids replaced by `mapping`; void stays void. Copies that are current are kept.

    Args:
        sources: class maps of one folder.
        size: (height, width) in pixels that each must have.
        mapping: id in the copy by id in the source.
        legend: the file that `mapping` comes from, for messages.

    Raises:
        UserError: a map is missing, damaged, of another size or has an id that is not in `mapping`, or the cache cannot
            be written.
    """
    if not sources:
        return []
    mapping = {**mapping, VOID_ID: VOID_ID}
    key = _digest([f"{old}:{new}" for old, new in sorted(mapping.items())])
    folder = folder_of_copies(sources[0].parent) / key
    targets = [folder / path.with_suffix(".png").name for path in sources]
    stamps = [f"{_stamp(path)}, {size[1]}x{size[0]}" for path in sources]
    jobs = zip(sources, targets, stamps, strict=True)
    todo = [job for job in jobs if not _is_current(job[1], job[2])]

    def write(job: tuple[Path, Path, str]) -> None:
        source, target, stamp = job
        _write(target, _remap(read_label_map(source, size).numpy(), mapping, source, legend), stamp)

    for _ in _in_threads(write, todo, "Renumbering class maps"):
        pass
    return targets


def unknown_id(path: Path, number: int, legend: Path) -> UserError:
    """Return the error for a class id that nobody named."""
    return UserError(
        f"label map {path} has the class id {number}, which {legend} does not name: add it there, or give the file "
        "that belongs to these maps"
    )


def _in_threads(work: Callable[..., _Result], items: Sequence, description: str) -> Iterable[_Result]:
    if items:
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            yield from track(pool.map(work, items), description=description, total=len(items))


def _ids(ids: Int[np.ndarray, "height width"]) -> list[int]:
    """Return the distinct ids. Counting is ten times faster than sorting a million pixels, which `np.unique` does."""
    return np.flatnonzero(np.bincount(ids.ravel())).tolist()


def _remap(
    ids: Int[np.ndarray, "height width"], mapping: Mapping[int, int], source: Path, legend: Path
) -> Int[np.ndarray, "height width"]:
    present = _ids(ids)
    for number in present:
        if number not in mapping:
            raise unknown_id(source, number, legend)
    table = np.zeros(max(present) + 1, dtype=np.int64)
    table[present] = [mapping[number] for number in present]
    return table[ids]


def _write(target: Path, ids: Int[np.ndarray, "height width"], stamp: str) -> None:
    assert 0 <= ids.min() <= ids.max() <= MAX_ID
    note = PngImagePlugin.PngInfo()
    note.add_text(_STAMP, stamp)
    with writing(target, overwrite=True) as temporary:
        Image.fromarray(ids.astype(np.uint8 if ids.max() < 256 else np.uint16)).save(temporary, pnginfo=note)


def folder_of_copies(source: Path) -> Path:
    """Return the folder of all copies of one folder's maps."""
    name = f"{source.parent.name}-{source.name}-{_digest([os.path.normpath(source.absolute())])}"
    return cache_root().parent / "labels" / name


def _digest(parts: Sequence[str]) -> str:
    return digest([os.fsencode("\n".join(parts))])[:12]


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"label map {path} cannot be read ({error.strerror}): put the file there") from error
    return f"{stat.st_size} bytes, {stat.st_mtime_ns} ns"


def _read_notes(path: Path, by_name: Mapping[str, Path]) -> dict[int, Path] | None:
    """Return the ids as noted earlier; None where there is no such note, or one that something else wrote."""
    try:
        return {int(number): by_name[name] for number, name in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _is_current(target: Path, stamp: str) -> bool:
    try:
        with Image.open(target) as image:
            return image.info.get(_STAMP) == stamp
    except (OSError, SyntaxError, ValueError):
        return False
