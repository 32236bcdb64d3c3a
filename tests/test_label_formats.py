"""Label files: names, matching, what is never overwritten; index PNGs and LabelMe files, written and read."""

import base64
import errno
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jacobinerf_ns.annotations.formats.base import FileLabel, ImageNames, inner_box, inside_pixel, label_file_names
from jacobinerf_ns.annotations.formats.labelme import read_labelme, write_labelme
from jacobinerf_ns.annotations.formats.png import (
    palette_colours,
    parse_colour,
    read_legend,
    write_index_png,
    write_legend,
)
from jacobinerf_ns.annotations.formats.registry import FORMATS, load_format
from jacobinerf_ns.annotations.schema import Label
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files import atomic
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.index_maps import read_classes, read_label_map

CHAIR = Label(id=2, name="chair", colour=(230, 159, 0))
WALL = Label(id=255, name="Wand ä", colour=(1, 2, 3))
FAR = Label(id=65535, name="far", colour=(9, 8, 7))
IDS = np.array([[0, 2, 2], [255, 0, 2]])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["images/0003.jpg", "images/0004.jpg"], ["0003.png", "0004.png"]),
        (["a/1.jpg", "b/1.jpg", "b/2.jpg"], ["a/1.png", "b/1.png", "2.png"]),
        (["x/a/1.jpg", "y/a/1.jpg"], ["x/a/1.png", "y/a/1.png"]),
        (["/data/a/1.jpg", "../b/1.jpg"], ["a/1.png", "b/1.png"]),
        (["1.jpg", "1.png", "2.jpg"], ["1.jpg.png", "1.png.png", "2.png"]),
        (["A.jpg", "b/a.jpg"], ["A.png", "b/a.png"]),
        ([], []),
    ],
)
def test_label_files_are_named_as_the_photos_are(names: list[str], expected: list[str]) -> None:
    assert label_file_names(names, ".png") == expected


@pytest.mark.parametrize("names", [["1.jpg", "1.png", "1.JPG.jpg"], ["1.jpg", "1.jpg"]])
def test_photos_that_cannot_be_told_apart(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"2 photos would have the label file 1\.jpg\.png"):
        label_file_names(names, ".png")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0001.jpg", "0001.jpg"),
        ("/home/me/capture/images/0001.jpg", "0001.jpg"),
        ("..\\images\\0001.jpg", "0001.jpg"),
        ("0001.png", "0001.jpg"),
        ("left/7.jpg", "left/7.jpg"),
        ("C:/x/right/7.jpg", "right/7.jpg"),
    ],
)
def test_images_are_found_by_the_end_of_their_path(name: str, expected: str) -> None:
    names = ImageNames(["0001.jpg", "0002.jpg", "left/7.jpg", "right/7.jpg"])
    assert names.match(name, Path("x.json")) == expected


def test_label_file_stems_may_have_dots() -> None:
    names = ImageNames(["frame.0001.jpg", "frame.0002.jpg", "1.jpg", "1.png"])
    assert names.match("frame.0002", Path("x"), without_suffix=True) == "frame.0002.jpg"
    assert names.match("1.png", Path("x"), without_suffix=True) == "1.png"


def test_unknown_and_doubtful_images_are_named() -> None:
    names = ImageNames(["frame_001.jpg", "left/7.jpg", "right/7.jpg"])
    with pytest.raises(UserError, match=r"x\.json: the capture has no image frame_01\.jpg .*closest is frame_001\.jpg"):
        names.match("frame_01.jpg", Path("x.json"))
    with pytest.raises(UserError, match=r"7\.jpg may be left/7\.jpg or right/7\.jpg"):
        names.match("7.jpg", Path("x.json"))
    with pytest.raises(UserError, match="no image middle/7"):
        names.match("middle/7.jpg", Path("x.json"))


def test_every_format_of_the_table_can_be_written():
    assert [entry.name for entry in FORMATS] == ["png", "coco", "coco-polygons", "labelme"]
    assert [entry.name for entry in FORMATS if entry.takes_seeds] == ["png", "coco", "labelme"]
    for form in (load_format(entry.name) for entry in FORMATS):
        assert (form.write_image is None) != (form.write_set is None)
        assert (form.write_set is None) == (form.set_name is None)
    with pytest.raises(UserError, match=r"no label format 'yolo': expected one of png, coco, coco-polygons, labelme"):
        load_format("yolo")


def test_boxes_hold_the_pixels_whose_centres_they_hold() -> None:
    assert inner_box([(1.4, 0), (3.6, 2)], (4, 6)) == ((1, 0), (3, 1))
    assert inner_box([(3.6, 2), (1.6, 0.6)], (4, 6)) == ((2, 1), (3, 1))  # Corners in any order.
    assert inner_box([(2.1, 2.1), (2.2, 2.2)], (4, 6)) == ((2, 2), (2, 2))  # Never empty.
    assert inner_box([(-5, -5), (99, 99)], (4, 6)) == ((0, 0), (5, 3))
    with pytest.raises(ValueError, match="outside of the image of 6x4"):
        inner_box([(6, 0), (9, 2)], (4, 6))


def test_points_on_the_far_edge_are_inside() -> None:
    assert inside_pixel((6, 3.9), (4, 6)) == (5, 3)
    for point in ((-0.1, 0), (0, 4.1), (float("nan"), 0)):
        with pytest.raises(ValueError, match="outside"):
            inside_pixel(point, (4, 6))


def test_files_are_only_replaced_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_index_png(path, IDS, [CHAIR, WALL])
    before = path.read_bytes()
    for write in (
        lambda: write_index_png(path, IDS * 0, [CHAIR]),
        lambda: write_labelme(path, "a.jpg", IDS * 0, [CHAIR]),
    ):
        with pytest.raises(UserError, match=r"a\.png is there already"):
            write()
    assert path.read_bytes() == before
    write_index_png(path, IDS * 0, [CHAIR], overwrite=True)
    assert path.read_bytes() != before


def test_folders_that_take_no_file_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.png cannot be written"):
        write_index_png(tmp_path / "file" / "a.png", IDS, [CHAIR, WALL])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.json, "dump", full)
    with pytest.raises(UserError, match=r"classes\.json .*No space left"):
        write_legend(tmp_path, [CHAIR])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_errors_inside_of_a_write_pass_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writing(tmp_path / "a.json"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_palette_png_holds_ids_and_shows_colours(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.png"
    write_index_png(path, IDS, [CHAIR, WALL])
    assert read_label_map(path, (2, 3)).tolist() == IDS.tolist()
    with Image.open(path) as picture:
        assert picture.mode == "P"
        colours = np.array(picture.convert("RGB"))
    assert colours[0].tolist() == [[0, 0, 0], list(CHAIR.colour), list(CHAIR.colour)]
    assert colours[1, 0].tolist() == list(WALL.colour)
    assert palette_colours(path) == {2: CHAIR.colour, 255: WALL.colour}


def test_large_ids_need_16_bits_in_every_map(tmp_path: Path) -> None:
    for name, ids in (("a.png", np.array([[0, 65535], [2, 0]])), ("b.png", np.array([[0, 2], [2, 0]]))):
        write_index_png(tmp_path / name, ids, [CHAIR, FAR])
        assert read_label_map(tmp_path / name, (2, 2)).tolist() == ids.tolist()
        with Image.open(tmp_path / name) as picture:
            assert picture.mode.startswith("I")
    assert palette_colours(tmp_path / "a.png") == {}


def as_found(label: Label) -> FileLabel:
    return FileLabel(label.name, label.id, label.colour)


def test_legend_is_the_captures_class_list(tmp_path: Path) -> None:
    path = write_legend(tmp_path, [WALL, CHAIR, FAR])
    assert path == tmp_path / "classes.json"
    assert read_classes(path) == {255: "Wand ä", 2: "chair", 65535: "far"}
    assert read_legend(path) == tuple(map(as_found, (WALL, CHAIR, FAR)))
    write_legend(tmp_path, [WALL, CHAIR, FAR])  # The same: an interrupted run goes on.
    with pytest.raises(UserError, match=r"classes\.json is there already"):
        write_legend(tmp_path, [CHAIR])
    write_legend(tmp_path, [CHAIR], overwrite=True)
    assert read_legend(path) == (as_found(CHAIR),)


def test_legend_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text('{"classes": [{"id": 0, "name": "void"}, {"id": 3, "name": "cat", "color": "red"}]}')
    (label,) = read_legend(path)
    assert (label.id, label.name, label.colour) == (3, "cat", None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2, 255], (1, 2, 255)),
        ("#e69f00", (230, 159, 0)),
        ("#e69fzz", None),
        ([1, 2, 256], None),
        ([1.0, 2, 3], None),
        ("red", None),
        (None, None),
    ],
)
def test_colours_of_other_tools(value: object, expected: tuple[int, int, int] | None) -> None:
    assert parse_colour(value) == expected


def test_labelme_file_has_what_labelme_reads(tmp_path: Path) -> None:
    path = tmp_path / "labels" / "0003.json"
    write_labelme(path, str(tmp_path / "images" / "0003.jpg"), IDS, [CHAIR, WALL])
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {key: content[key] for key in ("imagePath", "imageData", "imageHeight", "imageWidth", "flags")} == {
        "imagePath": "../images/0003.jpg",
        "imageData": None,
        "imageHeight": 2,
        "imageWidth": 3,
        "flags": {},
    }
    chair = content["shapes"][0]
    assert (chair["label"], chair["shape_type"], chair["points"]) == ("chair", "mask", [[1, 0], [2, 1]])
    with Image.open(io.BytesIO(base64.b64decode(chair["mask"]))) as picture:
        assert np.array(picture).tolist() == [[1, 1], [0, 1]]


def test_labelme_masks_come_back_to_the_pixel(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).choice([0, 2, 255], (13, 17)).astype(np.uint8)
    write_labelme(tmp_path / "a.json", "a.jpg", ids, [CHAIR, WALL])
    image = read_labelme(tmp_path / "a.json")
    assert (image.name, image.size) == ("a.jpg", (13, 17))
    masks = {region.label.name: region.mask for region in image.regions}
    assert masks["chair"] is not None
    assert masks["Wand ä"] is not None
    assert (masks["chair"] == (ids == 2)).all()
    assert (masks["Wand ä"] == (ids == 255)).all()


def labelme(path: Path, *shapes: dict[str, Any], **keys: Any) -> Path:
    """A LabelMe file of an image of 8x6 pixels (width x height)."""
    content = {"shapes": shapes, "imagePath": "a.jpg", "imageData": None, "imageHeight": 6, "imageWidth": 8, **keys}
    path.write_text(json.dumps(content))
    return path


def shape(kind: str | None, *points: tuple[float, float], **keys: Any) -> dict[str, Any]:
    """A LabelMe shape of the label cat."""
    return {"label": "cat", "points": points, "shape_type": kind, **keys}


def test_labelme_shapes_drawn_by_hand(tmp_path: Path) -> None:
    path = labelme(
        tmp_path / "a.json",
        shape("polygon", (1, 1), (4, 1), (4, 3), (1, 3)),
        shape(None, (0, 0), (2, 0), (2, 2), (0, 2)),
        shape("circle", (4, 3), (5.2, 3)),
        shape("rectangle", (5, 4), (1, 2)),
        shape("point", (7.9, 0.2)),
        shape("points", (0.5, 0.5), (8, 6)),
        shape("linestrip", (0, 0), (3.5, 2.5), (7, 5)),
    )
    regions = read_labelme(path).regions
    assert [region.kind for region in regions] == ["mask", "mask", "mask", "box", "click", "click", "click", "scribble"]
    pixels = [np.argwhere(region.mask).tolist() for region in regions if region.mask is not None]
    assert pixels[0] == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]
    assert pixels[1] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert pixels[2] == [[2, 3], [2, 4], [3, 3], [3, 4]]
    assert [region.points for region in regions[3:]] == [
        ((1, 2), (4, 3)),
        ((7, 0),),
        ((0, 0),),
        ((7, 5),),
        ((0, 0), (3, 2), (7, 5)),
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shape("cuboid", (0, 0)), "shape_type cuboid"),
        (shape("polygon", (0, 0), (1, 1)), "at least three pairs"),
        (shape("polygon", (0, 0), (1e9, 1), (0, 5)), "far out"),
        (shape("point", (9, 0)), "outside of the image of 8x6"),
        (shape("rectangle", (9, 0), (20, 4)), "outside of the image of 8x6"),
        (shape("mask", (0, 0), (1, 1), mask="###"), "Error"),
        (shape("mask", (0, 0), (1, 1), mask=base64.b64encode(b"no picture").decode()), "cannot identify"),
        (shape("mask", (0, 0), (1, 1)), "KeyError: 'mask'"),
        (shape("circle", (0, 0)), "ValueError"),
        ({"points": []}, "KeyError: 'label'"),
        ({"label": 3, "points": []}, "label 3 is no text"),
    ],
)
def test_damaged_labelme_shapes_are_one_line(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    path = labelme(tmp_path / "a.json", shape("point", (1, 1)), bad)
    with pytest.raises(UserError, match=r"a\.json: shape 1 cannot be read .*expected a LabelMe shape") as caught:
        read_labelme(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labelme_mask_of_another_size(tmp_path: Path) -> None:
    write_labelme(tmp_path / "a.json", "a.jpg", IDS, [CHAIR, WALL])
    content = json.loads((tmp_path / "a.json").read_text())
    content["shapes"][0]["points"] = [[1, 0], [2, 2]]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"mask of \(2, 2\) pixels .*does not fit into columns 1\.\.2, rows 0\.\.2"):
        read_labelme(tmp_path / "a.json")


@pytest.mark.parametrize("keys", [{"imagePath": None}, {"imageHeight": None}, {"imageWidth": 0}, {"shapes": {}}])
def test_labelme_files_without_the_essentials(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"a\.json: .*expected"):
        read_labelme(labelme(tmp_path / "a.json", **keys))


def test_files_that_are_no_json(tmp_path: Path) -> None:
    for content, message in (("{", "is not valid JSON"), ("[]", "holds a JSON list"), ("[" * 99999, "JSON")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_labelme(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_labelme(tmp_path / "missing.json")
