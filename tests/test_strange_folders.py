"""Output folders that hold links or a data set's own files: nothing outside, and no original, is written or removed."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.resumable import VERSION, claim_folder
from jacobinerf_ns.run.photos import Photo, check_capture_is_safe

REPLICA = ("rgb/rgb_0.png", ("depth", "semantic_class", "semantic_instance", "rgb"))
SCANNET = ("color/0.jpg", ("depth", "pose", "intrinsic", "label-filt", "instance-filt", "color"))


def photo(path: Path) -> Photo:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"photo")
    return Photo(path.name, path, path, (1, 1), cast(Any, None), ())


@pytest.mark.parametrize(
    ("name", "inner"), [(name, inner) for name, folders in (REPLICA, SCANNET) for inner in folders]
)
def test_originals_of_replica_and_scannet_are_no_output_folder(tmp_path: Path, name: str, inner: str) -> None:
    """Label maps of ScanNet are named 0.png, and so are the masks that would be written over them."""
    photos = [photo(tmp_path / "scene" / name)]
    folder = tmp_path / "scene" / inner
    folder.mkdir(exist_ok=True)
    for place in (folder, folder / "masks"):
        with pytest.raises(UserError, match="the capture's own files: choose another --output-dir"):
            check_capture_is_safe(place, [place / "0.png"], photos)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(UserError, match="choose another --output-dir"):
        check_capture_is_safe(link, [link / "0.png"], photos)
    check_capture_is_safe(tmp_path / "masks", [tmp_path / "masks" / "0.png"], photos)
    check_capture_is_safe(tmp_path / "scene" / "masks", [tmp_path / "scene" / "masks" / "0.png"], photos)


def claim(folder: Path, *files: str, overwrite: bool = False) -> None:
    claim_folder(folder / "propagation.json", {"key": 1}, files, {"key": "another key"}, overwrite)


def _manifest(folder: Path, **content: Any) -> None:
    folder.mkdir(exist_ok=True)
    whole = {"version": VERSION, "made_of": {"key": 2}, "files": [], **content}
    (folder / "propagation.json").write_text(json.dumps(whole))


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.png").write_bytes(b"mine")
    _manifest(folder, files=["inner/mine.png"])
    (folder / "inner").symlink_to(elsewhere)
    for files, overwrite in (((), True), (("inner/mine.png",), True), (("inner/new.png",), False)):
        with pytest.raises(UserError, match=r"inner is a link out of .*out"):
            claim(folder, *files, overwrite=overwrite)
    assert [path.name for path in elsewhere.iterdir()] == ["mine.png"]
    assert (elsewhere / "mine.png").read_bytes() == b"mine"


def test_a_file_that_is_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    folder, other = tmp_path / "out", tmp_path / "other.png"
    other.write_bytes(b"mine")
    _manifest(folder, files=["a.png"])
    (folder / "a.png").symlink_to(other)
    claim(folder, "a.png", overwrite=True)
    assert other.read_bytes() == b"mine"
    assert not (folder / "a.png").is_symlink()


def test_a_folder_that_is_a_link_itself_is_as_good_as_another(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    claim(tmp_path / "out", "a.png", "inner/b.png")
    assert (tmp_path / "disk" / "propagation.json").is_file()


STRANGE: dict[str, Callable[[Path], object]] = {
    "a name outside": lambda folder: _manifest(folder, files=["../precious.txt"]),
    "an absolute name": lambda folder: _manifest(folder, files=[str(folder.parent / "precious.txt")]),
    "a name that is a number": lambda folder: _manifest(folder, files=[5]),
    "the folder itself": lambda folder: _manifest(folder, files=["."]),
    "a name without end": lambda folder: _manifest(folder, files=["a" * 5_000]),
    "files that are no list": lambda folder: _manifest(folder, files={"a": 1}),
    "another version": lambda folder: _manifest(folder, version=99),
    "nested": lambda folder: _text(folder, "[" * 100_000),
    "NUL": lambda folder: _text(folder, '{"version": 1, "made_of": {}, "files": ["a\\u0000b"]}'),
    "no text": lambda folder: _text(folder, "\udcff"),
    "a folder": lambda folder: (folder / "propagation.json").mkdir(parents=True),
}


def _text(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "propagation.json").write_text(text, errors="surrogateescape")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("case", STRANGE)
def test_manifests_of_strangers(tmp_path: Path, case: str, overwrite: bool) -> None:
    """Refused; or, where their result is to be replaced, taken for none: and nothing but our own files is removed."""
    (tmp_path / "precious.txt").write_text("precious")
    STRANGE[case](tmp_path / "out")
    if overwrite:
        with suppress(UserError):
            claim(tmp_path / "out", "a.png", overwrite=True)
    else:
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            claim(tmp_path / "out", "a.png")
    assert (tmp_path / "precious.txt").read_text() == "precious"
