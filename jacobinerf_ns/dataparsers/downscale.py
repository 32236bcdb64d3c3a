"""Downscaled copies of a capture's images, kept in the user's cache folder and never in the capture."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from PIL import Image, PngImagePlugin

from jacobinerf_ns.errors import UserError, reason
from jacobinerf_ns.files.atomic import atomic_write
from jacobinerf_ns.files.digests import digest
from jacobinerf_ns.files.outside import open_picture
from jacobinerf_ns.progress import track

Filter = Literal["area", "nearest"]

_STAMP = "jacobinerf-source"
_REMEDY = "replace it, or remove its frame from transforms.json"
_COLOUR_MODES = ("L", "RGB", "RGBA")


def whole_factor(factor: float | None) -> int | None:
    """Return `factor` as an int: nerfstudio's `ns-render dataset` hands over a float.

    Raises:
        UserError: it is not whole.
    """
    if factor is None:
        return None
    if factor < 1 or factor != int(factor):
        raise UserError(f"downscale factor {factor}: expected a whole number of at least 1")
    return int(factor)


def cache_root() -> Path:
    """Return the folder of all downscaled copies: `$XDG_CACHE_HOME` or `~/.cache`, then `jacobinerf-ns/downscaled`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "jacobinerf-ns" / "downscaled"


def prepared_copy(capture: Path, path: Path, factor: int | None, prefix: str) -> Path:
    """Return where nerfstudio's tools put the downscaled copy of `path`: `images_4/1.jpg` in the capture."""
    return capture / f"{prefix}_{factor}" / path.name


def header_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels of an image, from its header.

    Raises:
        UserError: it cannot be read.
    """
    with open_picture(path, f"image {path}", _REMEDY) as image:
        return image.height, image.width


def files_at_size(
    paths: Sequence[Path], sizes: Sequence[tuple[int, int]], factor: int, capture: Path, prefix: str
) -> list[Path]:
    """Return the files of `sizes` for `paths`: of a prepared folder where it is complete, else copies in the cache.

    Args:
        paths: absolute paths of the originals.
        sizes: (height, width) in pixels, as the rescaled cameras have them.
        factor: how many times smaller than the originals.
        capture: the capture's folder.
        prefix: `images` (colours are averaged), `masks` or `depths` (the value at the pixel's centre is taken).

    Raises:
        UserError: a file cannot be read, or the cache cannot be written.
    """
    prepared = [prepared_copy(capture, path, factor, prefix) for path in paths]
    if all(path.is_file() for path in prepared) and [header_size(path) for path in prepared] == list(sizes):
        return prepared
    return downscaled_copies(paths, sizes, factor, capture, "area" if prefix == "images" else "nearest")


def downscaled_copies(
    sources: Sequence[Path], sizes: Sequence[tuple[int, int]], factor: int, capture: Path, resample: Filter
) -> list[Path]:
    """Make those copies of `sources` that the cache lacks, and return the copies' paths in the same order.

    A copy's pixel covers exactly `factor` x `factor` pixels of its source: cameras are rescaled by exactly that factor,
    and what does not fill a pixel at the right and lower edge is left out instead of being squeezed in. Copies
    carry a stamp of their source's size and time, so that a changed source is copied anew.

    Args:
        sources: absolute paths of images, masks or depth maps.
        sizes: (height, width) in pixels of each copy, as the rescaled cameras have them.
        factor: pixels of the source along one side of a pixel of the copy.
        capture: the capture's folder; copies keep their names relative to it.
        resample: `area` averages colours; `nearest` takes the value at the pixel's centre (masks, depth).

    Raises:
        UserError: a source cannot be read or is too small, or the cache folder cannot be written.
    """
    targets = [copy_of(source, factor, capture, resample) for source in sources]
    stamps = [_stamp(source, size) for source, size in zip(sources, sizes, strict=True)]
    todo = [
        (source, target, size, factor, resample, stamp)
        for source, target, size, stamp in zip(sources, targets, sizes, stamps, strict=True)
        if not _is_current(target, size, stamp)
    ]
    if todo:
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            results = pool.map(lambda job: _write_copy(*job), todo)
            for _ in track(results, description=f"Downscaling by {factor}", total=len(todo)):
                pass
    return targets


def copy_of(source: Path, factor: int, capture: Path, resample: Filter) -> Path:
    """Return where the copy of `source` lies. One folder per capture and factor keeps the relative names readable."""
    key = f"{capture.name}-x{factor}-{digest([os.fsencode(capture)])[:12]}"
    normal = Path(os.path.normpath(source))
    try:
        relative = normal.relative_to(os.path.normpath(capture))
    except ValueError:
        relative = Path(f"elsewhere-{digest([os.fsencode(normal.parent)])[:12]}", normal.name)
    # The source's suffix goes into the folder name: 1.jpg and 1.png must not share a copy.
    return cache_root() / key / f"{resample}-{source.suffix[1:].lower()}" / relative.with_suffix(".png")


def _stamp(source: Path, size: tuple[int, int]) -> str:
    try:
        stat = source.stat()
    except OSError as error:
        raise UserError(f"image {source} cannot be read ({reason(error)}): {_REMEDY}") from error
    return f"{stat.st_size} bytes, {stat.st_mtime_ns} ns, to {size[1]}x{size[0]}"


def _is_current(target: Path, size: tuple[int, int], stamp: str) -> bool:
    try:
        with Image.open(target) as image:
            return image.size == (size[1], size[0]) and image.info.get(_STAMP) == stamp
    except (OSError, SyntaxError, ValueError):
        return False


def _write_copy(source: Path, target: Path, size: tuple[int, int], factor: int, resample: Filter, stamp: str) -> None:
    covered = (0, 0, size[1] * factor, size[0] * factor)
    with open_picture(source, f"image {source}", _REMEDY) as image:
        image.load()
        original: Image.Image = image
    if original.width < covered[2] or original.height < covered[3]:
        raise UserError(
            f"image {source} is {original.width}x{original.height} pixels, its camera needs at least "
            f"{covered[2]}x{covered[3]}: correct w and h in transforms.json"
        )
    if resample == "area":
        copy = _as_colour(original).reduce(factor, box=covered)
    else:
        copy = original.resize((size[1], size[0]), Image.Resampling.NEAREST, box=covered)
    note = PngImagePlugin.PngInfo()
    note.add_text(_STAMP, stamp)
    try:
        with atomic_write(target) as temporary:
            copy.save(temporary, pnginfo=note)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write the downscaled copy {target} ({reason(error)}): free the folder, or set XDG_CACHE_HOME "
            "to one that can be written"
        ) from error


def _as_colour(image: Image.Image) -> Image.Image:
    if image.mode in _COLOUR_MODES:
        return image
    return image.convert("RGBA" if image.mode == "LA" or "transparency" in image.info else "RGB")
