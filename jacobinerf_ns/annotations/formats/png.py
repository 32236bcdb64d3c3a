"""Index PNGs: one label id per pixel, and the legend `classes.json` that names them.

The same two files are a capture's ground truth (`files/index_maps.py`): what is written here can be read there.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from jacobinerf_ns.annotations.formats.base import (
    FileLabel,
    ImageNames,
    LabelFormat,
    LabelledImage,
    LabelReader,
    LabelSource,
    Region,
    Size,
    check_label_map,
    read_json,
)
from jacobinerf_ns.annotations.schema import Colour, Label
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.atomic import write_json, writing
from jacobinerf_ns.files.index_maps import VOID_ID, read_classes, read_label_map
from jacobinerf_ns.files.outside import open_picture

LEGEND_NAME = "classes.json"

_PALETTE_SIZE = 256


def write_index_png(
    path: Path, ids: Int[np.ndarray, "height width"], labels: Sequence[Label], overwrite: bool = False
) -> None:
    """Write a label map as a PNG whose pixel values are the ids.

    8 bits with the labels' colours as palette, so that any viewer shows it readably; 16-bit grey when an id of the
    legend is above 255, so that all maps of one legend are of one kind.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    check_label_map(ids, labels)
    if any(label.id >= _PALETTE_SIZE for label in labels):
        picture = Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint16))
    else:
        picture = Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint8))
        # From grey to palette: putpalette keeps the values and gives them colours.
        picture.putpalette(_palette(labels))
    with writing(path, overwrite) as temporary:
        picture.save(temporary, format="PNG")


def write_legend(folder: Path, labels: Sequence[Label], overwrite: bool = False) -> Path:
    """Write `classes.json` (the layout that `index_maps.read_classes` reads, and the colours); return its path.

    A file that says the same already is left as it is, so that an interrupted run can go on.

    Raises:
        UserError: another legend is there, or it cannot be written.
    """
    path = folder / LEGEND_NAME
    entries = [{"id": label.id, "name": label.name, "color": list(label.colour)} for label in labels]
    content = {"void_id": VOID_ID, "classes": entries}
    if overwrite or not path.is_file() or read_json(path) != content:
        write_json(path, content, overwrite)
    return path


def read_legend(path: Path) -> tuple[FileLabel, ...]:
    """Read `classes.json` as it is.

    Raises:
        UserError: it is damaged.
    """
    names = read_classes(path)
    colours = {entry["id"]: parse_colour(entry.get("color")) for entry in read_json(path)["classes"]}
    return tuple(FileLabel(name, number, colours[number]) for number, name in names.items())


def read_legend_of(folder: Path) -> tuple[FileLabel, ...]:
    """Return the legend in a folder of label files, or beside it, where a capture has it; empty where there is none."""
    for path in (folder / LEGEND_NAME, folder.absolute().parent / LEGEND_NAME):
        if path.is_file():
            return read_legend(path)
    return ()


def open_index_pngs(
    files: Sequence[Path], folder: Path, known: Mapping[str, Size], labels: Sequence[Label]
) -> LabelSource:
    """Open index PNGs, which are named as their photos; without a legend, ids are named by `labels`."""
    legend = read_legend_of(folder)
    if legend:
        entries = {found.id: found for found in legend}
    else:
        entries = {label.id: FileLabel(label.name, label.id) for label in labels}
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
                found = entries.get(number) or FileLabel(f"label {number}", number, colours.get(number))
                regions.append(Region(found, "mask", ids == number))
            if regions:
                yield LabelledImage(name, known[name], tuple(regions))

    return LabelSource(legend, images())


def parse_colour(value: object) -> Colour | None:
    """Return a colour as other tools write it (`[230, 159, 0]` or `"#e69f00"`); None for anything else."""
    if isinstance(value, str) and len(value) == 7 and value.startswith("#"):
        try:
            value = list(bytes.fromhex(value[1:]))
        except ValueError:
            return None
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(type(channel) is int and 0 <= channel <= 255 for channel in value):
        return None
    return value[0], value[1], value[2]


def palette_colours(path: Path) -> dict[int, Colour]:
    """Return the colours of a palette PNG by index; black, which palettes are filled up with, counts as none."""
    try:
        with open_picture(path, str(path), "") as picture:
            flat = picture.getpalette() if picture.mode == "P" else None
    except UserError:
        # Damage is for the reader of the pixels to report.
        return {}
    triples = np.array(flat or [], dtype=np.uint8).reshape(-1, 3).tolist()
    return {index: (r, g, b) for index, (r, g, b) in enumerate(triples) if (r, g, b) != (0, 0, 0)}


def _palette(labels: Sequence[Label]) -> list[int]:
    colours = np.zeros((_PALETTE_SIZE, 3), dtype=np.uint8)
    for label in labels:
        colours[label.id] = label.colour
    return colours.flatten().tolist()


def _write(
    path: Path, photo: str, ids: Int[np.ndarray, "height width"], labels: Sequence[Label], overwrite: bool = False
) -> None:
    write_index_png(path, ids, labels, overwrite)


INDEX_PNG = LabelFormat(
    "index PNG",
    ".png",
    write_image=_write,
    reader=LabelReader(open_index_pngs, one="an index PNG", many="index PNGs"),
)
