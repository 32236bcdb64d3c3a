"""Bad input ends in one line and exit code 2, soon, and nothing is lost: what people and strangers give us in files.

Every case goes through a door that people use: our commands, and the dataparser that `ns-train` and all others build.
"""

import base64
import io
import json
import os
import resource
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from safetensors.torch import save_file
from tiny import tiny_capture, tiny_config

from jacobinerf_ns.annotations.schema import Annotations, Label, Mask
from jacobinerf_ns.annotations.store import read_annotations, write_annotations
from jacobinerf_ns.cli.annotate import Annotate
from jacobinerf_ns.cli.exchange import Import
from jacobinerf_ns.cli.features import Features
from jacobinerf_ns.dataparsers import jacobinerf_data
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.dataparsers.transforms_file import read_transforms, warnings_of
from jacobinerf_ns.errors import EXIT_CODE, UserError, one_line_exit
from jacobinerf_ns.files import outside
from jacobinerf_ns.files.masks import mask_at

DEEP = 5_000
MEMORY = 1 << 30
"""Bytes over the start that a refusal may take."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(jacobinerf_data, "_reported", set())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_capture(tmp_path_factory.mktemp("original") / "room")


@pytest.fixture
def capture(tmp_path: Path, original: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "room"))


@pytest.fixture
def run(tmp_path: Path, capture: Path) -> Path:
    """The config.yml of a run that has not been trained: what reads annotations and label files needs no more."""
    config = tiny_config(capture, tmp_path / "out")
    config.set_timestamp()
    config.save_config()
    return config.get_base_dir() / "config.yml"


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Does something as a command does it, and returns its one line."""

    def check(action: Callable[[], Any], expected: str = "") -> str:
        capfd.readouterr()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(SystemExit) as caught, one_line_exit():
            action()
        assert caught.value.code == EXIT_CODE
        line = capfd.readouterr().err
        assert line.startswith("error: ")
        assert line.endswith("\n")
        assert not any(ord(letter) < 32 for letter in line[:-1]), line
        assert len(line) < 1_000, line
        assert expected in line, line
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert taken < MEMORY
        return line

    return check


def parse(data: Path, **settings: Any) -> Any:
    return JacobiNeRFDataParserConfig(data=data, **settings).setup().get_dataparser_outputs("train")


def command(kind: type, *arguments: object) -> Any:
    return tyro.cli(kind, args=[str(argument) for argument in arguments]).main()


def png_header(path: Path, width: int, height: int) -> Path:
    """A picture whose header promises more pixels than any memory has."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    body = header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


# transforms.json


def _all(key: str, value: Any) -> Callable[[dict], None]:
    return lambda meta: meta.update({key: value})


def _frame(key: str, value: Any) -> Callable[[dict], None]:
    return lambda meta: meta["frames"][1].update({key: value})


def _pose(value: Any) -> Callable[[dict], None]:
    return _frame("transform_matrix", value)


def _entry(row: int, column: int, value: float) -> Callable[[dict], None]:
    def change(meta: dict) -> None:
        meta["frames"][1]["transform_matrix"][row][column] = value

    return change


EYE = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
NAN, INF = float("nan"), float("inf")
BAD_TRANSFORMS: dict[str, tuple[Callable[[dict], None], str]] = {
    **{f"fl_x {value!r:.20}": (_all("fl_x", value), "fl_x") for value in (None, [1], "12", 0, -5, NAN, INF, True, {})},
    **{f"frame fl_y {value!r:.20}": (_frame("fl_y", value), "fl_y") for value in (None, [1], 0, NAN)},
    **{f"cx {value!r:.20}": (_all("cx", value), "cx") for value in (None, [], NAN, "x", 1e300)},
    **{f"w {value!r:.20}": (_all("w", value), "of the capture is") for value in (None, 0, -1, 10**6, 1e300, "24", NAN)},
    **{f"k1 {value!r:.20}": (_all("k1", value), "k1") for value in (None, NAN, INF, [0.1], "a", 1e300)},
    **{
        f"distortion {value!r:.20}": (_all("distortion_params", value), "distortion_params")
        for value in (None, 1, [0.1], [NAN] * 6, ["a"] * 6, {"k1": 0})
    },
    **{
        f"camera_model {value!r:.20}": (_all("camera_model", value), "camera_model")
        for value in (None, 3, "PINHOLE_OF_MINE", ["OPENCV"], {})
    },
    **{
        f"applied_transform {value!r:.40}": (_all("applied_transform", value), "applied_transform")
        for value in (None, "x", [[1, 0], [0, 1]], EYE, [[NAN] * 4] * 3, [[0] * 4] * 3, [["a"] * 4] * 3, 5)
    },
    **{
        f"applied_scale {value!r:.20}": (_all("applied_scale", value), "applied_scale")
        for value in (0, -1, None, NAN, INF, "1", [1], 1e300)
    },
    **{
        f"train_filenames {value!r:.20}": (_all("train_filenames", value), "train_filenames")
        for value in (5, None, "a.png", {}, [5], [None], [""], [["a"]])
    },
    **{
        f"file_path {value!r:.20}": (_frame("file_path", value), "file_path of frame 1")
        for value in (5, None, "", ["a"], "a" * 300, "a/" * 3000, "a\tb.png", "a\x1b]0;x.png")
    },
    **{
        f"{key} {value!r:.20}": (_frame(key, value), f"{key} of")
        for key in ("mask_path", "depth_file_path", "semantics_path", "instances_path")
        for value in (7, "b" * 300)
    },
    **{
        f"pose {value!r:.40}": (_pose(value), "")
        for value in (None, 5, "x", [], [[1, 2], [3, 4]], EYE[:3], [[0] * 4] * 4)
    },
    "pose ragged": (_pose([[1, 0, 0, 0], [0, 1], [0, 0, 1, 0], [0, 0, 0, 1]]), "transform_matrix"),
    "pose of text": (_pose([["a"] * 4] * 4), "transform_matrix"),
    "pose of truth": (_pose([[True] * 4] * 4), "transform_matrix"),
    "pose zero": (_pose([[0.0] * 4] * 4), "no rotation"),
    "pose mirrored": (_pose([[-1.0, 0, 0, 0], *EYE[1:]]), "no rotation"),
    "pose sheared": (_pose([[1.0, 0.9, 0, 0], *EYE[1:]]), "no rotation"),
    "pose flat": (_pose([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1.0]]), "no rotation"),
    "translation 1e300": (_entry(0, 3, 1e300), "1e+300"),
    "translation -1e13": (_entry(2, 3, -1e13), "-1e+13"),
    "translation NaN": (_entry(1, 3, NAN), "NaN"),
    "translation infinite": (_entry(1, 3, INF), "infinite"),
    "orientation unknown": (_all("orientation_override", "sideways"), "orientation_override"),
    "orientation list": (_all("orientation_override", ["up"]), "orientation_override"),
    "crop radius": (_all("fisheye_crop_radius", -1), "fisheye_crop_radius"),
    "ply path": (_all("ply_file_path", 3), "ply_file_path"),
    "frames none": (_all("frames", None), "no frames"),
    "frames empty": (_all("frames", []), "no frames"),
    "frames object": (_all("frames", {}), "no frames"),
    "frame is a number": (lambda meta: meta["frames"].append(5), "frame 6"),
    "frame is empty": (lambda meta: meta["frames"].append({}), "frame 6"),
}


@pytest.mark.parametrize("case", BAD_TRANSFORMS)
def test_transforms_that_cannot_be(capture: Path, refused: Callable[..., str], case: str) -> None:
    change, expected = BAD_TRANSFORMS[case]
    path = capture / "transforms.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    refused(lambda: parse(capture), expected)


BAD_JSON = {
    "empty": b"",
    "cut": b'{"frames": [',
    "no text": b"\xff\xfe\x00\x01",
    "scalar": b"5",
    "null": b"null",
    "nested lists": b"[" * DEEP + b"]" * DEEP,
    "nested beyond the parser": b"[" * 200_000,
    "nested objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a number of 401 digits": b'{"frames": 1' + b"0" * 400 + b"}",
    "a number of 5000 digits": b'{"frames": 1' + b"0" * 5_000 + b"}",
    "half a character": b'{"frames": "\\ud800"}',
    "NUL": b'{"frames": "a\\u0000b"}',
    "raw NUL": b'{"frames": "a\0b"}',
    "too many values": b"[" + b"0," * 9_000_000 + b"0]",
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_beyond_the_limits(
    original: Path, tmp_path: Path, capture: Path, run: Path, refused: Callable[..., str], case: str
) -> None:
    """The same for every file of JSON that somebody else may have written."""
    for name in ("transforms.json", "classes.json"):
        (capture / name).write_bytes(BAD_JSON[case])
        refused(lambda: parse(capture), name)
        shutil.copy(original / name, capture / name)
    theirs = tmp_path / "theirs.json"
    theirs.write_bytes(BAD_JSON[case])
    refused(lambda: command(Annotate, "--file", theirs), "theirs.json")
    refused(lambda: command(Annotate, "--file", tmp_path / "mine.json", "--merge", theirs), "theirs.json")
    refused(lambda: command(Import, "--load-config", run, "--source", theirs), "theirs.json")
    assert theirs.read_bytes() == BAD_JSON[case]
    assert not (tmp_path / "mine.json").exists()


def test_a_file_of_json_that_is_too_large(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(outside.MAX_TEXT_BYTES + 1)
    refused(lambda: command(Annotate, "--file", path), "bytes")


def test_what_is_odd_is_said_once_with_its_name(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = capture / "transforms.json"
    meta = json.loads(path.read_text())
    assert warnings_of(read_transforms(path)) == []
    names = [frame["file_path"] for frame in meta["frames"]]
    meta["frames"].append(meta["frames"][0])
    meta["frames"][2]["transform_matrix"] = meta["frames"][3]["transform_matrix"]
    meta["frames"][4]["transform_matrix"][0][3] = 1e5
    meta["frames"][5]["transform_matrix"][0][0] += 0.02
    path.write_text(json.dumps(meta))
    parse(capture)
    parse(capture)
    said = capsys.readouterr().out
    for name, what in ((names[0], "more than once"), (names[2], "pose of another"), (names[4], "far from all")):
        assert said.count(f"warning: {name}") == 1
        assert what in said
    assert f"{names[5]}: with a pose that is no exact rotation" in said


# pictures


def _jpeg(path: Path, mode: str) -> None:
    Image.new(mode, (24, 18)).save(path, format="JPEG")


BAD_PHOTOS: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "a byte changed": lambda path: path.write_bytes(_flipped(path.read_bytes())),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no picture"),
    "400 megapixels": lambda path: png_header(path, 20_000, 20_000),
    "4 gigapixels": lambda path: png_header(path, 65_535, 65_535),
    "no pixel": lambda path: png_header(path, 0, 18),
    "CMYK": lambda path: _jpeg(path, "CMYK"),
    "palette": lambda path: Image.new("P", (24, 18)).save(path),
    "16 bits": lambda path: Image.fromarray(np.zeros((18, 24), dtype=np.uint16)).save(path),
    "transparent alone": lambda path: Image.new("RGBA", (24, 18)).save(path),
    "another size": lambda path: Image.new("RGB", (12, 9)).save(path),
    "PostScript": lambda path: Image.new("RGB", (24, 18)).save(path, format="EPS"),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
MISSING = ("a pipe", "a device", "a folder")
"""Frames without an image file are dropped, and said so."""


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :]


@pytest.mark.parametrize("case", BAD_PHOTOS)
def test_photos_are_checked_before_training(
    capture: Path, refused: Callable[..., str], case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    photo = parse(capture).image_filenames[1]
    BAD_PHOTOS[case](photo)
    if case in MISSING:
        assert len(parse(capture).image_filenames) == 3
        assert "dropped 1 of 6 frames" in capfd.readouterr().out
        return
    assert str(photo) in refused(lambda: parse(capture))
    if case not in ("palette", "16 bits", "transparent alone", "CMYK"):  # Copies are converted, or made all alike.
        assert str(photo) in refused(lambda: parse(capture, downscale_factor=2))


@pytest.mark.parametrize("case", ["cut", "empty", "text", "400 megapixels", "no pixel", "another size", "PostScript"])
def test_label_maps_and_masks_of_a_capture(capture: Path, refused: Callable[..., str], case: str) -> None:
    """Read by the oracle teacher; and as seeds."""
    label_map = parse(capture).metadata["semantics_filenames"][1]
    BAD_PHOTOS[case](label_map)
    arguments = ("--data", capture, "--cache-dir", capture.parent / "features", "oracle")
    assert str(label_map) in refused(lambda: command(Features, *arguments))


@pytest.mark.parametrize("case", BAD_PHOTOS)
def test_masks_of_a_capture_and_of_objects(capture: Path, refused: Callable[..., str], case: str) -> None:
    """Those that transforms.json names, and those of `evaluate --protocol object`."""
    mask, path = capture / "masks" / "1.png", capture / "transforms.json"
    mask.parent.mkdir()
    Image.new("L", (24, 18), 255).save(mask)
    meta = json.loads(path.read_text())
    for frame in meta["frames"]:
        frame["mask_path"] = "masks/1.png"
    path.write_text(json.dumps(meta))
    assert parse(capture).mask_filenames
    assert mask_at(mask, (18, 24)).all()
    BAD_PHOTOS[case](mask)
    if case not in ("palette", "16 bits"):  # One value per pixel, whatever it is kept as.
        refused(lambda: parse(capture), "1.png")
    if case not in ("palette", "16 bits", "CMYK", "transparent alone"):  # Two colours are a mask of an object.
        refused(lambda: mask_at(mask, (27, 24) if case == "another size" else (18, 24)), "1.png")


@pytest.mark.parametrize("case", BAD_PHOTOS)
def test_index_pngs_as_seeds(capture: Path, run: Path, refused: Callable[..., str], case: str) -> None:
    if case in ("palette", "a byte changed"):
        pytest.skip("an index PNG")
    photo = parse(capture).image_filenames[0]
    theirs = run.parent / "theirs" / f"{photo.stem}.png"
    theirs.parent.mkdir()
    Image.new("L", (24, 18), 1).save(theirs)
    BAD_PHOTOS[case](theirs)
    if case == "16 bits":
        refused(lambda: command(Import, "--load-config", run, "--source", theirs), "no label at all")
    else:
        refused(lambda: command(Import, "--load-config", run, "--source", theirs), theirs.stem)
    image = ("--label", "chair", "--image", photo.name, "--mask", theirs)
    refused(lambda: command(Annotate, "--load-config", run, *image))
    assert not (run.parent / "annotations.json").exists()
    assert not (run.parent / "masks").exists()


# label files of other tools


def _labelme(photo: str, *shapes: Any, **changes: Any) -> dict[str, Any]:
    return {"imagePath": photo, "imageHeight": 18, "imageWidth": 24, "shapes": list(shapes), **changes}


def _shape(kind: str, points: Any, **more: Any) -> dict[str, Any]:
    return {"label": "chair", "shape_type": kind, "points": points, **more}


def _png(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("1", (width, height), 1).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


POLYGON = [[1, 1], [9, 1], [9, 9]]
HUGE = {"imageHeight": 10**9, "imageWidth": 10**9}
BAD_LABELME: dict[str, Callable[[str], Any]] = {
    "polygon of 10^9": lambda photo: _labelme(photo, _shape("polygon", POLYGON), **HUGE),
    "circle of 10^9": lambda photo: _labelme(photo, _shape("circle", POLYGON[:2]), **HUGE),
    "mask of 10^9": lambda photo: _labelme(photo, _shape("mask", POLYGON[:2], mask=_png(1, 1)), **HUGE),
    "polygon of another size": lambda photo: _labelme(photo, _shape("polygon", POLYGON), imageWidth=10_000),
    "height as text": lambda photo: _labelme(photo, imageHeight="18"),
    "height negative": lambda photo: _labelme(photo, imageHeight=-18),
    "a shape that is a text": lambda photo: _labelme(photo, "chair"),
    "a shape that is null": lambda photo: _labelme(photo, None),
    "a shape that is a list": lambda photo: _labelme(photo, []),
    "corner infinite": lambda photo: _labelme(photo, _shape("mask", [[0, 0], [INF, 1]], mask=_png(1, 1))),
    "corner NaN": lambda photo: _labelme(photo, _shape("mask", [[0, 0], [NAN, 1]], mask=_png(1, 1))),
    "rectangle infinite": lambda photo: _labelme(photo, _shape("rectangle", [[0, 0], [INF, 1]])),
    "point NaN": lambda photo: _labelme(photo, _shape("point", [[NAN, NAN]])),
    "line outside": lambda photo: _labelme(photo, _shape("line", [[0, 0], [1e300, 1]])),
    "polygon 1e300": lambda photo: _labelme(photo, _shape("polygon", [[0, 0], [1e300, 1], [3, 3]])),
    "polygon winding": lambda photo: _labelme(photo, _shape("polygon", [[0, 0], [24, 18]] * 60_000)),
    "points that are no pairs": lambda photo: _labelme(photo, _shape("polygon", [1, 2, 3])),
    "points null": lambda photo: _labelme(photo, _shape("polygon", None)),
    "no label": lambda photo: _labelme(photo, {"points": POLYGON}),
    "label a number": lambda photo: _labelme(photo, {"label": 4, "points": POLYGON}),
    "label that steers a terminal": lambda photo: _labelme(photo, {"label": "a\x1b]0;b\x07", "points": POLYGON}),
    "mask of 400 megapixels": lambda photo: _labelme(photo, _shape("mask", [[0, 0], [1, 1]], mask=_large_mask())),
    "mask that is no base64": lambda photo: _labelme(photo, _shape("mask", [[0, 0], [1, 1]], mask="%%%")),
    "mask that is no picture": lambda photo: _labelme(photo, _shape("mask", [[0, 0], [1, 1]], mask="AAAA")),
    "mask null": lambda photo: _labelme(photo, _shape("mask", [[0, 0], [1, 1]], mask=None)),
    "photo unknown": lambda photo: _labelme("elsewhere.png", _shape("polygon", POLYGON)),
    "photo too long": lambda photo: _labelme("a" * 300, _shape("polygon", POLYGON)),
    "photo with control characters": lambda photo: _labelme("a\x1b[31m.png", _shape("polygon", POLYGON)),
    "type unknown": lambda photo: _labelme(photo, _shape("cuboid", POLYGON)),
    "type a list": lambda photo: _labelme(photo, {"label": "a", "shape_type": ["x"], "points": POLYGON}),
}


def _large_mask() -> str:
    folder = Path(os.environ["XDG_CACHE_HOME"])
    return base64.b64encode(png_header(folder / "large.png", 20_000, 20_000).read_bytes()).decode()


def _coco(photo: str, annotation: Any, **image: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": photo, "width": 24, "height": 18, **image}],
        "categories": [{"id": 1, "name": "chair"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **annotation}],
    }


SQUARE = {"segmentation": [[1, 1, 9, 1, 9, 9]]}
LARGEST = {"width": 65_535, "height": 65_535}
BAD_COCO: dict[str, Callable[[str], Any]] = {
    "image of 65535²": lambda photo: _coco(photo, SQUARE, **LARGEST),
    "run lengths of 65535²": lambda photo: _coco(
        photo, {"segmentation": {"size": [65_535] * 2, "counts": [0, 65_535**2]}}, **LARGEST
    ),
    "another size": lambda photo: _coco(photo, SQUARE, width=2400, height=1800),
    "run lengths too long": lambda photo: _coco(photo, {"segmentation": {"size": [18, 24], "counts": [10**18]}}),
    "counts endless": lambda photo: _coco(photo, {"segmentation": {"size": [18, 24], "counts": "o" * 10**5}}),
    "size a text": lambda photo: _coco(photo, {"segmentation": {"size": "x" * 10**6, "counts": []}}),
    "bbox infinite": lambda photo: _coco(photo, {"bbox": [0, 0, INF, 1]}),
    "bbox of 1e308": lambda photo: _coco(photo, {"bbox": [1e308, 1e308, 1e308, 1e308]}),
    "bbox null": lambda photo: _coco(photo, {"bbox": None}),
    "bbox of texts": lambda photo: _coco(photo, {"bbox": ["a", "b", "c", "d"]}),
    "polygon NaN": lambda photo: _coco(photo, {"segmentation": [[NAN] * 6]}),
    "polygon winding": lambda photo: _coco(photo, {"segmentation": [[0, 0, 24, 18] * 60_000]}),
    "name too long": lambda photo: _coco("a" * 300, SQUARE),
    "name with control characters": lambda photo: _coco("a\x07.png", SQUARE),
    "category that steers a terminal": lambda photo: {
        **_coco(photo, SQUARE),
        "categories": [{"id": 1, "name": "\x1b]0;x\x07"}],
    },
    "images null": lambda photo: {**_coco(photo, SQUARE), "images": None},
    "annotations of numbers": lambda photo: {**_coco(photo, SQUARE), "annotations": [1, 2]},
    "category unknown": lambda photo: _coco(photo, {**SQUARE, "category_id": 9}),
    "image unknown": lambda photo: _coco(photo, {**SQUARE, "image_id": 9}),
    "ids as texts": lambda photo: _coco(photo, {**SQUARE, "image_id": "1"}),
}


@pytest.mark.parametrize("make", [*BAD_LABELME.values(), *BAD_COCO.values()], ids=[*BAD_LABELME, *BAD_COCO])
def test_label_files_of_other_tools(
    capture: Path, run: Path, refused: Callable[..., str], make: Callable[[str], Any]
) -> None:
    theirs = run.parent / "theirs.json"
    theirs.write_text(json.dumps(make(parse(capture).image_filenames[0].name)))
    refused(lambda: command(Import, "--load-config", run, "--source", theirs), "theirs.json")
    assert not (run.parent / "annotations.json").exists()
    assert not (run.parent / "masks").exists()


# annotation files


def _seeded(**seed: Any) -> dict[str, Any]:
    labels = [{"id": 1, "name": "chair", "colour": [1, 2, 3]}]
    common = {"label": 1, "image": "a.png", "width": 24, "height": 18}
    return {"version": 1, "labels": labels, "seeds": [{**common, **seed}]}


BAD_ANNOTATIONS: dict[str, Any] = {
    "box in a picture of 65535²": _seeded(kind="box", corner=[0, 0], opposite=[65_534] * 2, **LARGEST),
    "radius": _seeded(kind="scribble", points=[[1, 1]], radius=10**18),
    "image name of control characters": _seeded(kind="click", pixel=[0, 0], image="a\x1b.png"),
    "image name without end": _seeded(kind="click", pixel=[0, 0], image="a" * 5_000),
    "mask outside": _seeded(kind="mask", file="../../secret.png", value=1),
    "mask absolute": _seeded(kind="mask", file="/etc/shadow", value=1),
    "mask of control characters": _seeded(kind="mask", file="masks/\x07.png", value=1),
    "label that steers a terminal": {"version": 1, "labels": [{"id": 1, "name": "\x1b]0;x\x07", "colour": [0, 0, 0]}]},
    "direction NaN": _seeded(kind="space", origin=[NAN, 0, 0], direction=[0, 0, 1]),
}


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_annotation_files_of_strangers(tmp_path: Path, refused: Callable[..., str], case: str) -> None:
    theirs, mine = tmp_path / "theirs.json", tmp_path / "mine.json"
    theirs.write_text(json.dumps(BAD_ANNOTATIONS[case]))
    before = Annotations(labels=(Label(id=1, name="lamp", colour=(0, 0, 0)),))
    write_annotations(mine, before)
    refused(lambda: command(Annotate, "--file", theirs), "theirs.json")
    refused(lambda: command(Annotate, "--file", mine, "--merge", theirs), "theirs.json")
    assert read_annotations(mine) == before


def _secret(place: Path) -> None:
    secret = place.parents[2] / "secret.png"
    Image.new("L", (24, 18), 1).save(secret)
    place.symlink_to(secret)


STRANGE_MASKS: dict[str, Callable[[Path], object]] = {
    "a link to a picture elsewhere": _secret,
    "a link to /etc/passwd": lambda place: place.symlink_to("/etc/passwd"),
    "a link to a device": lambda place: place.symlink_to("/dev/zero"),
    "a link to itself": lambda place: place.symlink_to(place),
    "a pipe": os.mkfifo,
    "a folder": lambda place: place.mkdir(),
    "missing": lambda place: None,
    "text": lambda place: place.write_text("root:x:0:0"),
    "a photo": lambda place: Image.new("RGB", (24, 18)).save(place, format="PNG"),
    "a JPEG": lambda place: Image.new("L", (24, 18)).save(place, format="JPEG"),
    "another size": lambda place: Image.new("L", (25, 18)).save(place, format="PNG"),
    "400 megapixels": lambda place: png_header(place, 20_000, 20_000),
}


@pytest.mark.parametrize("case", STRANGE_MASKS)
def test_merging_copies_index_pngs_of_the_folder_and_nothing_else(
    tmp_path: Path, refused: Callable[..., str], case: str
) -> None:
    theirs, mine = tmp_path / "theirs" / "b.json", tmp_path / "mine" / "a.json"
    (theirs.parent / "masks").mkdir(parents=True)
    STRANGE_MASKS[case](theirs.parent / "masks" / "secret.png")
    seed = Mask(label=1, file="masks/secret.png", value=1, image="a.png", width=24, height=18)
    write_annotations(theirs, Annotations(labels=(Label(id=1, name="lamp", colour=(0, 0, 0)),), seeds=(seed,)))
    refused(lambda: command(Annotate, "--file", mine, "--merge", theirs), "secret.png")
    assert not (mine.parent / "masks").exists()
    assert not mine.exists()


def test_a_folder_of_masks_that_is_a_link_out_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    theirs, elsewhere = tmp_path / "theirs" / "b.json", tmp_path / "elsewhere"
    elsewhere.mkdir()
    theirs.parent.mkdir()
    Image.new("L", (24, 18), 1).save(elsewhere / "m.png")
    (theirs.parent / "masks").symlink_to(elsewhere)
    seed = Mask(label=1, file="masks/m.png", value=1, image="a.png", width=24, height=18)
    write_annotations(theirs, Annotations(labels=(Label(id=1, name="lamp", colour=(0, 0, 0)),), seeds=(seed,)))
    refused(lambda: command(Annotate, "--file", tmp_path / "mine.json", "--merge", theirs), "a link out of")


@pytest.mark.parametrize("name", ["a\x1b]0;b\x07", "a\x9b31m", "a\nb", "\x00"])
def test_names_that_steer_a_terminal(tmp_path: Path, refused: Callable[..., str], name: str) -> None:
    path = tmp_path / "a.json"
    refused(lambda: command(Annotate, "--file", path, "--label", name), "control characters")
    command(Annotate, "--file", path, "--label", "chair")
    refused(lambda: command(Annotate, "--file", path, "--label", "chair", "--rename", name), "control characters")


def test_what_is_printed_has_no_control_characters(tmp_path: Path, refused: Callable[..., str]) -> None:
    refused(lambda: command(Annotate, "--file", tmp_path / "a.json", "--select", "\x1b]0;title\x07"), "title")


# arrays


def _npy(path: Path, header: str, content: bytes = b"") -> Path:
    text = header.encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content)
    return path


BAD_ARRAYS: dict[str, Callable[[Path], object]] = {
    "header of 256 TB": lambda path: _npy(
        path, "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 64)}"
    ),
    "header beyond 64 bits": lambda path: _npy(
        path, "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000, 1000000000000000, 64)}"
    ),
    "negative": lambda path: _npy(path, "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2, 3)}"),
    "header that is code": lambda path: _npy(path, "__import__('os').system('true')"),
    "header deeply nested": lambda path: _npy(path, "(" * 100),
    "cut": lambda path: _npy(path, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 2)}", b"1234"),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no array"),
    "several arrays": lambda path: np.savez(path.open("wb"), a=np.zeros(3)),
    "objects": lambda path: np.save(path, np.array([[[{}]]], dtype=object)),
    "texts": lambda path: np.save(path, np.array([[["x"]]])),
    "complex": lambda path: np.save(path, np.zeros((2, 2, 2), dtype=complex)),
    "flat": lambda path: np.save(path, np.zeros((2, 2))),
    "NaN": lambda path: np.save(path, np.full((2, 2, 2), np.nan)),
    "beyond half precision": lambda path: np.save(path, np.full((2, 2, 2), 1e6)),
    "no cell": lambda path: np.save(path, np.zeros((0, 2, 2))),
}
BAD_TENSORS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no tensor"),
    "header longer than the file": lambda path: path.write_bytes(struct.pack("<Q", 10**15) + b"{"),
    "header nested": lambda path: path.write_bytes(struct.pack("<Q", 10**5) + b"[" * 10**5),
    "offsets outside": lambda path: path.write_bytes(
        struct.pack("<Q", 72) + b'{"a":{"dtype":"F32","shape":[99,99],"data_offsets":[0,39204]}}'.ljust(72)
    ),
    "complex": lambda path: save_file({"a": torch.zeros(2, 2, 2, dtype=torch.complex64)}, path),
    "two": lambda path: save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, path),
    "none": lambda path: save_file({}, path),
    "NaN": lambda path: save_file({"a": torch.full((2, 2, 2), NAN)}, path),
}


@pytest.mark.parametrize(
    ("suffix", "case"), [(".npy", case) for case in BAD_ARRAYS] + [(".safetensors", case) for case in BAD_TENSORS]
)
def test_features_of_ones_own(capture: Path, refused: Callable[..., str], suffix: str, case: str) -> None:
    folder = capture.parent / "features"
    folder.mkdir()
    photos = parse(capture).image_filenames
    for photo in photos:
        np.save(folder / f"{photo.stem}.npy", np.ones((2, 2, 2)))
    damaged = (folder / photos[0].stem).with_suffix(suffix)
    damaged.with_suffix(".npy").unlink()
    (BAD_ARRAYS if suffix == ".npy" else BAD_TENSORS)[case](damaged)
    arguments = ("--data", capture, "--cache-dir", capture.parent / "cached", "precomputed", "--folder", folder)
    assert str(damaged) in refused(lambda: command(Features, *arguments))


def test_a_reader_names_limits_in_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"20000x20000 pixels .*at most 134 million"):
        outside.check_pixels((20_000, 20_000), "a.png")
    with pytest.raises(UserError, match="300 bytes long: expected at most 255"):
        outside.check_name("a" * 300, "file_path")
