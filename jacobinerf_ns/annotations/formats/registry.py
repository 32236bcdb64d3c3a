"""The formats of label files by name. A new one is a module beside this and a line here.

Only names stand here, so that command lines list them without loading what reads and writes them.
"""

import pkgutil
from typing import TYPE_CHECKING, Literal, NamedTuple

from jacobinerf_ns.errors import UserError

if TYPE_CHECKING:
    from jacobinerf_ns.annotations.formats.base import LabelFormat


class Entry(NamedTuple):
    """A format's line."""

    name: str
    """As commands call it."""
    place: str
    """Module of this package, and the name of the `LabelFormat` in it."""
    takes_seeds: bool = True
    """Whether seeds are exported to it too, and not only label maps."""


FORMATS = (
    Entry("png", "png:INDEX_PNG"),
    Entry("coco", "coco:COCO"),
    Entry("coco-polygons", "coco:COCO_POLYGONS", takes_seeds=False),
    Entry("labelme", "labelme:LABELME"),
)
"""All formats. Where files of several lie in one folder, the last one is meant: PNGs may be the photos themselves."""

# Type checkers read no table; tyro shows the names as choices.
if TYPE_CHECKING:
    FormatName = str
    SeedFormatName = str
else:
    FormatName = Literal[tuple(entry.name for entry in FORMATS)]
    SeedFormatName = Literal[tuple(entry.name for entry in FORMATS if entry.takes_seeds)]


def load_format(name: str) -> "LabelFormat":
    """Return what reads and writes a format.

    Raises:
        UserError: there is none of that name.
    """
    places = {entry.name: entry.place for entry in FORMATS}
    if name not in places:
        raise UserError(f"no label format {name!r}: expected one of {', '.join(places)}")
    return pkgutil.resolve_name(f"{__package__}.{places[name]}")
