"""Index PNGs: one label id per pixel, and the legend `classes.json` that names them.

The same two files are a capture's ground truth (`label_maps.py`): what is written here can be read there.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from jacobinerf_ns.annotations.formats.base import FoundLabel, check_label_map, read_json
from jacobinerf_ns.annotations.schema import PALETTE, Colour, Label
from jacobinerf_ns.errors import plain_errors
from jacobinerf_ns.files.atomic import write_json, writing
from jacobinerf_ns.files.index_maps import VOID_ID, read_classes

LEGEND_NAME = "classes.json"

_PALETTE_SIZE = 256


def write_index_png(
    path: Path, ids: Int[np.ndarray, "height width"], labels: Sequence[Label], overwrite: bool = False
) -> None:
    """Writes a label map as a PNG whose pixel values are the ids.

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
    """Writes `classes.json` (the layout that `label_maps.read_classes` reads, and the colours); returns its path.

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


def read_legend(path: Path) -> tuple[Label, ...]:
    """Reads `classes.json`; labels without a colour get one from the palette.

    Raises:
        UserError: the file is damaged, or an id, name or colour is not one a label can have.
    """
    labels = []
    for number, found in enumerate(read_found_labels(path)):
        with plain_errors(f"{path}: class {found.id} ({found.name})"):
            colour = found.colour or PALETTE[number % len(PALETTE)]
            labels.append(Label(id=found.id or VOID_ID, name=found.name, colour=colour))
    return tuple(labels)


def read_found_labels(path: Path) -> tuple[FoundLabel, ...]:
    """Reads `classes.json` as it is. Errors: `UserError`."""
    names = read_classes(path)
    colours = {entry["id"]: parse_colour(entry.get("color")) for entry in read_json(path)["classes"]}
    return tuple(FoundLabel(name, number, colours[number]) for number, name in names.items())


def parse_colour(value: object) -> Colour | None:
    """A colour as other tools write it (`[230, 159, 0]` or `"#e69f00"`); None for anything else."""
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
    """Colours of a palette PNG by index; black, which palettes are filled up with, counts as none."""
    try:
        with Image.open(path) as picture:
            flat = picture.getpalette() if picture.mode == "P" else None
    except (OSError, SyntaxError, ValueError):
        # Damage is for the reader of the pixels to report.
        return {}
    triples = np.array(flat or [], dtype=np.uint8).reshape(-1, 3).tolist()
    return {index: (r, g, b) for index, (r, g, b) in enumerate(triples) if (r, g, b) != (0, 0, 0)}


def _palette(labels: Sequence[Label]) -> list[int]:
    colours = np.zeros((_PALETTE_SIZE, 3), dtype=np.uint8)
    for label in labels:
        colours[label.id] = label.colour
    return colours.flatten().tolist()
