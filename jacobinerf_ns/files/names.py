"""Which file of a folder belongs to which image of a capture: label maps, masks and the like, matched by name."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath

from jacobinerf_ns.annotations.rasterise import unscaled
from jacobinerf_ns.errors import UserError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_MASK_ENDING = "_mask"


def files_below(folder: Path, suffixes: Sequence[str] = _IMAGE_SUFFIXES) -> list[Path]:
    """Image files in a folder and its subfolders, in order; hidden ones (`._0001.png`) are left out.

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
    """The file of each image, or None for images that have none.

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
    by_stem, by_alias = defaultdict[str, list[Path]](list), defaultdict[str, list[Path]](list)
    for file in files:
        by_stem[file.stem].append(file)
        if (alias := _alias(file)) != file.stem:
            by_alias[alias].append(file)
    found = [_best(image, by_stem[image.stem], root) or _best(image, by_alias[image.stem], root) for image in images]
    owners: dict[Path, Path] = {}
    for image, file in zip(images, found, strict=True):
        if file is not None and owners.setdefault(file, image) != image:
            raise UserError(
                f"{file} belongs to {owners[file]} and to {image} by its name: put the files into subfolders of {root} "
                "that are named like the images' folders"
            )
    return found


def _alias(file: Path) -> str:
    inner = PurePath(file.stem)
    return inner.stem if inner.suffix.lower() in _IMAGE_SUFFIXES else file.stem.removesuffix(_MASK_ENDING)


def _best(image: Path, candidates: Sequence[Path], root: Path) -> Path | None:
    """The candidate with most of the image's own folders."""
    parents = unscaled(image.parent).parts
    fitting: dict[int, list[Path]] = {}
    for file in candidates:
        folders = unscaled(file.relative_to(root).parent).parts
        if parents[len(parents) - len(folders) :] == folders:
            fitting.setdefault(len(folders), []).append(file)
    if not fitting:
        return None
    best = fitting[max(fitting)]
    if len(best) > 1:
        raise UserError(f"image {image} has two files in {root}: {best[0]} and {best[1]}: keep one of them")
    return best[0]
