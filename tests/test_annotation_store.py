"""The annotation file: never damaged, never overwritten, shared by threads and programs."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_annotations import click, every_kind, two_labels

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations import store as annotation_store
from jacobinerf_ns.annotations.schema import Annotations, Click, Label
from jacobinerf_ns.annotations.store import HISTORY, AnnotationStore, adopt_mask, read_annotations, write_annotations
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files import atomic as files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.json"


def add_click(x: int):
    return lambda annotations: changes.add_seed(annotations, click(1, x % 24, x // 24))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_is_written_is_read(path: Path):
    write_annotations(path, every_kind())
    assert read_annotations(path) == every_kind()
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{\n "version": 2,\n "labels": [')
    assert text.endswith("}\n")
    named = changes.rename_label(every_kind(), 1, "Stühle ☺")
    write_annotations(path, named)
    assert "Stühle ☺" in path.read_text(encoding="utf-8")
    assert read_annotations(path) == named
    assert names(path.parent) == ["annotations.json"]


def test_no_file_is_no_annotations(path: Path):
    assert read_annotations(path.parent / "nowhere" / "annotations.json") == Annotations()
    assert AnnotationStore(path).snapshot() == (0, Annotations())
    assert names(path.parent) == []


DAMAGED = [
    ("", "is not valid JSON"),
    ('{"version": 1, "labels": [', "is not valid JSON"),
    ("[" * 100_000, "is not valid JSON"),
    ("[]", "has no version, expected an annotation file of version 2"),
    ("{}", "has no version"),
    ('{"version": "1"}', "has no version"),
    ('{"version": 3, "seeds": "whatever"}', "made by a newer jacobinerf-ns: version 3, expected at most 2: update"),
    ('{"version": 1, "labels": [{"id": 1, "name": "a", "colour": [0, 0]}]}', r"labels\[0\]\.colour\[2\]"),
    ('{"version": 1, "frames": []}', "frames: unknown entry"),
]


@pytest.mark.parametrize(("text", "message"), DAMAGED)
def test_a_damaged_file_is_one_line_and_is_never_overwritten(path: Path, text: str, message: str):
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        AnnotationStore(path)
    path.unlink()
    store = AnnotationStore(path)
    store.change(two_labels())
    path.write_text(text)
    for act in (lambda: store.change(add_click(1)), lambda: store.change(Annotations()), store.undo):
        with pytest.raises(UserError, match=message):
            act()
        assert path.read_text() == text
    assert store.snapshot()[1] == two_labels()


def test_what_is_no_text_is_damaged_too(path: Path):
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_annotations(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_annotations(path)


def test_a_damaged_change_keeps_the_last_good_one_until_it_is_repaired(path: Path):
    store = AnnotationStore(path)
    store.change(two_labels())
    before = store.snapshot()
    path.write_text("{")
    assert store.snapshot() == before
    assert store.problem is not None
    assert "is not valid JSON" in store.problem
    write_annotations(path, every_kind())
    revision, annotations = store.snapshot()
    assert (revision, annotations) == (before[0] + 1, every_kind())
    assert store.problem is None


def test_snapshots_see_other_programs_and_read_only_what_changed(path: Path, monkeypatch):
    reads = []
    original = annotation_store.read_annotations
    monkeypatch.setattr(annotation_store, "read_annotations", lambda path: reads.append(path) or original(path))
    store, other = AnnotationStore(path), AnnotationStore(path)
    other.change(two_labels())
    reads.clear()
    assert [store.snapshot() for _ in range(5)] == [(1, two_labels())] * 5
    assert len(reads) == 1
    # The same content written again is no change.
    write_annotations(path, two_labels())
    assert store.snapshot() == (1, two_labels())
    path.unlink()
    assert store.snapshot() == (2, Annotations())


def test_revisions_grow_with_changes_only(path: Path):
    store = AnnotationStore(path)
    assert store.change(two_labels()) == two_labels()
    assert store.change(lambda annotations: annotations) == two_labels()
    assert store.snapshot()[0] == 1
    store.change(add_click(9))
    assert store.snapshot() == (2, add_click(9)(two_labels()))
    assert read_annotations(path) == store.snapshot()[1]


def test_undo_and_redo(path: Path):
    store = AnnotationStore(path)
    assert not store.undo()
    assert not store.redo()
    store.change(two_labels())
    states = [store.snapshot()[1], *(store.change(add_click(x)) for x in range(3))]
    for state in reversed(states[:-1]):
        assert store.undo()
        assert store.snapshot()[1] == read_annotations(path) == state
    for state in states[1:]:
        assert store.redo()
        assert store.snapshot()[1] == read_annotations(path) == state
    assert not store.redo()
    store.undo()
    store.change(add_click(7))
    assert not store.redo()
    while store.undo():
        pass
    assert read_annotations(path) == Annotations()


def test_the_history_is_bounded(path: Path, monkeypatch):
    assert HISTORY == 200
    monkeypatch.setattr(annotation_store, "HISTORY", 4)
    store = AnnotationStore(path)
    store.change(two_labels())
    for x in range(4 + 3):
        store.change(add_click(x))
    assert [store.undo() for _ in range(5)] == [True] * 4 + [False]
    assert len(store.snapshot()[1].seeds) == 2 + 3


def test_undo_leaves_what_another_program_did(path: Path):
    store, other = AnnotationStore(path), AnnotationStore(path)
    store.change(two_labels())
    store.change(add_click(1))
    other.change(add_click(2))
    assert store.undo()
    assert store.snapshot()[1] == read_annotations(path) == add_click(2)(two_labels())
    assert store.redo()
    assert set(read_annotations(path).seeds) == set(add_click(1)(add_click(2)(two_labels())).seeds)
    assert other.undo()
    assert read_annotations(path) == add_click(1)(two_labels())


def test_undo_that_would_orphan_anothers_seed_is_refused(path: Path):
    store, other = AnnotationStore(path), AnnotationStore(path)
    store.change(lambda annotations: changes.add_label(annotations, "chair")[0])
    other.change(add_click(2))
    with pytest.raises(UserError, match="names label 1"):
        store.undo()
    assert read_annotations(path).seeds == (click(1, 2, 0),)
    other.undo()
    assert store.undo()
    assert read_annotations(path) == Annotations()


def test_annotations_made_from_a_snapshot_keep_what_came_in_between(path: Path):
    store, other = AnnotationStore(path), AnnotationStore(path)
    store.change(two_labels())
    base = store.snapshot()[1]
    ours = add_click(1)(base)
    other.change(add_click(2))
    assert store.change(ours).seeds == (*ours.seeds[:2], click(1, 1, 0), click(1, 2, 0))
    other.change(add_click(3))
    # Another thread may have taken a snapshot since.
    store.snapshot()
    assert click(1, 3, 0) in store.change(changes.select(ours, 2), base=ours).seeds


def test_a_failing_change_changes_nothing(path: Path):
    store = AnnotationStore(path)
    store.change(two_labels())
    with pytest.raises(UserError, match="two labels have the name chair"):
        store.change(lambda annotations: changes.add_label(annotations, "chair")[0])
    with pytest.raises(UserError, match="two labels have the id 4"):
        # Put together without checks.
        store.change(
            lambda annotations: annotations.model_copy(
                update={"labels": tuple(Label(id=4, name=name, colour=(0, 0, 0)) for name in "ab"), "seeds": ()}
            )
        )
    assert read_annotations(path) == two_labels() == store.snapshot()[1]
    store.change(add_click(1))
    store.undo()
    assert store.snapshot()[1] == two_labels()


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "make the folder writable")]
)
@pytest.mark.parametrize("call", ["mkstemp", "fsync", "replace"])
def test_a_full_disk_or_read_only_folder_leaves_the_old_file_whole(path: Path, monkeypatch, number, remedy, call):
    store = AnnotationStore(path)
    store.change(two_labels())
    text, revision = path.read_text(), store.snapshot()[0]

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile if call == "mkstemp" else files.os, call, fail)
        for act in (lambda: store.change(add_click(1)), store.undo, lambda: write_annotations(path, Annotations())):
            with pytest.raises(UserError, match=remedy) as caught:
                act()
            assert str(path) in str(caught.value)
            assert os.strerror(number) in str(caught.value)
    assert path.read_text() == text
    assert names(path.parent) == [".annotations.json.lock", "annotations.json"]
    assert store.snapshot() == (revision, two_labels())
    store.change(add_click(1))
    assert store.undo()
    assert store.undo()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder(path: Path):
    store = AnnotationStore(path)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(UserError, match="make the folder writable"):
            store.change(two_labels())
    finally:
        path.parent.chmod(0o700)


def test_a_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*annotations\.json"):
        write_annotations(tmp_path / "file" / "annotations.json", Annotations())


def test_a_link_is_followed(tmp_path: Path):
    target, link = tmp_path / "shared" / "a.json", tmp_path / "run" / "annotations.json"
    link.parent.mkdir()
    link.symlink_to(target)
    store = AnnotationStore(link)
    store.change(two_labels())
    assert link.is_symlink()
    assert read_annotations(target) == store.snapshot()[1] == two_labels()


def test_file_systems_without_locks_work(path: Path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*args):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert AnnotationStore(path).change(two_labels()) == two_labels()


def test_a_program_that_keeps_the_lock_is_named(path: Path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(annotation_store, "LOCK_SECONDS", 0.05)
    store = AnnotationStore(path)
    with (path.parent / ".annotations.json.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"locked by another program for 0\.05 seconds"):
            store.change(two_labels())
        # Readers do not wait.
        assert store.snapshot() == (0, Annotations())
    assert store.change(two_labels()) == two_labels()


@pytest.fixture
def away(tmp_path: Path) -> AnnotationStore:
    """The store of a run whose folder has been removed, with the folder that it was in: it cannot be made anew."""
    store = AnnotationStore(tmp_path / "outputs" / "run" / "annotations.json")
    store.change(two_labels())
    (tmp_path / "outputs").rename(tmp_path / "elsewhere")
    return store


def test_a_folder_that_has_gone_takes_no_labels_with_it(away: AnnotationStore):
    before = away.snapshot()
    assert before == (1, two_labels())
    assert away.problem is not None
    assert f"{away.folder} has gone" in away.problem
    assert "put the folder back" in away.problem
    assert not away.unsaved  # nothing was changed: nobody wants a folder back that they have removed
    assert not away.write_kept()
    away.folder.parent.parent.joinpath("elsewhere").rename(away.folder.parent)
    assert away.snapshot() == before
    assert away.problem is None


def test_changes_are_kept_until_the_folder_is_back(away: AnnotationStore):
    assert away.change(add_click(1)) == add_click(1)(two_labels())
    away.change(add_click(2))
    assert away.undo()
    assert away.snapshot()[1] == add_click(1)(two_labels())
    assert away.unsaved
    assert not away.write_kept()
    assert away.problem is not None
    assert f"cannot write {away.path}" in away.problem
    assert "kept in memory only" in away.problem
    assert not away.folder.parent.exists()
    elsewhere = away.folder.parent.with_name("elsewhere")
    other = AnnotationStore(elsewhere / "run" / "annotations.json")
    other.change(add_click(3))
    elsewhere.rename(away.folder.parent)
    assert away.snapshot()[1] == add_click(1)(two_labels())  # until both are joined
    assert away.write_kept()
    assert away.problem is None
    seeds = read_annotations(away.path).seeds
    assert set(seeds) == set(add_click(1)(add_click(3)(two_labels())).seeds)
    assert away.snapshot()[1].seeds == seeds
    assert not away.write_kept()
    assert away.undo()
    assert read_annotations(away.path) == add_click(3)(two_labels())


def test_changes_are_written_as_soon_as_the_folder_can_be_made(away: AnnotationStore):
    away.change(add_click(1))
    away.folder.parent.mkdir()
    assert away.write_kept()
    assert read_annotations(away.path) == add_click(1)(two_labels())
    away.change(add_click(2))
    shutil.rmtree(away.folder)
    away.change(add_click(3))
    assert not away.unsaved
    assert away.problem is None
    assert read_annotations(away.path) == add_click(3)(add_click(2)(add_click(1)(two_labels())))


def test_a_file_that_goes_a_moment_before_its_folder_has_not_been_emptied(tmp_path: Path):
    store = AnnotationStore(tmp_path / "run" / "annotations.json")
    store.change(two_labels())
    store.path.unlink()
    assert store.snapshot() == (2, Annotations())  # somebody may want to begin anew
    shutil.rmtree(store.folder)
    assert store.snapshot() == (3, two_labels())
    # A folder of that name, as of a training that begins anew: what was promised to be kept is kept.
    store.folder.mkdir()
    assert store.change(add_click(1)) == read_annotations(store.path) == add_click(1)(two_labels())


def test_what_came_back_and_does_not_fit_is_said_and_nothing_is_lost(away: AnnotationStore):
    away.change(add_click(1))
    away.folder.mkdir(parents=True)
    write_annotations(away.path, Annotations())  # the label of the new click has gone from it
    assert not away.write_kept()
    assert away.problem is not None
    assert "names label 1" in away.problem
    assert read_annotations(away.path) == Annotations()
    assert away.snapshot()[1] == add_click(1)(two_labels())
    away.path.write_text("{")
    assert not away.write_kept()
    assert "is not valid JSON" in away.problem
    away.path.unlink()
    assert away.write_kept()
    assert read_annotations(away.path) == add_click(1)(two_labels())


WRITER = """
import sys
from pathlib import Path
from jacobinerf_ns.annotations.changes import add_seed
from jacobinerf_ns.annotations.store import AnnotationStore
from jacobinerf_ns.annotations.schema import Click
store = AnnotationStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for x in range(25):
    seed = Click(label=1, image="0003.png", width=100, height=100, pixel=(x, int(sys.argv[2])))
    store.change(lambda annotations: add_seed(annotations, seed))
"""


def test_two_programs_and_two_threads_lose_nothing(path: Path):
    store = AnnotationStore(path)
    store.change(two_labels())
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, str(row)], **pipes) for row in (50, 51)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    threads = [
        threading.Thread(target=lambda row=row: [store.change(add_click(24 * row + x)) for x in range(20)])
        for row in (10, 11)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for thread in threads:
        thread.start()
    seen = [store.snapshot() for _ in range(50)]
    for thread in threads:
        thread.join()
    for writer in writers:
        assert writer.communicate()[1] is None
        assert writer.returncode == 0
    pixels = {seed.pixel for seed in read_annotations(path).seeds[2:] if isinstance(seed, Click)}
    assert pixels == {(x, y) for y in (50, 51) for x in range(25)} | {(x, y) for y in (10, 11) for x in range(20)}
    assert [revision for revision, _ in seen] == sorted(revision for revision, _ in seen)
    assert store.snapshot()[1] == read_annotations(path)
    assert json.loads(path.read_text())["version"] == 2


def test_masks_are_copied_beside_the_file_and_never_overwritten(tmp_path: Path, monkeypatch):
    folder, source = tmp_path / "run", tmp_path / "a.png"
    source.write_bytes(b"one")
    assert adopt_mask(source, folder) == "masks/a.png"
    assert adopt_mask(source, folder) == "masks/a.png"
    source.write_bytes(b"two")
    assert adopt_mask(source, folder) == "masks/a-2.png"
    source.write_bytes(b"three")
    assert adopt_mask(source, folder) == "masks/a-3.png"
    assert adopt_mask(folder / "masks" / "a-2.png", folder) == "masks/a-2.png"
    assert [entry.read_bytes() for entry in sorted((folder / "masks").iterdir())] == [b"two", b"three", b"one"]
    with pytest.raises(UserError, match=r"mask .*b\.png cannot be read"):
        adopt_mask(tmp_path / "b.png", folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        adopt_mask(source, tmp_path / "file")
