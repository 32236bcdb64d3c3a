"""Index PNGs and class names: formats, sizes, resampling at pixel centres, and one clear line for each bad file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.index_maps import read_classes, read_label_map

IDS = np.arange(24, dtype=np.uint8).reshape(4, 6)


def _save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    if mode == "P":
        image = Image.frombytes("P", (array.shape[1], array.shape[0]), array.tobytes())
        # The palette is the reverse of the indices: reading colours instead of indices would show.
        image.putpalette([channel for index in range(256) for channel in (255 - index,) * 3])
    elif mode is not None:
        image = image.convert(mode)
    image.save(path)
    return path


@pytest.mark.parametrize(
    ("array", "mode"),
    [(IDS, None), (IDS, "P"), (IDS.astype(np.uint16) + 1000, None), (IDS.astype(np.int32) + 300, None)],
    ids=["L", "P", "I;16", "I"],
)
def test_index_images_keep_their_ids(tmp_path: Path, array: np.ndarray, mode: str | None) -> None:
    name = "ids.tiff" if array.dtype == np.int32 else "ids.png"  # Pillow has no 32-bit PNG.
    ids = read_label_map(_save(tmp_path / name, array, mode), (4, 6))
    assert ids.dtype == torch.int64
    assert ids.tolist() == array.astype(int).tolist()


def test_downscaling_takes_the_id_under_the_pixel_centre(tmp_path: Path) -> None:
    path = _save(tmp_path / "ids.png", np.arange(7 * 10, dtype=np.uint8).reshape(7, 10))
    # Factor 3 leaves 2x3 pixels whose centres lie in rows 1, 4 and columns 1, 4, 7; row 6 and column 9 are left over.
    assert read_label_map(path, (2, 3), (7, 10)).tolist() == [[11, 14, 17], [41, 44, 47]]
    # No whole factor: centres of 3 pixels over 7 rows are 1.17, 3.5, 5.83.
    assert read_label_map(path, (3, 10), (7, 10))[:, 0].tolist() == [10, 30, 50]


def test_upscaled_training_images_repeat_ids(tmp_path: Path) -> None:
    path = _save(tmp_path / "ids.png", np.array([[1, 2]], dtype=np.uint8))
    assert read_label_map(path, (2, 4), (1, 2)).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_another_size_is_one_line_with_both_sizes(tmp_path: Path) -> None:
    path = _save(tmp_path / "ids.png", IDS)
    with pytest.raises(UserError, match=r"ids\.png is 6x4 pixels .*expected 3x3 or 12x8 \(not downscaled\)") as caught:
        read_label_map(path, (3, 3), (8, 12))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="expected 3x2:"):
        read_label_map(path, (2, 3))


def test_colour_image_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "ids.png", IDS, "RGB")
    with pytest.raises(UserError, match=r"ids\.png is a RGB image, expected one 8- or 16-bit index per pixel"):
        read_label_map(path, (4, 6))


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = _save(tmp_path / "ids.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"ids\.png cannot be read"):
        read_label_map(path, (64, 64))
    path.write_text("no image")
    with pytest.raises(UserError, match=r"ids\.png cannot be read"):
        read_label_map(path, (64, 64))
    with pytest.raises(UserError, match=r"other\.png is missing"):
        read_label_map(tmp_path / "other.png", (64, 64))


def test_classes_without_void(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    entries = [{"id": 0, "name": "void"}, {"id": 2, "name": "floor", "color": [1, 2, 3]}, {"id": 1, "name": "wall"}]
    path.write_text(json.dumps({"void_id": 0, "classes": entries, "instances": []}))
    assert read_classes(path) == {2: "floor", 1: "wall"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "found something else"),
        ('{"classes": [{"id": "1", "name": "wall"}]}', "found something else"),
        ('{"classes": [{"id": 1}]}', "found something else"),
        ('{"void_id": 255, "classes": []}', "void_id is 255, expected 0"),
        ('{"classes": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "a class id occurs twice"),
    ],
)
def test_bad_classes_are_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_classes(path)
    assert "classes.json" in str(caught.value)
    assert "\n" not in str(caught.value)
