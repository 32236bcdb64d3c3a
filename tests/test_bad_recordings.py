"""Strangers' Replica sequences and ScanNet scenes: one line, soon, whatever lies where a file is expected."""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from miniatures import write_replica, write_scannet
from PIL import Image
from test_bad_input import MEMORY, png_header
from tiny import tiny_capture

from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.dataparsers.replica_data import ReplicaDataParserConfig
from jacobinerf_ns.dataparsers.scannet_labels import TSV_NAME, ScanNetLabelsParserConfig
from jacobinerf_ns.errors import UserError

SECONDS = 2.0
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("recordings")
    write_replica(root / "replica", width=12, height=8)
    write_scannet(root / "scannet", width=12, height=8)
    tiny_capture(root / "captures" / "room")
    return {path.name: path for path in root.iterdir()}


def _folder(originals: dict[str, Path], tmp_path: Path, kind: str, inside: str) -> Path:
    """A copy, to be damaged: the sequence or the scene."""
    return next(Path(shutil.copytree(originals[kind], tmp_path / kind)).rglob(inside)).parent


def _refused(config: Any, named: str) -> str:
    """Parses as `ns-train` does, and returns the one line."""
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(UserError) as caught:
        config.setup().get_dataparser_outputs("train")
    said = str(caught.value)
    assert named in said
    assert "\n" not in said
    assert len(said) < 1_000
    assert time.perf_counter() - begin < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    return said


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


STRANGE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path),
    "3 GiB of nothing": _sparse,
    "empty": lambda path: path.write_bytes(b""),
    "no text": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "one endless line": lambda path: path.write_text("1\t" * 200_000),
}
PICTURES: dict[str, Callable[[Path], object]] = {
    "400 megapixels": lambda path: png_header(path, 20_000, 20_000),
    "CMYK": lambda path: Image.new("CMYK", (12, 8)).save(path, format="JPEG"),
    "palette": lambda path: Image.new("P", (12, 8)).save(path, format="PNG"),
    "real numbers": lambda path: Image.new("F", (12, 8)).save(path, format="TIFF"),
    "PostScript": lambda path: Image.new("RGB", (12, 8)).save(path, format="EPS"),
    "transparent alone": lambda path: Image.new("RGBA", (12, 8)).save(path, format="PNG"),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
TEXTS = {
    "replica": ("traj_w_c.txt",),
    "scannet": ("pose/0.txt", "intrinsic/intrinsic_color.txt", "intrinsic/intrinsic_depth.txt", TSV_NAME),
}
KINDS: dict[str, tuple[str, Any]] = {
    "replica": ("traj_w_c.txt", ReplicaDataParserConfig),
    "scannet": ("pose", ScanNetLabelsParserConfig),
}


@pytest.mark.parametrize("case", STRANGE)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in TEXTS.items() for name in names])
def test_texts(originals: dict[str, Path], tmp_path: Path, kind: str, name: str, case: str) -> None:
    inside, config = KINDS[kind]
    folder = _folder(originals, tmp_path, kind, inside)
    path = next(place / name for place in (folder, *folder.parents) if (place / name).exists())
    path.unlink()
    STRANGE[case](path)
    missing = name == TSV_NAME and not path.is_file()
    _refused(config(data=folder), f"no {TSV_NAME}" if missing else path.name)


@pytest.mark.parametrize("case", PICTURES)
@pytest.mark.parametrize(("kind", "name"), [("replica", "rgb/rgb_5.png"), ("scannet", "color/5.jpg")])
def test_photos(originals: dict[str, Path], tmp_path: Path, kind: str, name: str, case: str) -> None:
    inside, config = KINDS[kind]
    folder = _folder(originals, tmp_path, kind, inside)
    (folder / name).unlink()
    PICTURES[case](folder / name)
    _refused(config(data=folder), Path(name).name)


@pytest.mark.parametrize("value", ["1e300", "-1e13", "1e39", "inf"])
@pytest.mark.parametrize("kind", KINDS)
def test_cameras_that_are_nowhere(originals: dict[str, Path], tmp_path: Path, kind: str, value: str) -> None:
    inside, config = KINDS[kind]
    folder = _folder(originals, tmp_path, kind, inside)
    if kind == "replica":
        lines = (folder / inside).read_text().splitlines()
        (folder / inside).write_text("\n".join([f"1 0 0 {value} 0 1 0 0 0 0 1 0 0 0 0 1", *lines[1:]]))
    else:
        for path in (folder / inside).iterdir():
            path.write_text(f"1 0 0 {value}\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    _refused(config(data=folder), "pose")


@pytest.mark.parametrize("name", ["\x1b]0;x\x07", "a\nb", "a" * 10_000])
def test_names_of_classes(originals: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = _folder(originals, tmp_path, "replica", "traj_w_c.txt")
    legend = folder / "info_semantic.json"
    legend.write_text(json.dumps({"classes": [{"id": number, "name": name} for number in range(1, 99)]}))
    _refused(ReplicaDataParserConfig(data=folder), "info_semantic.json: the class name ")
    scene = _folder(originals, tmp_path, "scannet", "pose")
    if "\n" not in name:
        (scene / TSV_NAME).write_text(f"id\tnyu40id\tnyu40class\n1\t1\t{name}\n")
        _refused(ScanNetLabelsParserConfig(data=scene), f"{TSV_NAME}: the class name ")


@pytest.mark.parametrize("row", [f"1\t{10**30}", "1\t-5", "1\t1000000", f"{10**30}\t1", "-1\t1", "1" * 5_000 + "\t1"])
def test_ids_of_classes(originals: dict[str, Path], tmp_path: Path, row: str) -> None:
    scene = _folder(originals, tmp_path, "scannet", "pose")
    (scene / TSV_NAME).write_text(f"id\tnyu40id\tnyu40class\n{row}\twall\n")
    _refused(ScanNetLabelsParserConfig(data=scene), f"{TSV_NAME}: line 2 has ")


SCALES = [(name, value) for name in ("scale_factor", "scene_scale", "depth_unit_scale_factor") for value in (0.0, NAN)]
OPTIONS: list[tuple[str, str, Any]] = [
    *((kind, name, value) for kind in ("captures", "replica", "scannet") for name, value in SCALES),
    ("captures", "scale_factor", -1.0),
    ("replica", "scale_factor", INF),
    ("scannet", "scale_factor", 1e300),
    ("replica", "sequence", "a" * 5_000),
    ("replica", "sequence", "a\x1b"),
]


@pytest.mark.parametrize(("kind", "name", "value"), OPTIONS)
def test_options_that_cannot_be(originals: dict[str, Path], kind: str, name: str, value: Any) -> None:
    made: dict[str, Any] = {
        "captures": (JacobiNeRFDataParserConfig, "transforms.json"),
        "replica": (ReplicaDataParserConfig, "Sequence_1"),
        "scannet": (ScanNetLabelsParserConfig, "pose"),
    }
    config, inside = made[kind]
    folder = next(originals[kind].rglob(inside)).parent
    _refused(config(data=folder, **{name: value}), f"--{name.replace('_', '-')}")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"eval_mode": "fraction", "train_split_fraction": 0.0}, "--train-split-fraction"),
        ({"eval_mode": "fraction", "train_split_fraction": 2.0}, "--train-split-fraction"),
        ({"eval_mode": "fraction", "train_split_fraction": NAN}, "--train-split-fraction"),
        ({"eval_mode": "interval", "eval_interval": 0}, "--eval-interval"),
    ],
)
def test_splits_that_cannot_be(originals: dict[str, Path], options: Any, named: str) -> None:
    _refused(JacobiNeRFDataParserConfig(data=originals["captures"] / "room", **options), named)
