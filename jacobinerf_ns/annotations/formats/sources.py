"""Label files as they lie on disk: finds out what a file or folder is, and opens it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jacobinerf_ns.annotations.formats.base import (
    FoundLabel,
    ImageNames,
    LabelledImage,
    LabelSource,
    Region,
    Size,
    load_json,
)
from jacobinerf_ns.annotations.formats.coco import read_coco
from jacobinerf_ns.annotations.formats.labelme import read_labelme
from jacobinerf_ns.annotations.formats.png import LEGEND_NAME, palette_colours, read_found_labels
from jacobinerf_ns.annotations.schema import Label
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.index_maps import VOID_ID, read_label_map

_EXPECTED = "expected an index PNG, a COCO or LabelMe JSON file, or a folder of index PNGs or LabelMe files"


def open_source(source: Path, known: Mapping[str, Size], labels: Sequence[Label]) -> LabelSource:
    """Opens label files of any of our formats; images are read while they are iterated.

    In a folder (and the folders in it), LabelMe files come before PNGs, which may be the photos they describe.

    Args:
        source: file or folder.
        known: (height, width) of the capture's images at their original size, by file name.
        labels: names for ids of PNGs that no legend names.

    Raises:
        UserError: nothing of the kind is there, or it is damaged.
    """
    if not source.exists():
        raise UserError(f"no such file or folder: {source}: {_EXPECTED}")
    if source.is_dir():
        return _open_folder(source, known, labels)
    if source.suffix.lower() == ".png":
        return _open_pngs([source], source.parent, known, labels)
    if source.suffix.lower() != ".json":
        raise UserError(f"{source} is a {source.suffix or 'nameless'} file: {_EXPECTED}")
    kind = _kind(source)
    if kind is None:
        raise UserError(f"{source} is neither a COCO nor a LabelMe file: {_EXPECTED}")
    return read_coco(source) if kind == "coco" else _open_labelme([source], source.parent)


def _open_folder(folder: Path, known: Mapping[str, Size], labels: Sequence[Label]) -> LabelSource:
    files = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    kinds = {path: _kind(path) for path in files if path.suffix.lower() == ".json" and path.name != LEGEND_NAME}
    labelme = [path for path, kind in kinds.items() if kind == "labelme"]
    coco = [path for path, kind in kinds.items() if kind == "coco"]
    pngs = [path for path in files if path.suffix.lower() == ".png"]
    if labelme:
        return _open_labelme(labelme, folder)
    if len(coco) == 1:
        return read_coco(coco[0])
    if coco:
        raise UserError(
            f"{folder} holds {len(coco)} COCO files ({coco[0].name}, {coco[1].name}, ...): give one of them"
        )
    if not pngs:
        raise UserError(f"{folder} holds no label file: {_EXPECTED}")
    return _open_pngs(pngs, folder, known, labels)


def _kind(path: Path) -> str | None:
    content = load_json(path)
    if not isinstance(content, dict):
        return None
    if "shapes" in content:
        return "labelme"
    return "coco" if "annotations" in content and "images" in content else None


def _legend(folder: Path) -> tuple[FoundLabel, ...]:
    """The legend in the folder of label files, or beside it, where a capture has it."""
    for path in (folder / LEGEND_NAME, folder.absolute().parent / LEGEND_NAME):
        if path.is_file():
            return read_found_labels(path)
    return ()


def _open_labelme(files: Sequence[Path], folder: Path) -> LabelSource:
    read = (read_labelme(path) for path in files)
    return LabelSource(_legend(folder), (image for image in read if image.regions))


def _open_pngs(files: Sequence[Path], folder: Path, known: Mapping[str, Size], labels: Sequence[Label]) -> LabelSource:
    legend = _legend(folder)
    if legend:
        entries = {found.id: found for found in legend}
    else:
        entries = {label.id: FoundLabel(label.name, label.id) for label in labels}
    names = ImageNames(known)

    def images() -> Iterator[LabelledImage]:
        for path in files:
            relative = path.relative_to(folder).with_suffix("").as_posix()
            name = names.match(relative, path, without_suffix=True)
            ids = read_label_map(path, known[name]).numpy()
            colours = {} if legend else palette_colours(path)
            regions = []
            for number in np.unique(ids[ids != VOID_ID]).tolist():
                if legend and number not in entries:
                    raise UserError(f"{path} has the id {number}, which {LEGEND_NAME} does not name: add it there")
                found = entries.get(number) or FoundLabel(f"label {number}", number, colours.get(number))
                regions.append(Region(found, "mask", ids == number))
            if regions:
                yield LabelledImage(name, known[name], tuple(regions))

    return LabelSource(legend, images())
