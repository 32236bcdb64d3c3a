"""Features on disk: one half-precision file per image, whole or not there, read through a memory map.

A file's name is made of everything that its features depend on, so it never has to be told apart from a stale one.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jacobinerf_ns.errors import UserError, reason
from jacobinerf_ns.features.base import BatchExtractor, Extractor, FeatureGrid, Frame
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.digests import digest_of_file, digest_of_text
from jacobinerf_ns.progress import PlainConsole, track

_SUFFIX = ".safetensors"
_HALF_EXPONENT = np.uint16(0x7C00)  # All of these bits are set in infinities and NaNs, and in nothing else.


Made = tuple[int, FeatureGrid, Path]
"""Number of an item, its grid, and the file to blame if that is not finite."""


class DamagedFile(Exception):
    """A cached file that is cut short, of another layout, or holds values that are no numbers."""


@dataclass(frozen=True)
class Filled:
    """What `fill` did."""

    paths: list[Path]
    """One file per item, in the order of the items (equal items share a file)."""
    made: int
    """How many had to be made."""
    seconds: float
    """How long that took."""


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/jacobinerf-ns/features`, by default below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jacobinerf-ns" / "features"


def extract_all(extractor: Extractor, frames: Sequence[Frame], cache_dir: Path | None = None) -> Filled:
    """See to it that the features of all frames are on disk, in a folder per extractor; extract only missing ones.

    Raises:
        UserError: of the extractor, or features are not finite. What was extracted before stays.
    """
    extractor.check(frames)
    folder = (cache_dir or default_cache_dir()).expanduser().absolute() / extractor.fingerprint()[:20]
    keys = [frame_key(extractor, frame) for frame in frames]

    def make(places: list[int]) -> Iterator[Made]:
        for i, grid in _extract_each(extractor, [frames[i] for i in places]):
            yield places[i], grid, Path(extractor.sources(frames[places[i]])[0])

    return fill_many(folder, keys, make, "Extracting features")


def _extract_each(extractor: Extractor, frames: list[Frame]) -> Iterator[tuple[int, FeatureGrid]]:
    if isinstance(extractor, BatchExtractor):
        return extractor.extract_many(frames)
    return ((i, extractor.extract(frame)) for i, frame in enumerate(frames))


def frame_key(extractor: Extractor, frame: Frame) -> str:
    """Return the hash of all files and facts that the features of a frame depend on, settings excluded."""
    parts = [digest_of_file(source) if isinstance(source, Path) else source for source in extractor.sources(frame)]
    return digest_of_text(json.dumps(parts))[:32]


def fill(folder: Path, keys: Sequence[str], make: Callable[[int], tuple[FeatureGrid, Path]], title: str) -> Filled:
    """Make the files `folder/key` that are missing or damaged, one after the other, with a progress bar.

    `make` takes the number of an item, and gives its grid and the file to blame if that is not finite.
    """
    return fill_many(folder, keys, lambda places: ((i, *make(i)) for i in places), title)


def fill_many(folder: Path, keys: Sequence[str], make: Callable[[list[int]], Iterator[Made]], title: str) -> Filled:
    """Do the same where items are made together: `make` takes the numbers of all, and yields each as it is ready.

    Each file is renamed into place when it is complete: interrupt it at any time, the next call goes on from there.
    """
    paths = [folder / f"{key}{_SUFFIX}" for key in keys]
    _check_places(folder, paths)
    damaged = {path for path in set(paths) if path.exists() and not _is_whole(path)}
    todo = {path: i for i, path in enumerate(paths) if path in damaged or not path.exists()}
    start = time.perf_counter()
    if damaged:
        text = f"warning: {len(damaged)} damaged feature file(s) in {folder} are made again"
        PlainConsole().print(text, style="yellow", soft_wrap=True)
    for i, grid, source in track(make(list(todo.values())), title, total=len(todo), disable=not todo):
        write_grid(paths[i], grid, source)
    return Filled(paths, len(todo), time.perf_counter() - start)


def _check_places(folder: Path, paths: Sequence[Path]) -> None:
    """Check, before an hour of extracting, that files can be put where they belong.

    Raises:
        UserError: something else is in the way, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder for features {folder} cannot be made ({reason(error)}): give another --cache-dir"
        ) from error
    strange = next((path for path in paths if path.exists() and not path.is_file()), None)
    if strange is not None:
        raise UserError(f"{strange} is no file, and a feature file belongs there: move it away")


def write_grid(path: Path, grid: FeatureGrid, source: Path) -> None:
    """Write a grid in half precision, atomically.

    Raises:
        UserError: values do not fit; the message names `source`. Or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not torch.isfinite(grid.values).all():
        raise UserError(f"the features of {source} are not all finite: correct the file, or choose another teacher")
    half = grid.values.detach().cpu().half().contiguous()
    if not torch.isfinite(half).all():
        raise UserError(
            f"the features of {source} reach {grid.values.abs().max():g}, and half precision ends at 65504: "
            "scale them down"
        )
    geometry = {"origin": grid.origin, "step": grid.step, "shape": list(half.shape)}
    with writing(path, overwrite=True) as temporary:
        try:
            save_file({"features": half}, temporary, metadata={"grid": json.dumps(geometry)})
        except SafetensorError as error:  # So it calls a disk that is full.
            raise OSError(reason(error)) from error


def read_grid(path: Path) -> FeatureGrid:
    """Return a cached grid; its values are a memory map of the file, which takes no memory for good.

    Raises:
        DamagedFile: the file is missing, cut short or of another layout (its values are not looked at).
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            values = opened.get_tensor("features")
            geometry = json.loads((opened.metadata() or {})["grid"])
        grid = FeatureGrid(values, tuple(geometry["origin"]), tuple(geometry["step"]))
    except Exception as error:  # Of a damaged header safetensors and its numbers raise what Python raises on the way.
        raise DamagedFile(path) from error
    numbers = [*grid.origin, *grid.step]
    placed = len(grid.origin) == len(grid.step) == 2 and all(type(number) in (int, float) for number in numbers)
    if values.dtype != torch.float16 or values.ndim != 3 or list(values.shape) != geometry.get("shape") or not placed:
        raise DamagedFile(path)
    return grid


def _is_whole(path: Path) -> bool:
    try:
        bits = read_grid(path).values.view(torch.int16).numpy().view(np.uint16)
    except DamagedFile:
        return False
    return all(bool(((row & _HALF_EXPONENT) != _HALF_EXPONENT).all()) for row in bits)
