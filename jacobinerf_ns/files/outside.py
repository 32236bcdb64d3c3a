"""Files from outside: what people, other tools and strangers give, read within limits and with one kind of error.

Whatever lies in a file, reading it ends in its content or in a `UserError`, soon, and without filling the memory: sizes
are compared with limits before anything is decoded. The limits are far beyond real captures (docs/limits.md).
Files that we wrote ourselves may be read by these readers too, and need not.
"""

import json
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from jacobinerf_ns.errors import UserError, reason

MAX_TEXT_BYTES = 100 << 20
"""Bytes of a JSON or other text file."""
MAX_VALUES = 8_000_000
"""Values of a JSON file, counted by its commas and brackets: an empty list takes twenty times its text in memory."""
MAX_NESTING = 64
"""Lists and objects of a JSON file inside of each other."""
MAX_DIGITS = 19
"""Of a whole number in a JSON file: beyond these no 64-bit integer holds it."""
MAX_PIXELS = 1 << 27
"""Of a picture: 134 megapixels."""
MAX_SIDE = 65_535
"""Pixels along a side of a picture."""
MAX_PICTURE_BYTES = 1 << 30
"""Bytes of a picture's file."""
MAX_ARRAY_VALUES = 1 << 28
"""Numbers of an array: a gigabyte of float32."""
MAX_NAME_BYTES = 255
"""Of one part of a path, in UTF-8: what file systems take."""
MAX_PATH_BYTES = 4_000
"""Of a whole path."""

PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
"""Pillow's names of the formats that are read. Others, among them EPS, start programs to be decoded."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SUSPICIOUS = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
"""Escapes that may be half a character, or a NUL: no path and no terminal takes either."""


def check_regular(path: Path, what: str, largest: int | None = None) -> int:
    """Return the size in bytes of a plain file: reading a pipe or a device may never end.

    Args:
        path: of the file; a link is followed.
        what: it is expected to be, for messages.
        largest: bytes that it may have.

    Raises:
        UserError: it is missing, no plain file, or too large.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): expected {what}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise UserError(f"{path} cannot be read (it is {kind}): expected {what}")
    if largest is not None and found.st_size > largest:
        raise UserError(
            f"{path} cannot be read (it has {found.st_size} bytes, at most {largest} are read): expected {what}"
        )
    return found.st_size


def file_below(folder: Path, name: str) -> Path:
    """Return the file that a stranger's file names, which has to lie below its folder, links followed.

    Raises:
        UserError: it is missing, or a link leads out of the folder.
    """
    path = folder / check_name(name, f"a file name in {folder}")
    try:
        found = path.resolve(strict=True)
        inside = found.is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): put the file there") from error
    if not inside:
        raise UserError(f"{path} is a link out of {folder}: expected a file of its own: put a copy there")
    check_regular(path, "a plain file")
    return path


def read_text(path: Path, what: str, largest: int = MAX_TEXT_BYTES) -> str:
    """Read a text file in UTF-8, of at most so many bytes.

    Raises:
        UserError: as of `check_regular`, or it is no text.
    """
    check_regular(path, what, largest)
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): expected {what}") from error


def read_json(path: Path, what: str, remedy: str = "") -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        what: it is expected to be, for messages.
        remedy: what to do about a damaged file, if more is to be said.

    Raises:
        UserError: it cannot be read, or goes beyond the limits.
    """
    check_regular(path, what, MAX_TEXT_BYTES)
    try:
        return parse_json(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): expected {what}") from error
    except ValueError as error:
        ending = f": {remedy}" if remedy else ""
        raise UserError(f"{path} is not valid JSON ({reason(error)}), expected {what}{ending}") from error


def parse_json(text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: it is damaged or goes beyond the limits; the message is one line.
    """
    count = sum(map(text.count, ",[{"))
    if count > MAX_VALUES:
        raise ValueError(f"about {count} values, at most {MAX_VALUES} are read")
    try:
        content = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [content]
    for _ in range(MAX_NESTING + 1):
        level = [part for whole in level for part in _parts(whole) if isinstance(part, dict | list)]
        if not level:
            break
    else:
        raise ValueError(f"more than {MAX_NESTING} lists and objects inside of each other")
    if _SUSPICIOUS.search(text):
        _check_characters(content)
    return content


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS + 1:
        raise ValueError(f"a number of {len(digits)} digits, at most {MAX_DIGITS} are read")
    return int(digits)


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _check_characters(content: Any) -> None:
    try:
        raw = json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character, {error.object[error.start]!r}") from None
    if re.search(rb"(?<!\\)(?:\\\\)*\\u0000", raw):
        raise ValueError("a text with the character NUL")


def check_name(name: Any, where: str) -> str:
    """Return a file's name or path as another file gives it, known to be one that can be asked for.

    Raises:
        UserError: it is no text, empty, too long, or has control characters.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"{where} is {shortened(name)}: expected a file's name")
    if _CONTROL.search(name):
        raise UserError(f"{where} is {shortened(name)}, with control characters: rename the file")
    try:
        parts = [len(part.encode("utf-8")) for part in PurePosixPath(name).parts]
    except UnicodeEncodeError:
        raise UserError(f"{where} is {shortened(name)}, with half a character: rename the file") from None
    if max(parts, default=0) > MAX_NAME_BYTES or sum(parts) + len(parts) > MAX_PATH_BYTES:
        raise UserError(
            f"{where} is {shortened(name)}, {sum(parts)} bytes long: expected at most {MAX_NAME_BYTES} between two "
            f"slashes and {MAX_PATH_BYTES} in all"
        )
    return name


def shortened(value: Any, length: int = 60) -> str:
    """Return how Python writes a value, cut to a length."""
    text = value[: length + 1] if isinstance(value, str) else value
    written = repr(text)
    return written if len(written) <= length else f"{written[: length - 3]}..."


def check_pixels(size: Sequence[int], what: str) -> None:
    """Check that a picture of (height, width) pixels may be held in memory.

    Raises:
        UserError: a side or the area is beyond the limits, or there is no pixel.
    """
    height, width = size
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise UserError(
            f"{what} is {width}x{height} pixels (width x height), expected 1..{MAX_SIDE} on each side and at most "
            f"{MAX_PIXELS // 10**6} million in all"
        )


@contextmanager
def open_picture(
    source: Path | BytesIO, what: str, remedy: str, formats: tuple[str, ...] = PICTURE_FORMATS
) -> Iterator[Image.Image]:
    """Open a picture, to be decoded inside of the block: whatever Pillow raises there is a `UserError` of one line.

    Args:
        source: the file, or its bytes.
        what: it is, for messages: `image a/1.jpg`.
        remedy: what to do about a damaged file.
        formats: Pillow's names of those that are expected.

    Raises:
        UserError: it is missing, damaged, of another format, or has more pixels than the limit.
    """
    if isinstance(source, Path):
        check_regular(source, f"a picture, {remedy}", MAX_PICTURE_BYTES)
    _silence_large_pictures()
    try:
        with Image.open(source, formats=formats) as picture:
            check_pixels((picture.height, picture.width), what)
            yield picture
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{what} has too many pixels, expected at most {MAX_PIXELS // 10**6} million") from None
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for damaged files.
        raise UserError(f"{what} cannot be read ({reason(error)}): {remedy}") from error


@cache
def _silence_large_pictures() -> None:
    """Keep Pillow from warning of pictures that our own limit lets through, or refuses in one line."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_array(path: Path) -> np.ndarray:
    """Read an array that `numpy.save` wrote: real numbers, and as many as its header says.

    Raises:
        UserError: it is damaged, holds Python objects, or is too large.
    """
    length = check_regular(path, "an array of numpy.save")
    wrong = f"{path} is not a plain array"
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, kind = read(file)
            start = file.tell()
    except Exception as error:  # numpy evaluates the header; what is wrong with it comes out as anything.
        raise UserError(f"{wrong} ({reason(error)}): save it with numpy.save") from error
    count = math.prod(shape)
    if kind.hasobject:
        raise UserError(f"{wrong} (it holds Python objects): save it with numpy.save")
    if kind.kind not in "fiu":
        raise UserError(f"{path} holds {kind}, expected real numbers")
    if count > MAX_ARRAY_VALUES:
        raise UserError(f"{path} holds {count} numbers, expected at most {MAX_ARRAY_VALUES}: save fewer cells")
    if start + count * kind.itemsize > length:
        raise UserError(f"{path} is damaged (cut short): write it again")
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{wrong} ({reason(error)}): save it with numpy.save") from error
