"""Random and damaged files: a `UserError` of one line or a valid result, below 2 s of work and 1 GB, and never else.

`make test` tries 340 examples a reader, always the same ones; `make fuzz` tries 20,000 new ones.
"""

import base64
import copy
import io
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from tiny import tiny_capture

from jacobinerf_ns.annotations.formats.seeds_io import import_seeds
from jacobinerf_ns.annotations.rasterise import rasterise
from jacobinerf_ns.annotations.schema import VERSION, Annotations, InImage, Mask
from jacobinerf_ns.annotations.store import foreign_mask, read_annotations, write_annotations
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.errors import UserError, visible
from jacobinerf_ns.features.base import Frame, load_rgb
from jacobinerf_ns.features.cache import DamagedFile, read_grid
from jacobinerf_ns.features.precomputed import PrecomputedConfig
from jacobinerf_ns.files.index_maps import read_label_map
from jacobinerf_ns.files.masks import read_mask

NEW = "JACOBINERF_FUZZ" in os.environ
EXAMPLES = int(os.environ.get("JACOBINERF_FUZZ", "340"))
SECONDS, MEMORY = 2.0, 1 << 30
PHOTO, WIDTH, HEIGHT = "0000.png", 24, 18

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=not NEW,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


def bounded(read: Callable[[], Any]) -> Any:
    """What a reader gives, or None where it refuses in one line; work and memory are measured either way."""
    said = ""
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        return read()
    except UserError as error:
        said = visible(str(error))
        return None
    finally:
        assert len(said) < 1_500
        assert time.process_time() - start < SECONDS
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MEMORY


# strategies

NUMBERS = st.one_of(
    st.integers(-2, 30),
    st.sampled_from([2**31, -(2**31), 2**63, 10**9, 10**18, 10**30, 10**400, 65_535, 65_536, 0]),
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), 1e300, -1e300, 1e-300]),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", PHOTO, "../..", "/etc/passwd", "a" * 300, "\x1b]0;x\x07", "\x00", "mask", "polygon", "0" * 9]),
)
ODD = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


def _places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, part in inner for place in _places(part, (*here, key)))]


@st.composite
def mutated(draw: st.DrawFn, documents: list[Any]) -> bytes:
    """A document with some of its parts replaced, taken away, doubled or nested; now and then damaged as text."""
    document: Any = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.sampled_from(_places(document)))
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "nest"]))
        if not place:
            document = draw(ODD) if change == "replace" and draw(st.integers(0, 9)) == 0 else document
            continue
        parent: Any = document
        for key in place[:-1]:
            parent = parent[key]
        if change == "replace":
            parent[place[-1]] = draw(ODD)
        elif change == "remove":
            del parent[place[-1]]
        elif change == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[place[-1]]))
        elif change == "nest":
            parent[place[-1]] = [parent[place[-1]]]
    raw = json.dumps(document).encode()
    return draw(damaged(raw)) if draw(st.integers(0, 9)) == 0 else raw


@st.composite
def damaged(draw: st.DrawFn, *contents: bytes) -> bytes:
    """Bytes with some replaced, cut off, doubled or put in."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        change = draw(st.sampled_from(["flip", "flip", "set", "cut", "insert", "repeat", "remove"]))
        if change == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "set":
            piece = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"]))
            content[place : place + 4] = piece
        elif change == "cut":
            del content[place:]
        elif change == "insert":
            content[place:place] = draw(st.binary(max_size=12))
        elif change == "repeat":
            content[place:place] = content[place : place + 40]
        else:
            del content[place : place + draw(st.integers(1, 20))]
    return bytes(content)


def _png(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, **{"format": "PNG", **options})
    return file.getvalue()


CELLS = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
IN_IMAGE = {"label": 1, "image": PHOTO, "width": WIDTH, "height": HEIGHT}
ANNOTATIONS: list[Any] = [
    {
        "version": 1,
        "labels": [{"id": 1, "name": "chair", "colour": [1, 2, 3]}, {"id": 7, "name": "lamp", "colour": [9, 9, 9]}],
        "seeds": [
            {**IN_IMAGE, "kind": "click", "pixel": [3, 4]},
            {**IN_IMAGE, "kind": "scribble", "points": [[1, 1], [9, 9], [2, 3]], "radius": 2, "negative": True},
            {**IN_IMAGE, "kind": "box", "corner": [1, 2], "opposite": [5, 6]},
            {**IN_IMAGE, "kind": "mask", "file": "masks/a.png", "value": 1},
            {"label": 7, "kind": "space", "origin": [0.0, 1.0, 2.0], "direction": [0.0, 0.0, 1.0]},
        ],
        "edits": [{"kind": "recolour", "label": 1, "colour": [4, 5, 6], "strength": 0.5}],
        "view": {"selected": 1, "opacity": 0.5, "propagation": {"threshold": 0.6, "smooth": 0.1}},
    }
]
NEWEST = {"version": VERSION, "labels": [{"id": 1, "name": "chair", "colour": [1, 2, 3], "grow": -2}]}
ANNOTATIONS.append({**ANNOTATIONS[0], **NEWEST, "seeds": ANNOTATIONS[0]["seeds"][:4]})
IMAGE = {"id": 1, "file_name": PHOTO, "width": WIDTH, "height": HEIGHT}
OF_IMAGE = {"image_id": 1, "category_id": 1}
COCO = [
    {
        "images": [IMAGE],
        "categories": [{"id": 1, "name": "chair", "color": [1, 2, 3]}],
        "annotations": [
            {"id": 1, **OF_IMAGE, "segmentation": [[1.5, 2, 9, 2, 9, 9], [3, 3, 5, 3, 5, 9.5]], "iscrowd": 0},
            {"id": 2, **OF_IMAGE, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 9, HEIGHT * WIDTH - 14]}},
            {"id": 3, **OF_IMAGE, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "1Z<`1"}},
            {"id": 4, **OF_IMAGE, "bbox": [1, 2, 3.5, 4]},
        ],
    }
]
SMALL_MASK = base64.b64encode(_png(np.eye(3, dtype=np.uint8))).decode()
LABELME = [
    {
        "version": "5.4.0",
        "imagePath": PHOTO,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        "shapes": [
            {"label": "chair", "shape_type": "polygon", "points": [[1, 1], [9, 2], [5, 9.5]]},
            {"label": "chair", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]},
            {"label": "lamp", "shape_type": "circle", "points": [[5, 5], [7, 7]]},
            {"label": "lamp", "shape_type": "linestrip", "points": [[1, 1], [9, 9], [3, 2]]},
            {"label": "mask", "shape_type": "mask", "points": [[2, 3], [4, 5]], "mask": SMALL_MASK},
            {"label": "lamp", "shape_type": "point", "points": [[3.5, 4]]},
        ],
    }
]
PICTURES = (
    _png((CELLS % 5).astype(np.uint8)),
    _png((CELLS * 100).astype(np.uint16)),
    _png(np.stack([CELLS % 250] * 3, axis=-1).astype(np.uint8)),
    _png((CELLS % 5).astype(np.uint8), format="TIFF"),
    _png(np.stack([CELLS % 250] * 3, axis=-1).astype(np.uint8), format="JPEG"),
    _png(np.stack([CELLS % 250] * 4, axis=-1).astype(np.uint8), format="WEBP"),
)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


FEATURES = torch.arange(24.0).view(2, 3, 4)
GRID = {"grid": json.dumps({"origin": [0.2, 0.2], "step": [0.5, 0.3], "shape": [2, 3, 4]})}
TENSORS = (save({"features": FEATURES}), save({"features": FEATURES.half()}, metadata=GRID), _npy(FEATURES.numpy()))


# readers


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def capture(place: Path) -> Path:
    return tiny_capture(place / "room")


@given(mutated(ANNOTATIONS))
@fuzz
def test_annotation_files(place: Path, content: bytes) -> None:
    path, again = place / "annotations.json", place / "again.json"
    path.write_bytes(content)
    found = bounded(lambda: read_annotations(path))
    assert path.read_bytes() == content
    if found is None:
        return
    write_annotations(again, found)
    assert read_annotations(again) == found
    for seed in found.seeds:
        if isinstance(seed, Mask):
            bounded(lambda seed=seed: foreign_mask(place, seed))
        elif isinstance(seed, InImage) and seed.width * seed.height < 10**6:
            assert rasterise(seed, place).any()


def _seeds(path: Path) -> Annotations | None:
    found = bounded(lambda: import_seeds(Annotations(), path, path.parent, {f"images/{PHOTO}": (HEIGHT, WIDTH)}))
    masks = path.parent / "masks"
    assert found is not None or not masks.exists() or not any(masks.iterdir()), "masks are left of a refused file"
    if found is not None:
        assert Annotations.model_validate_json(found.model_dump_json()) == found
        for seed in found.seeds:
            assert rasterise(seed, path.parent).shape == (HEIGHT, WIDTH)  # pyright: ignore[reportArgumentType]
    shutil.rmtree(masks, ignore_errors=True)
    return found


@given(mutated(COCO))
@fuzz
def test_coco_files(place: Path, content: bytes) -> None:
    (place / "coco.json").write_bytes(content)
    _seeds(place / "coco.json")


@given(mutated(LABELME))
@fuzz
def test_labelme_files(place: Path, content: bytes) -> None:
    (place / "labelme.json").write_bytes(content)
    _seeds(place / "labelme.json")


@given(data=st.data())
@fuzz
def test_transforms_files(capture: Path, data: st.DataObject) -> None:
    path = capture / "transforms.json"
    whole = capture / "whole.json"
    if not whole.exists():
        shutil.copy(path, whole)
    meta = json.loads(whole.read_text())
    extras = {"k1": 0.1, "camera_model": "OPENCV", "applied_scale": 1.0, "applied_transform": np.eye(4)[:3].tolist()}
    path.write_bytes(data.draw(mutated([meta, {**meta, **extras}])))
    found = bounded(lambda: JacobiNeRFDataParserConfig(data=capture).setup().get_dataparser_outputs("train"))
    if found is not None:
        assert len(found.image_filenames) == len(found.cameras) > 0
        assert torch.isfinite(found.cameras.camera_to_worlds).all()
        assert (found.cameras.fx > 0).all()
        assert np.isfinite(found.dataparser_scale)


@given(damaged(*PICTURES))
@fuzz
def test_pictures(place: Path, content: bytes) -> None:
    path = place / "picture.png"
    path.write_bytes(content)
    ids = bounded(lambda: read_label_map(path, (HEIGHT, WIDTH)))
    assert ids is None or ids.shape == (HEIGHT, WIDTH)
    picture = bounded(lambda: load_rgb(path, (HEIGHT, WIDTH)))
    assert picture is None or picture.size == (WIDTH, HEIGHT)
    mask = bounded(lambda: read_mask(path))
    assert mask is None or mask.dtype == bool


@given(damaged(*TENSORS))
@fuzz
def test_arrays(place: Path, content: bytes) -> None:
    path = (place / "array").with_suffix(".npy" if content.startswith(b"\x93NUMPY") else ".safetensors")
    for suffix in (".npy", ".safetensors"):
        path.with_suffix(suffix).unlink(missing_ok=True)
    path.write_bytes(content)
    reader = PrecomputedConfig(folder=place).setup()
    found = bounded(lambda: reader.extract(Frame(0, Path("array.png"), (HEIGHT, WIDTH))))
    assert found is None or found.values.ndim == 3
    try:
        grid = read_grid(path)
    except DamagedFile:
        return
    assert grid.values.dtype == torch.float16
    assert len(grid.origin) == len(grid.step) == 2
