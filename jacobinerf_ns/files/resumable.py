"""Output folders that a long command fills file by file, so that it can be interrupted and go on later."""

from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.atomic import write_json
from jacobinerf_ns.files.outside import read_json

VERSION = 1
REMEDY = "choose another --output-dir, or --overwrite"


def claim_folder(
    manifest: Path,
    made_of: Mapping[str, Any],
    files: Collection[str],
    differences: Mapping[str, str],
    overwrite: bool = False,
) -> None:
    """Make sure that what lies in a folder and what is about to be written to it are parts of one result.

    The manifest says what a result is made of. A new or empty folder gets one; in a folder with an equal one, files
    that are there are finished and stay. With `overwrite`, the files of an earlier result go before its manifest does,
    so that an interruption never leaves old files under a new manifest.

    Args:
        manifest: path of the manifest; its folder is the output folder.
        made_of: what decides the content of the files; plain JSON values.
        files: names, relative to the folder, of all files that may be written.
        differences: for each key of `made_of`, in words, what a result with another value of it was made from.
        overwrite: take away what is in the way.

    Raises:
        UserError: the folder holds another result or foreign files, or cannot be written.
    """
    folder = manifest.parent
    earlier = _read_manifest(manifest, overwrite)
    _check_links(folder, {*earlier.get("files", ()), *files} if overwrite else files)
    if overwrite:
        _remove(folder, {*earlier.get("files", ()), *files})
        earlier = {}
    elif earlier:
        _check_same(folder, earlier["made_of"], made_of, differences)
    elif _holds_something(folder):
        raise UserError(f"{folder} holds files that this command did not make: {REMEDY}")
    content = {"version": VERSION, "made_of": dict(made_of), "files": sorted({*earlier.get("files", ()), *files})}
    if content != earlier:
        write_json(manifest, content, overwrite=True)


def _read_manifest(path: Path, overwrite: bool) -> dict[str, Any]:
    """Return the manifest of an earlier run; empty where there is none, or a damaged one is overwritten."""
    try:
        content = read_json(path, "a manifest")
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return {}
        content = None
    if isinstance(content, dict) and content.get("version") == VERSION and isinstance(content.get("made_of"), dict):
        files = content.get("files")
        if isinstance(files, list) and all(_stays_inside(name) for name in files):
            return content
    if overwrite:
        return {}
    raise UserError(f"{path} is damaged or made by another version: {REMEDY}")


def _stays_inside(name: Any) -> bool:
    """Return whether a name stays inside: by a damaged manifest nothing outside of the folder may be deleted."""
    return isinstance(name, str) and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _check_links(folder: Path, names: Collection[str]) -> None:
    """Check that no folder in the folder is a link to elsewhere: files there are nobody's here to write or remove.

    Raises:
        UserError: one is.
    """
    try:
        root = folder.resolve()
        for inner in sorted({(folder / name).parent for name in names}):
            if not inner.resolve().is_relative_to(root):
                raise UserError(f"{inner} is a link out of {folder}: take it away, or choose another --output-dir")
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be used as a folder ({error}): choose another --output-dir") from error


def _check_same(
    folder: Path, earlier: Mapping[str, Any], made_of: Mapping[str, Any], differences: Mapping[str, str]
) -> None:
    other = [words for key, words in differences.items() if earlier.get(key) != made_of[key]]
    if other:
        raise UserError(f"{folder} was made from {' and '.join(other)}: {REMEDY}")


def _holds_something(folder: Path) -> bool:
    """Return whether there is anything but hidden files, which file managers leave behind."""
    try:
        return any(not path.name.startswith(".") for path in folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(
            f"{folder} cannot be used as a folder ({error.strerror}): choose another --output-dir"
        ) from error


def _remove(folder: Path, names: Collection[str]) -> None:
    for name in sorted(names):
        try:
            (folder / name).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise UserError(f"{folder / name} cannot be removed ({error.strerror}): {REMEDY}") from error
