"""COCO files: pycocotools reads the same pixels and areas, polygons lose nothing, damage is one line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jacobinerf_ns.annotations.formats.coco import fill_polygons, read_coco, write_coco
from jacobinerf_ns.annotations.formats.outlines import outlines
from jacobinerf_ns.annotations.formats.run_lengths import mask_of_runs
from jacobinerf_ns.annotations.schema import Label
from jacobinerf_ns.errors import UserError

CHAIR = Label(id=2, name="chair", colour=(230, 159, 0))
WALL = Label(id=300, name="Wand ä", colour=(1, 2, 3))
UNUSED = Label(id=4, name="unused", colour=(0, 0, 0))
LABELS = (WALL, CHAIR, UNUSED)


def label_maps() -> dict[str, np.ndarray]:
    """Noise, a ring with a spot in its hole, and nothing."""
    rng = np.random.default_rng(0)
    ring = np.zeros((9, 12), dtype=np.uint16)
    ring[1:8, 2:10] = 300
    ring[2:7, 3:9] = 0
    ring[4, 5] = 300
    return {
        "noise.jpg": rng.choice(np.array([0, 2, 300], dtype=np.uint16), (13, 17)),
        "sub/ring.jpg": ring,
        "empty.jpg": np.zeros((5, 4), dtype=np.uint16),
    }


@pytest.mark.parametrize("polygons", [False, True])
def test_pycocotools_loads_the_same_pixels(tmp_path: Path, polygons: bool) -> None:
    maps = label_maps()
    write_coco(tmp_path / "a.json", maps.items(), LABELS, polygons=polygons)
    coco = COCO(str(tmp_path / "a.json"))
    assert {entry["file_name"]: (entry["height"], entry["width"]) for entry in coco.imgs.values()} == {
        name: ids.shape for name, ids in maps.items()
    }
    assert len(coco.anns) == 3
    for annotation in coco.anns.values():
        ids = maps[coco.imgs[annotation["image_id"]]["file_name"]]
        mask = ids == annotation["category_id"]
        assert (coco.annToMask(annotation) == mask).all()
        assert annotation["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_run_length_area_is_the_pixel_count(tmp_path: Path) -> None:
    maps = label_maps()
    write_coco(tmp_path / "a.json", maps.items(), LABELS)
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        assert isinstance(annotation["segmentation"]["counts"], str)
        pixels = (maps[names[annotation["image_id"]]] == annotation["category_id"]).sum()
        assert coco_mask.area(annotation["segmentation"]) == annotation["area"] == pixels > 0


def test_layout_is_what_annotation_tools_insist_on(tmp_path: Path) -> None:
    write_coco(tmp_path / "a.json", label_maps().items(), LABELS)
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert set(content) == {"info", "licenses", "images", "categories", "annotations"}
    assert content["categories"][0] == {"id": 300, "name": "Wand ä", "supercategory": "", "color": [1, 2, 3]}
    assert [annotation["id"] for annotation in content["annotations"]] == [1, 2, 3]
    assert {annotation["iscrowd"] for annotation in content["annotations"]} == {1}
    for keys in ({"instances": True}, {"polygons": True}):
        write_coco(tmp_path / "b.json", label_maps().items(), LABELS, overwrite=True, **keys)
        annotations = json.loads((tmp_path / "b.json").read_text())["annotations"]
        assert {annotation["iscrowd"] for annotation in annotations} == {0}


def test_file_in_the_way_is_found_before_the_first_image(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("mine")

    def never() -> Iterator[tuple[str, np.ndarray]]:
        raise AssertionError
        yield

    with pytest.raises(UserError, match=r"a\.json is there already"):
        write_coco(tmp_path / "a.json", never(), LABELS)
    with pytest.raises(UserError, match=r"b\.json cannot be written"):
        write_coco(tmp_path / "a.json" / "b.json", never(), LABELS)
    assert (tmp_path / "a.json").read_text() == "mine"


def test_maps_are_let_go_while_they_stream(tmp_path: Path) -> None:
    import weakref

    alive: list[weakref.ref] = []

    def images() -> Iterator[tuple[str, np.ndarray]]:
        for number in range(6):
            ids = np.full((4, 4), 2, dtype=np.uint8)
            alive.append(weakref.ref(ids))
            yield f"{number}.jpg", ids
            del ids
            # The writer's own variable still holds the last one.
            assert sum(ref() is not None for ref in alive) <= 1

    write_coco(tmp_path / "a.json", images(), LABELS)
    assert len(alive) == 6


@pytest.mark.parametrize("polygons", [False, True])
def test_reading_gives_labels_and_pixels_back(tmp_path: Path, polygons: bool) -> None:
    maps = label_maps()
    write_coco(tmp_path / "a.json", maps.items(), LABELS, polygons=polygons)
    source = read_coco(tmp_path / "a.json")
    assert [(found.id, found.name, found.colour) for found in source.labels] == [
        (label.id, label.name, label.colour) for label in LABELS
    ]
    images = list(source.images)
    assert [image.name for image in images] == ["noise.jpg", "sub/ring.jpg"]  # Those with regions.
    for image in images:
        ids = np.zeros(image.size, dtype=np.uint16)
        for region in image.regions:
            assert region.mask is not None
            ids[region.mask] = region.label.id or 0
        assert (ids == maps[image.name]).all()


def test_polygons_hold_exactly_the_pixels_of_the_mask() -> None:
    rng = np.random.default_rng(1)
    for density in np.linspace(0.02, 0.98, 60):
        mask = rng.random(tuple(rng.integers(1, 24, 2))) < density
        mask.flat[rng.integers(mask.size)] = True
        polygons = [ring.flatten().tolist() for ring in outlines(mask)]
        assert (fill_polygons(polygons, mask.shape) == mask).all()
    assert outlines(np.zeros((3, 3), dtype=bool)) == []


def test_run_lengths_agree_with_pycocotools() -> None:
    rng = np.random.default_rng(2)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = np.asfortranarray(rng.random((31, 47)) < density)
        counts = coco_mask.encode(mask.astype(np.uint8, order="F"))["counts"]
        assert isinstance(counts, bytes)
        assert (mask_of_runs(counts.decode(), 31, 47) == mask).all()
    assert mask_of_runs([1, 2, 3], 3, 2).tolist() == [[False, False], [True, False], [True, False]]


@pytest.mark.parametrize(
    "counts", [[1, 2], [7], [], "", [1.0, 5], [-1, 7], [True, 5], None, "~~", "P", "é", "oooooooooooooooooooooo", "11"]
)
def test_damaged_run_lengths_are_refused(counts: Any) -> None:
    with pytest.raises(ValueError, match="counts"):
        mask_of_runs(counts, 3, 2)


def coco(path: Path, *annotations: dict[str, Any], **keys: Any) -> Path:
    """A COCO file with one image of 8x6 pixels (width x height) and one category."""
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 3, **entry} for entry in annotations],
        **keys,
    }
    path.write_text(json.dumps(content))
    return path


def test_uncompressed_runs_polygons_and_boxes_of_other_tools(tmp_path: Path) -> None:
    path = coco(
        tmp_path / "a.json",
        {"id": 1, "segmentation": {"size": [6, 8], "counts": [1, 2, 45]}, "iscrowd": 1},
        {"id": 2, "segmentation": [[1, 1, 3, 1, 3, 2, 1, 2], [5, 5, 7, 5, 7, 6, 5, 6]]},
        {"id": 3, "segmentation": [], "bbox": [2, 1, 3, 2]},
        {"id": 4, "bbox": [0.6, 0.6, 1, 1]},
    )
    (image,) = read_coco(path).images
    first, second, third, fourth = image.regions
    assert first.mask is not None
    assert second.mask is not None
    assert np.argwhere(first.mask).tolist() == [[1, 0], [2, 0]]
    assert np.argwhere(second.mask).tolist() == [[1, 1], [1, 2], [5, 5], [5, 6]]
    assert (third.kind, third.points) == ("box", ((2, 1), (4, 2)))
    assert fourth.points == ((1, 1), (1, 1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"category_id": 4}, r"annotation 7 has category 4, expected one of \[3\]"),
        ({"image_id": 2}, "annotation 7 is of image 2, which is not in 'images'"),
        ({"image_id": None}, "expected a list 'annotations' .* entry 0 is"),
        ({"segmentation": {"size": [8, 6], "counts": [48]}}, r"its size is \[8, 6\], its image's \[6, 8\]"),
        ({"segmentation": {"size": [6, 8], "counts": [1, 2]}}, "counts hold 3 pixels, the image 48"),
        ({"segmentation": {"size": [6, 8]}}, "annotation 7 cannot be read"),
        ({"segmentation": [[0, 0, 1, 1]]}, "at least three pairs"),
        ({"segmentation": [[0, 0, 1, 1, 2]]}, "at least three pairs"),
        ({"segmentation": [[0, 0, 1e12, 1, 2, 2]]}, "far out of the image of 8x6"),
        ({"segmentation": [[0, 0, None, 1, 2, 2]]}, "annotation 7 cannot be read"),
        ({"segmentation": "x"}, "annotation 7 cannot be read"),
        ({}, "annotation 7 cannot be read"),
        ({"bbox": [8, 0, 2, 2]}, "outside of the image of 8x6"),
    ],
)
def test_damaged_annotations_are_one_line(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    path = coco(tmp_path / "a.json", bad)
    with pytest.raises(UserError, match=r"a\.json: .*" + message) as caught:
        [tuple(image.regions) for image in read_coco(path).images]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"images": None},
            "expected a list 'images' of COCO entries with id, width, height, file_name, found NoneType",
        ),
        ({"images": [{"id": 1, "width": 8, "height": 6}]}, "entry 0 is"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 0}]}, "image a.jpg is 8x0 pixels"),
        ({"categories": [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]}, "two entries of 'categories'"),
        ({"categories": [{"id": 3}]}, "entry 0 is"),
        ({"annotations": {}}, "found dict"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_coco(coco(tmp_path / "a.json", **keys))
