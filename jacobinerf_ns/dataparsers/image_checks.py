"""Whether the images of a recording are whole, of the right size and of the right kind, before training starts.

Bytes are checked without decoding where the format allows it: checksums of a PNG, a JPEG at an eighth of its size.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jacobinerf_ns.errors import UserError, reason
from jacobinerf_ns.files.outside import open_picture
from jacobinerf_ns.progress import track

_REMEDY = "put an undamaged file there"
_DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I")
_INDEX_MODES = ("L", "P", *_DEPTH_MODES)
_MASK_MODES = ("1", *_INDEX_MODES)
_COLOUR_MODES = ("L", "RGB", "RGBA")
"""Pillow's modes of photographs as nerfstudio reads them; of others it takes what lies in memory for colours."""
_MANY = 500
"""From so many files on, the check is long enough for a progress bar."""


class Header(NamedTuple):
    """What an image's header says: (height, width) in pixels, and Pillow's mode."""

    size: tuple[int, int]
    mode: str


def read_header(path: Path) -> Header:
    """Return the size and mode of an image.

    Raises:
        UserError: it is missing or damaged.
    """
    with open_picture(path, f"image {path}", _REMEDY) as image:
        return Header((image.height, image.width), image.mode)


def check_images(paths: Sequence[Path], size: tuple[int, int]) -> None:
    """Check that photographs are whole, of kinds that nerfstudio reads as what they show, and of one size.

    With another size, rays would pass through other pixels.

    Raises:
        UserError: a photograph is damaged, has another size, is not in grey or RGB, or alone has or lacks transparency.
    """
    colours = _of_one_kind()

    def check(path: Path, header: Header) -> None:
        _check_size(path, header, size, "image", "the recording's camera")
        colours(path, header)

    _check_all(paths, check)


def check_training_files(images: Sequence[Path], masks: Sequence[Path]) -> None:
    """Check that photographs and their masks are whole, and of kinds that nerfstudio reads as what they show.

    Raises:
        UserError: a file is damaged, not in grey or RGB, or a photograph alone has or lacks transparency.
    """

    def mask(path: Path, header: Header) -> None:
        if header.mode not in _MASK_MODES:
            raise UserError(f"mask {path} is a {header.mode} image, expected one value per pixel: save it as grey")

    _check_all(images, _of_one_kind())
    _check_all(masks, mask)


def _of_one_kind() -> Callable[[Path, Header], None]:
    """Return a check of photographs' colours, one after the other."""
    modes: dict[bool, Path] = {}

    def check(path: Path, header: Header) -> None:
        if header.mode not in _COLOUR_MODES:
            raise UserError(f"image {path} is in {header.mode} colours, expected RGB, RGBA or 8-bit grey: convert it")
        modes.setdefault(header.mode == "RGBA", path)
        if len(modes) > 1:
            raise UserError(f"image {modes[True]} is transparent and {modes[False]} is not: convert them to be alike")

    return check


def check_label_maps(paths: Sequence[Path], size: tuple[int, int]) -> None:
    """Check that label maps are whole, of the size of their images, and have an index per pixel.

    Raises:
        UserError: a label map is damaged, has not the size of its image, or has no index per pixel.
    """

    def check(path: Path, header: Header) -> None:
        _check_size(path, header, size, "label map", "its image")
        if header.mode not in _INDEX_MODES:
            raise UserError(f"label map {path} is a {header.mode} image, expected one 8- or 16-bit index per pixel")

    _check_all(paths, check)


def check_depths(paths: Sequence[Path]) -> tuple[int, int]:
    """Return (height, width) of depth maps, which must be whole, of 16 bits and of one size.

    Raises:
        UserError: they are not, or a file is damaged.
    """
    size = read_header(paths[0]).size

    def check(path: Path, header: Header) -> None:
        if header.mode not in _DEPTH_MODES:
            raise UserError(
                f"depth map {path} is an 8-bit {header.mode} image, expected 16 bits per pixel: "
                "export depth as 16-bit PNG, or take away the folder"
            )
        _check_size(path, header, size, "depth map", paths[0].name)

    _check_all(paths, check)
    return size


def _check_all(paths: Sequence[Path], check: Callable[[Path, Header], None]) -> None:
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        headers = pool.map(_whole_header, paths)
        listed = zip(paths, headers, strict=True)
        long = track(listed, description="Checking images", total=len(paths), disable=len(paths) < _MANY)
        for path, header in long:
            check(path, header)


def _check_size(path: Path, header: Header, size: tuple[int, int], kind: str, partner: str) -> None:
    if header.size != size:
        raise UserError(
            f"{kind} {path} is {header.size[1]}x{header.size[0]} pixels (width x height), {partner} is "
            f"{size[1]}x{size[0]}: export all of one size"
        )


def _whole_header(path: Path) -> Header:
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"image {path} cannot be read ({reason(error)}): {_REMEDY}") from error
    return _verify(path, stat.st_size, stat.st_mtime_ns)


@cache
def _verify(path: Path, length: int, changed: int) -> Header:
    """Return the header of an image without damage; remembered while the file has this length and time of change."""
    with open_picture(path, f"image {path}", _REMEDY) as image:
        header = Header((image.height, image.width), image.mode)
        if image.format == "PNG":
            image.verify()
        else:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
    return header
