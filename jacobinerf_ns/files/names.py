"""Images found by a name that somebody wrote, and label maps and masks found by the name of their image."""

import difflib
import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from jacobinerf_ns.errors import UserError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_MASK_ENDING = "_mask"

NAME, STEM = attrgetter("name"), attrgetter("stem")
"""Keys of `NameIndex`: a file's name with and without its suffix."""

Whole = Literal["wanted", "listed", "shorter"]
"""Whose folders must all be shared: those of the name that is looked for, of the listed file, or of the shorter one."""


class NameIndex:
    """Files that are looked for by name: by one key after the other, and among those of one key by shared folders."""

    def __init__(self, listed: Sequence[PurePath], *keys: Callable[[PurePath], str], whole: Whole) -> None:
        """Index files.

        Args:
            listed: the files, with the folders that count.
            keys: what of a path a name is compared with; a later one counts where an earlier one finds nothing.
            whole: whose folders must all be shared.
        """
        self._whole: Whole = whole
        self._folders = [path.parent.parts for path in listed]
        self._places: list[dict[str, list[int]]] = []
        for key in keys:
            by_key: dict[str, list[int]] = {}
            for place, path in enumerate(listed):
                by_key.setdefault(key(path), []).append(place)
            self._places.append(by_key)

    def find(self, folders: Sequence[str], *names: str) -> list[int]:
        """Return the positions of the files that share most trailing folders: none, one, or several that are alike.

        Args:
            folders: before the name.
            names: what each of the keys has to be.
        """
        for by_key, name in zip(self._places, names, strict=True):
            shared = {place: _shared(folders, self._folders[place]) for place in by_key.get(name, ())}
            fitting = {place: count for place, count in shared.items() if count >= self._needed(folders, place)}
            if fitting:
                return [place for place, count in fitting.items() if count == max(fitting.values())]
        return []

    def _needed(self, folders: Sequence[str], place: int) -> int:
        wanted, listed = len(folders), len(self._folders[place])
        return {"wanted": wanted, "listed": listed, "shorter": min(wanted, listed)}[self._whole]


def find_image(name: str, filenames: Sequence[Path], kind: str = "training images") -> int:
    """Return the index of the image of that name among a run's images.

    `name` has as many parent folders as it needs, and may leave its suffix out. A copy of other size counts as the
    image: `images_4/1.jpg` (nerfstudio's) and `1.png` (ours) are found by `images/1.jpg`. `kind` says in messages what
    is listed.

    Raises:
        UserError: no such image (with the closest names), or more than one.
    """
    wanted = unscaled(PurePosixPath(name.replace("\\", "/")))
    listed = [unscaled(PurePosixPath(path.as_posix())) for path in filenames]
    index = NameIndex(listed, NAME, STEM, STEM, whole="wanted")
    found = index.find(wanted.parent.parts, wanted.name, wanted.name, wanted.stem)
    if not found:
        raise UserError(_unknown_image(name, filenames, kind))
    if len(found) > 1:
        raise UserError(
            f"image {name!r} is ambiguous: found {filenames[found[0]]} and {filenames[found[1]]}: give its folder too"
        )
    return found[0]


def image_name(filenames: Sequence[Path], index: int) -> str:
    """Return the shortest name that `find_image` finds an image by: its file name, with parent folders where needed."""
    parts = filenames[index].parts
    for count in range(1, len(parts)):
        tails = [path.parts[-count:] for path in filenames]
        if tails.count(tails[index]) == 1:
            return "/".join(tails[index])
    return filenames[index].as_posix()


def unscaled(path: PurePath) -> PurePosixPath:
    """Return the path of the original: nerfstudio keeps smaller copies of `images/` in `images_2/`, `images_4/`, ..."""
    return PurePosixPath(*(re.sub(r"^images_\d+$", "images", part) for part in path.parts))


def files_below(folder: Path, suffixes: Sequence[str] = _IMAGE_SUFFIXES) -> list[Path]:
    """Return the image files in a folder and its subfolders, in order; hidden ones (`._0001.png`) are left out.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}: give one with images that are named like the capture's")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def match_by_name(images: Sequence[Path], files: Sequence[Path], root: Path) -> list[Path | None]:
    """Return the file of each image, or None for images that have none.

    A file belongs to the images whose name, without suffix, is its own: `0001.png` to `images/0001.jpg`. Where no file
    is named so, `0001.jpg.png` and `0001_mask.png` count too. Subfolders of `root` have to be the image's own folders
    (`cam0/0001.png` belongs to `images/cam0/0001.jpg` only), and tell images of one name apart.

    Args:
        images: paths of a capture's images; one that is named twice counts once. Give those of all splits, since
            images of different splits may have one name (`train/r_0.png`, `val/r_0.png`).
        files: below `root`.
        root: folder that the files' subfolders are counted from.

    Raises:
        UserError: several files for an image, or one file for several images.
    """
    index = NameIndex([unscaled(file.relative_to(root)) for file in files], STEM, _alias, whole="listed")
    places = [index.find(unscaled(image.parent).parts, image.stem, image.stem) for image in images]
    found = [_only([files[place] for place in own], image, root) for own, image in zip(places, images, strict=True)]
    owners: dict[Path, Path] = {}
    for image, file in zip(images, found, strict=True):
        if file is not None and owners.setdefault(file, image) != image:
            raise UserError(
                f"{file} belongs to {owners[file]} and to {image} by its name: put the files into subfolders of {root} "
                "that are named like the images' folders"
            )
    return found


def _only(found: Sequence[Path], image: Path, root: Path) -> Path | None:
    if len(found) > 1:
        raise UserError(f"image {image} has two files in {root}: {found[0]} and {found[1]}: keep one of them")
    return found[0] if found else None


def _alias(file: PurePath) -> str:
    """Return the stem without another suffix of an image or a mask's ending in it."""
    inner = PurePath(file.stem)
    return inner.stem if inner.suffix.lower() in _IMAGE_SUFFIXES else file.stem.removesuffix(_MASK_ENDING)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many trailing folders two paths share."""
    count = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left != right:
            break
        count += 1
    return count


def _unknown_image(name: str, filenames: Sequence[Path], kind: str) -> str:
    names = [path.name for path in filenames]
    close = difflib.get_close_matches(PurePosixPath(name).name, names, n=3, cutoff=0.4) or names[:3]
    return f"no image {name!r} among the {len(names)} {kind}: did you mean {' or '.join(dict.fromkeys(close))}?"
