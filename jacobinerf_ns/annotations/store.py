"""The annotation file: read, written whole or not at all, shared by several programs, with undo."""

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from jacobinerf_ns.annotations.changes import carry_over
from jacobinerf_ns.annotations.schema import VERSION, Annotations, Mask
from jacobinerf_ns.errors import UserError, plain_errors
from jacobinerf_ns.files.atomic import atomic_write
from jacobinerf_ns.files.index_maps import INDEX_MODES
from jacobinerf_ns.files.outside import MAX_PICTURE_BYTES, check_regular, file_below, open_picture, read_json

ANNOTATIONS_NAME = "annotations.json"
"""A run's own annotation file, beside its config.yml."""
HISTORY = 200
"""Changes that can be undone."""
LOCK_SECONDS = 10.0
"""How long a change waits for another program that is writing the same file."""
_POLL_SECONDS = 0.01
MASK_FOLDER = "masks"
"""Where index PNGs of mask seeds lie, beside the annotation file."""

_REMEDY = "repair it, or move it away to start anew (it is not overwritten)"

Change = Annotations | Callable[[Annotations], Annotations]
"""New annotations, or a function that makes them from those at hand."""


def read_annotations(path: Path) -> Annotations:
    """Return the annotations in a file; none when there is no such file.

    Raises:
        UserError: the file cannot be read, is damaged, comes from a newer version, or contradicts itself.
    """
    try:
        content = read_json(path, "an annotation file", _REMEDY)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Annotations()
        raise
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        raise UserError(f"{path} has no version, expected an annotation file of version {VERSION}: {_REMEDY}")
    if version > VERSION:
        raise UserError(
            f"{path} was made by a newer jacobinerf-ns: version {version}, expected at most {VERSION}: update this one"
        )
    with plain_errors(str(path)):
        return Annotations.model_validate(content)


def write_annotations(path: Path, annotations: Annotations) -> None:
    """Write the file whole, or leave it as it was; a link is followed.

    Raises:
        UserError: it cannot be written; the message names it.
    """
    try:
        with atomic_write(Path(os.path.realpath(path))) as temporary:
            temporary.write_text(annotations.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): {_remedy(error)}; what was there before is kept"
        ) from error


def foreign_mask(folder: Path, seed: Mask) -> Path:
    """Return the index PNG of a seed in a stranger's annotation file, which lies below the file's folder.

    Raises:
        UserError: it is missing, a link leads out of the folder, or it is no index PNG of the seed's size.
    """
    path = file_below(folder, seed.file)
    with open_picture(path, f"mask {path}", "expected an index PNG", formats=("PNG",)) as picture:
        if picture.mode not in INDEX_MODES or picture.size != (seed.width, seed.height):
            raise UserError(
                f"mask {path} is a {picture.mode} image of {picture.width}x{picture.height} pixels, expected an index "
                f"PNG of {seed.width}x{seed.height}"
            )
        picture.verify()
    return path


def adopt_mask(source: Path, folder: Path) -> str:
    """Copy an index PNG beside an annotation file, and return the name that a mask seed gives it.

    A file of the same content is used again; one of the same name and other content is never overwritten.

    Args:
        source: the PNG.
        folder: folder of the annotation file.

    Raises:
        UserError: `source` cannot be read, or the folder cannot be written.
    """
    try:
        check_regular(source, "an index PNG", MAX_PICTURE_BYTES)
        content = source.read_bytes()
    except OSError as error:
        raise UserError(f"mask {source} cannot be read ({error.strerror}): expected an index PNG") from error
    except UserError as error:
        raise UserError(f"mask {error}") from error
    target, number = folder / MASK_FOLDER / source.name, 1
    try:
        while target.exists() and target.read_bytes() != content:
            number += 1
            target = target.with_name(f"{source.stem}-{number}{source.suffix}")
        if not target.exists():
            with atomic_write(target) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror}): {_remedy(error)}") from error
    return target.relative_to(folder).as_posix()


class _Step(NamedTuple):
    """A change that can be made again: what leads from `old` to `new`."""

    old: Annotations
    new: Annotations


class AnnotationStore:
    """The annotations of a file, for the threads of a program, while other programs may change the file too.

    Everybody reads one immutable value. `problem` says what is wrong with the file when another program damaged it; the
    last good value stays in use. So it does where the whole folder has gone, and changes are then kept in memory.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, which need not exist.

        Raises:
            UserError: as of `read_annotations`.
        """
        self.path = Path(os.path.abspath(path))
        self.problem: str | None = None
        self._stamp = _stamp(self.path)
        self._current = read_annotations(self.path)
        self._revision = 0
        self._undo: deque[_Step] = deque(maxlen=HISTORY)
        self._redo: deque[_Step] = deque(maxlen=HISTORY)
        self._had_folder, self._away = self._place.parent.is_dir(), False
        self._deleted: Annotations | None = None
        """What was in the file before it was deleted: where a folder is removed, the file may go a moment before it."""
        self._filed: Annotations | None = None
        """What the file held before the changes that are only in memory; None where there are none."""
        # Readers must not wait for a writer that waits for another program: two locks.
        self._state, self._writing = threading.Lock(), threading.Lock()

    @property
    def folder(self) -> Path:
        """What the mask files of seeds are relative to."""
        return self.path.parent

    @property
    def unsaved(self) -> bool:
        """Whether there are changes that could not be written, since the folder has gone: `write_kept` tries again."""
        return self._filed is not None

    def snapshot(self) -> tuple[int, Annotations]:
        """Return (revision, annotations): the revision grows with every change: equal numbers, equal annotations.

        Costs one `stat`; the file is read again only when it has changed. Never raises because of the file.
        """
        with self._state:
            stamp = _stamp(self.path)
            if not self._has_gone(stamp) and not self.unsaved and (stamp != self._stamp or self._away):
                self._stamp, self._away = stamp, False
                self._deleted = self._current if stamp is None else None
                try:
                    self._adopt(read_annotations(self.path))
                except UserError as error:
                    self.problem = str(error)
            return self._revision, self._current

    def change(self, new: Change, base: Annotations | None = None, remember: bool = True) -> Annotations:
        """Make a change, write the file, and return what it holds now.

        Args:
            new: a function from the annotations in the file, just read, to the new ones; it must not change this store.
                Or new annotations: then what others changed since `base` stays.
            base: the snapshot that new annotations were made from; none is the last one. A function needs none.
            remember: whether `undo` takes it back; how things are looked at is no work to be lost.

        Raises:
            UserError: the file is damaged (it is left alone) or cannot be written, or the result is not valid. Not
                where the folder has gone that was there: then the change is kept in memory (`unsaved`).
        """
        with self._alone():
            seen = base or self._current
            before = self._read_again()
            after = new(before) if callable(new) else carry_over(before, seen, new)
            if after != before or self.unsaved:
                self._write(after)
            if after != before and remember:
                self._undo.append(_Step(after, before))
                self._redo.clear()
            return self._current

    def write_kept(self) -> bool:
        """Write what is only in memory, where the folder is back or can be made; return whether that was done.

        Never raises because of the file: `problem` says why it cannot be.
        """
        if not self.unsaved:
            return False
        try:
            self.change(lambda annotations: annotations)
        except UserError as error:
            self.problem = str(error)
        return not self.unsaved

    def undo(self) -> bool:
        """Take back the last change made here, and no other program's; False when there is none left.

        Raises:
            UserError: as of `change`, or what others added does not go without it.
        """
        return self._replay(self._undo, self._redo)

    def redo(self) -> bool:
        """Make the change again that was undone last; False when there is none.

        Raises:
            UserError: as of `undo`.
        """
        return self._replay(self._redo, self._undo)

    def _replay(self, source: deque[_Step], target: deque[_Step]) -> bool:
        with self._alone():
            while source:
                step, before = source[-1], self._read_again()
                after = carry_over(before, step.old, step.new)
                if after != before:
                    self._write(after)
                # What has gone from the file otherwise is no step that anybody would see.
                source.pop()
                if after != before:
                    target.append(_Step(step.new, step.old))
                    return True
            return False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and programs from changing the file meanwhile."""
        with self._writing:
            place = self._place
            with self._state:
                out_of_reach = self._has_gone(_stamp(self.path)) and not _is_there_again(place.parent)
            with nullcontext() if out_of_reach else _locked(place):
                yield

    @property
    def _place(self) -> Path:
        """Where the file really lies, if its path is a link."""
        return Path(os.path.realpath(self.path))

    def _has_gone(self, stamp: object) -> bool:
        """Whether the file went together with its folder, which nobody does to begin anew; under the state's lock."""
        self._had_folder = self._had_folder or stamp is not None
        if stamp is None and self._had_folder and not self._away and not self._place.parent.is_dir():
            self._away = True
            if self._deleted is not None:
                self._adopt(self._deleted)
            self.problem = (
                f"{self.folder} has gone (removed or renamed), with {self.path.name}; its labels are kept in memory: "
                "put the folder back, or go on, and the next change makes it anew and writes them there"
            )
        return self._away and stamp is None

    def _read_again(self) -> Annotations:
        if self._away and _stamp(self.path) is None:
            return self._current
        fresh = read_annotations(self.path)
        with self._state:
            if self._filed is not None:
                fresh = carry_over(fresh, self._filed, self._current)
            self._adopt(fresh)
        return fresh

    def _write(self, annotations: Annotations) -> None:
        with plain_errors():
            # Models can be put together without their checks; a file that cannot be read back must never be written.
            checked = Annotations.model_validate_json(annotations.model_dump_json())
        if self._away and not self._place.parent.is_dir():
            self._keep(checked)
            return
        write_annotations(self.path, checked)
        with self._state:
            self._stamp = _stamp(self.path)
            self._had_folder, self._away, self._deleted, self._filed = True, False, None, None
            self._adopt(checked)

    def _keep(self, annotations: Annotations) -> None:
        with self._state:
            if self._filed is None:
                self._filed = self._current
            self._adopt(annotations)
            self.problem = (
                f"cannot write {self.path}: its folder has gone (removed or renamed) and cannot be made anew; what you "
                "label is kept in memory only: put the folder back, or make the one that it was in, before you close"
            )

    def _adopt(self, annotations: Annotations) -> None:
        self.problem = None
        if annotations != self._current:
            self._current = annotations
            self._revision += 1


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with the file's content: time, size and, since files are replaced whole, the inode."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _is_there_again(folder: Path) -> bool:
    """Whether a folder that had gone is back, or could be made.

    Only within what is there: where a disk is no longer mounted, files would be hidden below it when it comes back.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other programs from changing `path`; where files cannot be locked, go on without.

    The lock is a file of its own, since the annotation file is replaced by every change.
    """
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place, timeout=LOCK_SECONDS, poll_interval=_POLL_SECONDS, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{path} has been locked by another program for {LOCK_SECONDS:g} seconds: end it, and try again"
        ) from None
    except OSError:
        # A file system without locks; or a folder that cannot be written, and writing the file itself will say so.
        pass
    try:
        yield
    finally:
        lock.release()


def _remedy(error: OSError) -> str:
    return "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make the folder writable"
