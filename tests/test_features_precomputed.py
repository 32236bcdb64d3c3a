"""Arrays of one's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.cache import extract_all, frame_key
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig, PrecomputedExtractor
from jacobinerf_ns.features.words import canonical, text_teacher


def frames(*stems: str) -> list[Frame]:
    """Frames whose images are never opened."""
    return [Frame(i, Path(f"images/{stem}.png"), (8, 8)) for i, stem in enumerate(stems)]


def reader(folder: Path, **settings) -> PrecomputedExtractor:
    """An extractor for a folder."""
    return PrecomputedConfig(folder=folder, **settings).setup()


def test_arrays_of_either_kind_and_layout(tmp_path: Path):
    values = torch.randn(3, 5, 7)
    np.save(tmp_path / "a.npy", values.numpy())
    save_file({"features": values, "other": torch.zeros(1)}, tmp_path / "b.safetensors")
    save_file({"anything": values.half()}, tmp_path / "c.safetensors")
    extractor = reader(tmp_path)
    extractor.check(frames("a", "b", "c"))
    for frame in frames("a", "b", "c"):
        grid = extractor.extract(frame)
        torch.testing.assert_close(grid.values, values, atol=2e-3, rtol=1e-3)
        assert grid.origin == pytest.approx((1 / 6, 1 / 10))
        assert grid.step == pytest.approx((1 / 3, 1 / 5))
    turned = reader(tmp_path, layout="dim-rows-cols").extract(frames("a")[0])
    torch.testing.assert_close(turned.values, values.permute(1, 2, 0))


def test_missing_features_are_counted_and_the_first_is_named(tmp_path: Path):
    np.save(tmp_path / "b.npy", np.zeros((2, 2, 2)))
    with pytest.raises(UserError, match=r"lacks features for 2 of 3 images \(first: a\.npy or \.safetensors\)"):
        reader(tmp_path).check(frames("a", "b", "c"))
    with pytest.raises(UserError, match=r"feature folder .*gone does not exist"):
        reader(tmp_path / "gone").check(frames("a"))


def test_two_images_of_one_name_are_refused(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros((2, 2, 2)))
    with pytest.raises(UserError, match="2 images are named a"):
        reader(tmp_path).check(frames("a", "a"))


def test_unusable_files_are_named(tmp_path: Path):
    np.save(tmp_path / "flat.npy", np.zeros((2, 2)))
    np.save(tmp_path / "words.npy", np.array([[["x"]]]))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    save_file({"p": torch.zeros(1), "q": torch.zeros(1)}, tmp_path / "two.safetensors")
    expected = {
        "flat": r"shape \(2, 2\), expected rows-cols-dim",
        "words": "holds <U1, expected real numbers",
        "objects": "is not a plain array",
        "empty": "is not a plain array",
        "cut": "is damaged",
        "two": r"holds 2 tensors \(p, q\)",
    }
    for stem, message in expected.items():
        with pytest.raises(UserError, match=message) as caught:
            reader(tmp_path).extract(frames(stem)[0])
        assert str(tmp_path / stem) in str(caught.value)


def test_features_that_are_not_finite_name_the_array(tmp_path: Path):
    values = np.zeros((2, 2, 2))
    values[0, 1, 0] = np.nan
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UserError, match=r"the features of .*a\.npy are not all finite"):
        extract_all(reader(tmp_path), frames("a"), tmp_path / "cache")
    np.save(tmp_path / "a.npy", np.full((2, 2, 2), 1e6))
    with pytest.raises(UserError, match=r"the features of .*a\.npy reach 1e\+06, and half precision ends at 65504"):
        extract_all(reader(tmp_path), frames("a"), tmp_path / "cache")


def test_the_array_is_what_counts_and_not_where_it_lies(tmp_path: Path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.ones((2, 2, 2)))
    here, there = reader(tmp_path / "here"), reader(tmp_path / "there")
    frame = frames("a")[0]
    assert (here.fingerprint(), frame_key(here, frame)) == (there.fingerprint(), frame_key(there, frame))
    np.save(tmp_path / "there" / "a.npy", np.zeros((2, 2, 2)))
    assert frame_key(here, frame) != frame_key(there, frame)
    assert reader(tmp_path / "here", layout="dim-rows-cols").fingerprint() != here.fingerprint()


def texts(folder: Path, rows: np.ndarray, names: str | None, suffix: str = ".txt") -> PrecomputedExtractor:
    """A reader with text embeddings."""
    np.save(folder / "words.npy", rows)
    if names is not None:
        (folder / f"words{suffix}").write_text(names)
    return reader(folder, texts=folder / "words.npy")


@pytest.mark.parametrize(("names", "suffix"), [("Chair\nwall \n\n", ".txt"), ('["Chair", "wall"]', ".json")])
def test_words_are_rows_of_a_table(tmp_path: Path, names: str, suffix: str):
    teacher = text_teacher(texts(tmp_path, np.array([[3, 4, 0], [0, 0, 2]]), names, suffix))
    found = teacher.encode(["WALL", " chair"])
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 1.0], [0.6, 0.8, 0.0]]))
    assert teacher.known_words() == canonical(teacher) == ("chair", "wall")
    assert teacher.fingerprint() == reader(tmp_path).fingerprint()


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (np.eye(3), "a\nb\n", "has 3 rows and 2 names beside it"),
        (np.eye(2), "a\nA\n", "two rows named 'a'"),
        (np.eye(2), None, r"has no names: put words\.txt beside it"),
        (np.ones(2), "a\nb", "expected finite numbers, one row per name"),
        (np.full((2, 2), np.nan), "a\nb", "expected finite numbers, one row per name"),
        (np.eye(2), "chair\nwall", "'hair' is not among the 2 text embeddings: use one of their names, such as chair"),
    ],
)
def test_tables_that_cannot_be_used_are_one_line(tmp_path: Path, rows: np.ndarray, names: str | None, message: str):
    with pytest.raises(UserError, match=message):
        texts(tmp_path, rows, names).encode(["hair"])


def test_teachers_without_words_say_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match=r"come without text embeddings: give precomputed --texts FILE\.npy"):
        reader(tmp_path).encode(["chair"])
    with pytest.raises(UserError, match=r"gone\.npy does not exist"):
        reader(tmp_path, texts=tmp_path / "gone.npy").encode(["chair"])
    with pytest.raises(UserError, match="knows no words: name one that does at the end of the command"):
        text_teacher(HandcraftedConfig().setup())
