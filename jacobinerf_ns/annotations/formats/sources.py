"""Label files as they lie on disk: finds out what a file or folder is, and opens it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jacobinerf_ns.annotations.formats.base import LabelFormat, LabelReader, LabelSource, Size, load_json
from jacobinerf_ns.annotations.formats.png import LEGEND_NAME
from jacobinerf_ns.annotations.formats.registry import FORMATS, load_format
from jacobinerf_ns.annotations.schema import Label
from jacobinerf_ns.errors import UserError

_JSON = ".json"


def open_source(source: Path, known: Mapping[str, Size], labels: Sequence[Label]) -> LabelSource:
    """Open label files of any of our formats; images are read while they are iterated.

    In a folder (and the folders in it), LabelMe files come before PNGs, which may be the photos they describe.

    Args:
        source: file or folder.
        known: (height, width) of the capture's images at their original size, by file name.
        labels: names for ids of PNGs that no legend names.

    Raises:
        UserError: nothing of the kind is there, or it is damaged.
    """
    readers = _readers()
    expected = _expected(readers)
    if not source.exists():
        raise UserError(f"no such file or folder: {source}: {expected}")
    if source.is_dir():
        files, form = _files_of(source, readers, expected)
        return readers[form].open(files, source, known, labels)
    if source.suffix.lower() not in {form.suffix for form in readers}:
        raise UserError(f"{source} is a {source.suffix or 'nameless'} file: {expected}")
    form = _format_of(source, readers)
    if form is None:
        others = " nor ".join(f"a {form.title}" for form in readers if form.suffix == source.suffix.lower())
        raise UserError(f"{source} is neither {others} file: {expected}")
    return readers[form].open([source], source.parent, known, labels)


def _readers() -> dict[LabelFormat, LabelReader]:
    formats = (load_format(entry.name) for entry in FORMATS)
    return {form: form.reader for form in formats if form.reader is not None}


def _expected(readers: dict[LabelFormat, LabelReader]) -> str:
    single = ", ".join(reader.one for reader in readers.values())
    several = " or ".join(reader.many for reader in readers.values() if reader.many is not None)
    return f"expected {single}, or a folder of {several}"


def _format_of(path: Path, readers: dict[LabelFormat, LabelReader]) -> LabelFormat | None:
    """Return the format of a file, the last of the table that it may be of; None for other files."""
    suffix = path.suffix.lower()
    content = load_json(path) if suffix == _JSON else None
    fitting = [form for form, reader in readers.items() if form.suffix == suffix and _holds(reader, content)]
    return fitting[-1] if fitting else None


def _holds(reader: LabelReader, content: object) -> bool:
    return reader.holds is None or (isinstance(content, dict) and reader.holds(content))


def _files_of(folder: Path, readers: dict[LabelFormat, LabelReader], expected: str) -> tuple[list[Path], LabelFormat]:
    """Return the label files of a folder, and their format."""
    listed = sorted(path for path in folder.rglob("*") if not path.name.startswith(".") and path.name != LEGEND_NAME)
    formats = {path: _format_of(path, readers) for path in listed}
    for form in reversed(readers):
        files = [path for path, found in formats.items() if found == form]
        if len(files) > 1 and readers[form].many is None:
            raise UserError(
                f"{folder} holds {len(files)} {form.title} files ({files[0].name}, {files[1].name}, ...): "
                "give one of them"
            )
        if files:
            return files, form
    raise UserError(f"{folder} holds no label file: {expected}")
