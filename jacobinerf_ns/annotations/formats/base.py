"""What all label files share: how they are named, written and matched to the images of a capture.

Pixels are (x, y) = (column, row) from the top left corner. Fractions, as other tools write them, count from the corner
of the image, so that pixel x reaches from x to x + 1. A label map holds one label id per pixel; 0 is void.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Int

from jacobinerf_ns.annotations.schema import MAX_ID, Colour, Label, Pixel
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files import outside
from jacobinerf_ns.files.names import NAME, STEM, NameIndex

Size = tuple[int, int]
"""(height, width) in pixels."""

_NO_FOLDER = ("/", "..")
"""Parts of a path that name no folder."""


@dataclass(frozen=True)
class FileLabel:
    """A label as a file gives it."""

    name: str
    id: int | None = None
    colour: Colour | None = None


@dataclass(frozen=True)
class Region:
    """One marked part of an image."""

    label: FileLabel
    kind: Literal["mask", "click", "scribble", "box"]
    mask: Bool[np.ndarray, "height width"] | None = None
    """For `mask`: its pixels."""
    points: tuple[Pixel, ...] = ()
    """For the others: the pixel, the line, or two opposite corners (both inside)."""


@dataclass(frozen=True)
class LabelledImage:
    """What a file says about one image. Regions may overlap; the later one is meant to win."""

    name: str
    """As the file names the image."""
    size: Size
    regions: Sequence[Region]


@dataclass(frozen=True)
class LabelSource:
    """A label file or a folder of them."""

    labels: tuple[FileLabel, ...]
    """The legend, empty where there is none. It knows more of a label of that name than the region may."""
    images: Iterable[LabelledImage]
    """Those that have regions; decoded while they are iterated."""


class ImageWriter(Protocol):
    """Writes the label map of one photo."""

    def __call__(
        self,
        path: Path,
        photo: str,
        ids: Int[np.ndarray, "height width"],
        labels: Sequence[Label],
        overwrite: bool = False,
    ) -> None:
        """Write the file at `path`; `photo` is the photo's path, absolute where the file should find it."""
        ...


class SetWriter(Protocol):
    """Writes the label maps of all photos as one file."""

    def __call__(
        self,
        path: Path,
        images: Iterable[tuple[str, Int[np.ndarray, "height width"]]],
        labels: Sequence[Label],
        *,
        overwrite: bool = False,
    ) -> None:
        """Write the file at `path` from names and label maps."""
        ...


class Opener(Protocol):
    """Opens label files."""

    def __call__(
        self, files: Sequence[Path], folder: Path, known: Mapping[str, Size], labels: Sequence[Label]
    ) -> LabelSource:
        """Open the files of a folder; `known` and `labels` are as for `sources.open_source`."""
        ...


@dataclass(frozen=True)
class LabelReader:
    """How the files of a format are told from others, and read."""

    open: Opener
    one: str
    """A file of it in words: `an index PNG`."""
    many: str | None = None
    """Files of it in words, where a folder may hold one for every photo; none: one file speaks of all photos."""
    holds: Callable[[Any], bool] | None = None
    """Whether the content of a JSON file is of the format; none: its suffix says so."""


@dataclass(frozen=True)
class LabelFormat:
    """A format of label files; it has one of the two writers."""

    title: str
    """In messages: `COCO`."""
    suffix: str
    """Of its files."""
    write_image: ImageWriter | None = None
    write_set: SetWriter | None = None
    set_name: str | None = None
    """What the one file of all photos is called in an output folder."""
    reader: LabelReader | None = None
    """None for a variant that another format of the table reads."""


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it cannot be read.
    """
    return outside.read_json(path, "a COCO or LabelMe file")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: it cannot be read, or holds no object.
    """
    content = load_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, expected the object of a COCO or LabelMe file")
    return content


def check_label_map(ids: Int[np.ndarray, "height width"], labels: Sequence[Label]) -> None:
    """Assert that a label map holds ids of the legend only."""
    strange = set(np.unique(ids).tolist()) - {0} - {label.id for label in labels}
    assert not strange, f"label map has ids {sorted(strange)[:5]}, which are not in its legend"
    assert all(label.id <= MAX_ID for label in labels)


def label_file_names(names: Sequence[str], suffix: str) -> list[str]:
    """Return the relative names of the label files of photos: the photo's stem (`images/0003.jpg` → `0003.png`).

    Photos of one stem keep as many parent folders as tell them apart, and their own suffix where folders do not
    (`0003.jpg.png`). Letter case tells nothing apart, since some file systems ignore it.

    Raises:
        UserError: two photos cannot be told apart.
    """
    paths = [PurePosixPath(name) for name in names]
    depth = max((len(path.parts) for path in paths), default=0)
    chosen: list[str] = [""] * len(paths)
    open_ones = list(range(len(paths)))
    stems = [[_tail(path.with_suffix(""), level) for path in paths] for level in range(1, depth + 1)]
    for candidates in [*stems, [_tail(path, depth) for path in paths]]:
        counts = _counts([candidates[index] for index in open_ones])
        for index in open_ones:
            chosen[index] = candidates[index]
        open_ones = [index for index in open_ones if counts[candidates[index].casefold()] > 1]
    for name, count in _counts(chosen).items():
        if count > 1:
            raise UserError(f"{count} photos would have the label file {name}{suffix}: rename all but one of them")
    return [f"{name}{suffix}" for name in chosen]


class ImageNames:
    """Finds the image of a capture that another tool means, whatever folders it puts before the name."""

    def __init__(self, known: Iterable[str]) -> None:
        """Index the images' file names."""
        self.known = tuple(known)
        self._paths = [_without_roots(PurePosixPath(name)) for name in self.known]
        self._index = NameIndex(self._paths, NAME, STEM, whole="shorter")

    def match(self, name: str, source: Path, without_suffix: bool = False) -> str:
        """Return the known name that shares most trailing folders with `name`; suffixes agree only where they can.

        Args:
            name: as the file gives it.
            source: the file, for messages.
            without_suffix: `name` is a label file's name less its suffix: a stem, or a whole name.

        Raises:
            UserError: no image, or several, have that name.
        """
        path = _without_roots(PurePosixPath(name.replace("\\", "/")))
        found = self._index.find(path.parent.parts, path.name, path.name if without_suffix else path.stem)
        if len(found) > 1:
            first, second = (self.known[place] for place in found[:2])
            raise UserError(f"{source}: {name} may be {first} or {second}: put the folder before the file name")
        if not found:
            names = [*(path.name for path in self._paths), *(path.stem for path in self._paths)]
            close = get_close_matches(path.name, names, n=1, cutoff=0.0)
            hint = f", closest is {close[0]}" if close else ""
            raise UserError(
                f"{source}: the capture has no image {name} (it has {len(self.known)}{hint}): rename the entry"
            )
        return self.known[found[0]]


class Decoded(Sequence[Region]):
    """Regions of an image, each decoded when it is asked for: all masks of a large photo would fill the memory."""

    def __init__(self, entries: Sequence[Any], decode: Callable[[int, Any], Sequence[Region]]) -> None:
        """Take what a file says of regions, and what makes them of the number and content of an entry."""
        self._entries, self._decode = entries, decode

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Region]:
        for number, entry in enumerate(self._entries):
            yield from self._decode(number, entry)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]


def check_size(image: LabelledImage, known: Mapping[str, Size], name: str, source: Path) -> None:
    """Check that a file counts pixels in an image of the capture's size, before any region is decoded.

    Raises:
        UserError: it has another one.
    """
    if image.size != known[name]:
        (height, width), (wanted_height, wanted_width) = image.size, known[name]
        raise UserError(
            f"{source}: {image.name} is {width}x{height} pixels (width x height), the capture's {name} is "
            f"{wanted_width}x{wanted_height}: label the image at its original size"
        )


def inside_pixel(point: tuple[float, float], size: Size) -> Pixel:
    """Return the pixel under a point; the far edges count as inside.

    Raises:
        ValueError: it is outside of the image.
    """
    (x, y), (height, width) = point, size
    if not (0 <= x <= width and 0 <= y <= height):
        raise ValueError(f"point ({x:g}, {y:g}) is outside of the image of {width}x{height} pixels")
    return min(int(x), width - 1), min(int(y), height - 1)


def inner_box(points: Sequence[tuple[float, float]], size: Size) -> tuple[Pixel, Pixel]:
    """Return the first and last pixel whose centres lie in the points' rectangle within the image; at least one.

    Raises:
        ValueError: nothing of it is inside of the image.
    """
    corners = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    limits = np.array(size[::-1], dtype=np.float64)
    low, high = corners.min(axis=0), corners.max(axis=0)
    if not np.isfinite(corners).all() or (low >= limits).any() or (high < 0).any():
        raise ValueError(f"rectangle {corners.tolist()} is outside of the image of {size[1]}x{size[0]} pixels")
    low, high = low.clip(0, limits), high.clip(0, limits)
    first = np.minimum(np.ceil(low - 0.5), limits - 1).astype(int)
    last = np.maximum(np.ceil(high - 0.5).astype(int) - 1, first)
    return (int(first[0]), int(first[1])), (int(last[0]), int(last[1]))


def _tail(path: PurePosixPath, count: int) -> str:
    return "/".join(part for part in path.parts[-count:] if part not in _NO_FOLDER)


def _counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name.casefold()] = counts.get(name.casefold(), 0) + 1
    return counts


def _without_roots(path: PurePosixPath) -> PurePosixPath:
    """Return a path without what stands before its folders on another computer."""
    return PurePosixPath(*(part for part in path.parts if part not in _NO_FOLDER))
