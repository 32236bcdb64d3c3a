"""Ground truth that lies in folders beside a capture of any format: label maps found by the names of the images."""

from collections.abc import Sequence
from pathlib import Path

from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

from jacobinerf_ns.dataparsers.image_checks import read_header
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.index_maps import INDEX_MODES, read_classes
from jacobinerf_ns.files.names import files_below, match_by_name

Size = tuple[int, int]

KINDS = ("semantics", "instances")
"""Folders of label maps; the metadata keys are these and `_filenames`."""
CLASSES_NAME = "classes.json"

_SUFFIXES = (".png",)


def add_label_maps(label_dir: Path, outputs: Sequence[DataparserOutputs]) -> None:
    """Put the label maps of a folder into the metadata of a dataparser's outputs, instead of those it may have.

    Keys: `semantics_filenames`, `instances_filenames` (those that the folder has), `classes` and `original_sizes`, as
    `jacobinerf-data` fills them.

    Args:
        label_dir: holds `semantics/` or `instances/` or both, or class maps itself; and `classes.json`, if it likes.
        outputs: of all splits in use: every image needs its own map, also where splits have images of one name.

    Raises:
        UserError: a map is missing, cannot be read, is no index image, is there twice or has not the size of its image.
    """
    roots = _roots(label_dir)
    images = list(dict.fromkeys(path for part in outputs for path in part.image_filenames))
    found = {kind: dict(zip(images, label_files(root, images), strict=True)) for kind, root in roots.items()}
    legend = label_dir / CLASSES_NAME
    names = read_classes(legend) if legend.is_file() else None
    for part in outputs:
        files = {kind: [by_image[path] for path in part.image_filenames] for kind, by_image in found.items()}
        metadata = {**part.metadata, "original_sizes": _original_sizes(part, files)}
        metadata |= {f"{kind}_filenames": paths for kind, paths in files.items()}
        if names is not None or "semantics" in files:
            metadata["classes"] = names  # Names of other maps than these would be wrong.
        part.metadata = metadata


def label_files(root: Path, images: Sequence[Path]) -> list[Path]:
    """Return the label map of every image, by name.

    Raises:
        UserError: images without one or with several.
    """
    found = match_by_name(images, files_below(root, _SUFFIXES), root)
    bare = [image.name for image, path in zip(images, found, strict=True) if path is None]
    if bare:
        raise UserError(
            f"{root} has no label map for {len(bare)} of {len(images)} images (first: {bare[0]}): expected a PNG of "
            "the same name for every image, or no such folder"
        )
    return [path for path in found if path is not None]


def folder_beside(folder: Path, kind: str) -> Path | None:
    """Return the folder of label maps of a kind in a capture; None where there is none, or no PNG in it."""
    root = folder / kind
    return root if root.is_dir() and files_below(root, _SUFFIXES) else None


def _roots(label_dir: Path) -> dict[str, Path]:
    """Return the folder of the maps of each kind."""
    if not label_dir.is_dir():
        raise UserError(f"no such folder: {label_dir}: give --pipeline.datamanager.label-dir a folder of label maps")
    roots = {kind: label_dir / kind for kind in KINDS if (label_dir / kind).is_dir()} or {"semantics": label_dir}
    for root in roots.values():
        if not files_below(root, _SUFFIXES):
            raise UserError(f"no PNG in {root}: expected a label map per image, named like the image")
    return roots


def _original_sizes(outputs: DataparserOutputs, files: dict[str, list[Path]]) -> list[Size]:
    """Return (height, width) that the label maps of each image have, where they are not of the camera's size."""
    cameras = outputs.cameras
    sizes = list(zip(cameras.height.flatten().tolist(), cameras.width.flatten().tolist(), strict=True))
    known: Sequence[Size | None] = outputs.metadata.get("original_sizes") or [None] * len(sizes)
    originals = []
    for i, (size, original) in enumerate(zip(sizes, known, strict=True)):
        for paths in files.values():
            found = _checked_size(paths[i], size, original)
            original = found if found != size else original
        originals.append(original or size)
    return originals


def _checked_size(path: Path, size: Size, original: Size | None) -> Size:
    """Return the size of a map: its image's, or the original's; else a whole multiple of the image's."""
    header = read_header(path)
    if header.mode not in INDEX_MODES:
        raise UserError(
            f"label map {path} is a {header.mode} image, expected one 8- or 16-bit index per pixel: "
            "save ids as a greyscale or palette PNG, not as colours"
        )
    if header.size in (size, original) or (original is None and _is_multiple(header.size, size)):
        return header.size
    wanted = f"{size[1]}x{size[0]}"
    if original is None:
        wanted += " or a whole multiple of it"
    elif tuple(original) != size:
        wanted += f" or {original[1]}x{original[0]} (not downscaled)"
    raise UserError(
        f"label map {path} is {header.size[1]}x{header.size[0]} pixels (width x height), expected {wanted}: "
        "label maps need the size of their image"
    )


def _is_multiple(large: Size, small: Size) -> bool:
    """Return whether a size is a whole multiple of another, up to what rounding takes or gives at the far edge."""
    factor = round(large[0] / small[0])
    return factor >= 1 and all(abs(a - factor * b) < factor for a, b in zip(large, small, strict=True))
