"""Seeds from label files and as label files: nothing changes on the way, and what does not fit is one line."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jacobinerf_ns.annotations.formats import seeds_io
from jacobinerf_ns.annotations.formats.coco import write_coco
from jacobinerf_ns.annotations.formats.labelme import write_labelme
from jacobinerf_ns.annotations.formats.png import write_index_png, write_legend
from jacobinerf_ns.annotations.formats.registry import SeedFormatName
from jacobinerf_ns.annotations.formats.seeds_io import export_seeds, import_seeds
from jacobinerf_ns.annotations.rasterise import to_camera
from jacobinerf_ns.annotations.schema import Annotations, Box, Click, InImage, Label, Mask, Scribble, Seed, SpaceClick
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.index_maps import read_label_map

LABELS = (
    Label(id=7, name="chair", colour=(230, 159, 0)),
    Label(id=2, name="Wand ä", colour=(1, 2, 3)),
    Label(id=300, name="lamp", colour=(9, 9, 200)),
)
KNOWN = {"0001.jpg": (9, 14), "0002.jpg": (9, 14), "left/7.jpg": (5, 6), "right/7.jpg": (5, 6)}


def pixels_of(seed: InImage, folder: Path) -> np.ndarray:
    """What the project's rasteriser makes of masks, boxes and clicks."""
    mask = np.zeros((seed.height, seed.width), dtype=bool)
    if isinstance(seed, Mask):
        return read_label_map(folder / seed.file, mask.shape).numpy() == seed.value
    if isinstance(seed, Box):
        mask[seed.corner[1] : seed.opposite[1] + 1, seed.corner[0] : seed.opposite[0] + 1] = True
    elif isinstance(seed, Click):
        mask[seed.pixel[1], seed.pixel[0]] = True
    return mask


def annotated(folder: Path) -> Annotations:
    """Every label in several images, one of them noise; values in the files that are not the labels' ids."""
    rng = np.random.default_rng(3)
    seeds: list[Seed] = []
    for index, (name, size) in enumerate(KNOWN.items()):
        values = rng.choice(np.array([0, 1, 2, 3], dtype=np.uint8), size)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(values).save(folder / "masks" / f"{index}.png")
        seeds += [
            Mask(label=label.id, image=name, width=size[1], height=size[0], file=f"masks/{index}.png", value=value)
            for value, label in enumerate(LABELS, start=1)
        ]
    return Annotations(labels=LABELS, seeds=tuple(seeds))


def pixels(annotations: Annotations, folder: Path) -> dict[tuple[str, int], list]:
    seeds = [seed for seed in annotations.seeds if isinstance(seed, InImage)]
    return {(seed.image, seed.label): pixels_of(seed, folder).tolist() for seed in seeds}


@pytest.mark.parametrize("format", ["png", "coco", "labelme"])
def test_round_trip_changes_no_label_and_no_pixel(tmp_path: Path, format: SeedFormatName) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    annotations = annotated(before)
    target = tmp_path / ("out.json" if format == "coco" else "out")
    written = export_seeds(annotations, lambda seed: pixels_of(seed, before), target, format)
    again = import_seeds(Annotations(), target, after, KNOWN)
    assert again.labels == annotations.labels
    assert pixels(again, after) == pixels(annotations, before)
    assert all(isinstance(seed, Mask) and not seed.negative for seed in again.seeds)
    names = [path.relative_to(tmp_path).as_posix() for path in written]
    suffix = "png" if format == "png" else "json"
    expected = [f"out/{stem}.{suffix}" for stem in ("0001", "0002", "left/7", "right/7")]
    assert names == (["out.json"] if format == "coco" else expected)


def test_coco_areas_of_seeds_are_their_pixel_counts(tmp_path: Path) -> None:
    annotations = annotated(tmp_path)
    export_seeds(annotations, lambda seed: pixels_of(seed, tmp_path), tmp_path / "out.json", "coco")
    coco = COCO(str(tmp_path / "out.json"))
    expected = {key: int(np.sum(mask)) for key, mask in pixels(annotations, tmp_path).items()}
    found = {
        (coco.imgs[entry["image_id"]]["file_name"], entry["category_id"]): int(
            coco_mask.area(cast(Any, entry["segmentation"]))
        )
        for entry in coco.anns.values()
    }
    assert found == expected
    assert {key: coco.annToMask(coco.anns[index + 1]).sum() for index, key in enumerate(found)} == expected


def test_importing_twice_adds_nothing(tmp_path: Path) -> None:
    annotations = annotated(tmp_path)
    export_seeds(annotations, lambda seed: pixels_of(seed, tmp_path), tmp_path / "out", "png")
    once = import_seeds(Annotations(), tmp_path / "out", tmp_path / "run", KNOWN)
    files = sorted((tmp_path / "run").rglob("*.png"))
    assert import_seeds(once, tmp_path / "out", tmp_path / "run", KNOWN) == once
    assert sorted((tmp_path / "run").rglob("*.png")) == files


def test_labels_join_by_name_and_ids_make_way(tmp_path: Path) -> None:
    ids = np.array([[7, 2, 300]])
    write_coco(tmp_path / "a.json", [("a.jpg", ids)], LABELS)
    chair = Label(id=1, name="chair", colour=(5, 5, 5))
    other = Label(id=2, name="floor", colour=(6, 6, 6))
    annotations = import_seeds(Annotations(labels=(chair, other)), tmp_path / "a.json", tmp_path, {"a.jpg": (1, 3)})
    assert annotations.labels[:2] == (chair, other)
    assert [(label.name, label.colour) for label in annotations.labels[2:]] == [
        ("Wand ä", (1, 2, 3)),
        ("lamp", (9, 9, 200)),
    ]
    wall, lamp = annotations.labels[2:]
    assert lamp.id == 300
    assert wall.id not in (1, 2, 7, 300)
    assert pixels(annotations, tmp_path) == {
        ("a.jpg", 1): [[True, False, False]],
        ("a.jpg", wall.id): [[False, True, False]],
        ("a.jpg", 300): [[False, False, True]],
    }


def test_an_id_that_cannot_be_kept_takes_none_that_is_wanted(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}, {"id": 10**9, "name": " b "}, {"id": 2, "name": "c"}]
    boxes = [{"image_id": 1, "category_id": number, "bbox": [0, 0, 1, 1]} for number in (0, 10**9, 1)]
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 3, "height": 2}], "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps({**content, "annotations": boxes}))
    annotations = import_seeds(Annotations(), tmp_path / "a.json", tmp_path, {"a.jpg": (2, 3)})
    assert [(label.id, label.name) for label in annotations.labels] == [(3, "a"), (1, "b")]
    assert [seed.label for seed in annotations.seeds] == [3, 1]


def test_shapes_of_labelme_become_seeds_of_their_kind(tmp_path: Path) -> None:
    shapes = [
        {"label": "cat", "shape_type": "point", "points": [[3.5, 2.5]]},
        {"label": "dog", "shape_type": "rectangle", "points": [[1, 1], [4, 3]]},
        {"label": "cat", "shape_type": "line", "points": [[0, 0], [5.9, 4.9]]},
        {"label": "dog", "shape_type": "polygon", "points": [[0, 0], [3, 0], [3, 2], [0, 2]]},
        {"label": "cat", "shape_type": "polygon", "points": [[2, 0], [6, 0], [6, 1], [2, 1]]},
    ]
    content = {"shapes": shapes, "imagePath": "..\\left\\7.jpg", "imageHeight": 5, "imageWidth": 6}
    (tmp_path / "7.json").write_text(json.dumps(content))
    annotations = import_seeds(Annotations(), tmp_path / "7.json", tmp_path, KNOWN)
    cat, dog = annotations.labels
    assert (cat.name, cat.id, dog.name, dog.id) == ("cat", 1, "dog", 2)
    assert cat.colour != dog.colour
    where: dict[str, Any] = {"image": "left/7.jpg", "width": 6, "height": 5}
    assert list(annotations.seeds[2:]) == [
        Click(label=1, pixel=(3, 2), **where),
        Box(label=2, corner=(1, 1), opposite=(3, 2), **where),
        Scribble(label=1, points=((0, 0), (5, 4)), **where),
    ]
    # Masks that overlap: the later one wins.
    first, second = annotations.seeds[:2]
    assert isinstance(first, Mask)
    assert isinstance(second, Mask)
    assert pixels_of(first, tmp_path)[0].tolist() == [False, False, True, True, True, True]
    assert pixels_of(second, tmp_path)[:2].tolist() == [[True, True] + [False] * 4, [True] * 3 + [False] * 3]


def test_index_png_without_legend_takes_names_and_colours_it_can_find(tmp_path: Path) -> None:
    write_index_png(tmp_path / "0001.png", np.full(KNOWN["0001.jpg"], 2), LABELS[1:2])
    annotations = import_seeds(Annotations(), tmp_path / "0001.png", tmp_path / "run", KNOWN)
    assert annotations.labels == (Label(id=2, name="label 2", colour=(1, 2, 3)),)
    annotations = import_seeds(Annotations(labels=LABELS), tmp_path / "0001.png", tmp_path / "run", KNOWN)
    assert annotations.labels == LABELS
    assert annotations.seeds[0].label == 2


def test_legend_beside_the_folder_counts_and_must_name_all(tmp_path: Path) -> None:
    write_index_png(tmp_path / "maps" / "0001.png", np.full(KNOWN["0001.jpg"], 2), LABELS)
    write_legend(tmp_path, LABELS)
    annotations = import_seeds(Annotations(), tmp_path / "maps", tmp_path / "run", KNOWN)
    assert annotations.labels == LABELS[1:2]
    write_legend(tmp_path / "maps", LABELS[:1])
    with pytest.raises(UserError, match=r"0001\.png has the id 2, which classes\.json does not name"):
        import_seeds(Annotations(), tmp_path / "maps", tmp_path / "run", KNOWN)


def test_photos_beside_labelme_files_are_no_label_maps(tmp_path: Path) -> None:
    Image.new("RGB", (14, 9)).save(tmp_path / "0001.png")
    write_labelme(tmp_path / "0001.json", "0001.png", np.full((9, 14), 7), LABELS)
    (tmp_path / "notes.json").write_text("[1, 2]")
    assert len(import_seeds(Annotations(), tmp_path, tmp_path / "run", {"0001.png": (9, 14)}).seeds) == 1
    (tmp_path / "0001.json").unlink()
    with pytest.raises(UserError, match=r"0001\.png is a RGB image, expected one 8- or 16-bit index"):
        import_seeds(Annotations(), tmp_path, tmp_path / "run", {"0001.png": (9, 14)})


def test_coco_file_is_found_in_its_folder(tmp_path: Path) -> None:
    write_coco(tmp_path / "a.json", [("0001.jpg", np.full((9, 14), 7))], LABELS)
    assert len(import_seeds(Annotations(), tmp_path, tmp_path / "run", KNOWN).seeds) == 1
    write_coco(tmp_path / "b.json", [("0001.jpg", np.full((9, 14), 7))], LABELS)
    with pytest.raises(UserError, match=r"holds 2 COCO files \(a\.json, b\.json"):
        import_seeds(Annotations(), tmp_path, tmp_path / "run", KNOWN)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "no such file or folder"),
        ("a.txt", "", r"a\.txt is a \.txt file: expected an index PNG"),
        ("a.json", "{}", "neither a COCO nor a LabelMe file"),
        ("a.json", "{", "is not valid JSON"),
        ("0001.png", "no picture", r"0001\.png cannot be read"),
    ],
)
def test_sources_that_are_no_label_file(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        import_seeds(Annotations(), tmp_path / name, tmp_path, KNOWN)


def test_an_empty_folder_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no label file"):
        import_seeds(Annotations(), tmp_path, tmp_path, KNOWN)
    write_index_png(tmp_path / "0001.png", np.zeros(KNOWN["0001.jpg"], dtype=int), LABELS)
    with pytest.raises(UserError, match="has no label at all"):
        import_seeds(Annotations(), tmp_path / "0001.png", tmp_path, KNOWN)


@pytest.mark.parametrize("format", ["png", "coco", "labelme"])
def test_images_of_another_size_or_name_leave_nothing_behind(tmp_path: Path, format: SeedFormatName) -> None:
    (tmp_path / "before").mkdir()
    annotations = annotated(tmp_path / "before")
    target = tmp_path / ("out.json" if format == "coco" else "out")
    export_seeds(annotations, lambda seed: pixels_of(seed, tmp_path / "before"), target, format)
    for known, message in (
        ({**KNOWN, "0002.jpg": (18, 28)}, "14x9 pixels .*28x18"),
        ({name: size for name, size in KNOWN.items() if name != "0002.jpg"}, "no image 0002.*closest is"),
        ({}, r"no image 0001.*it has 0\)"),
    ):
        with pytest.raises(UserError, match=message):
            import_seeds(Annotations(), target, tmp_path / "run", known)
        assert not list((tmp_path / "run").rglob("*.png"))


def test_a_folder_that_takes_no_mask(tmp_path: Path) -> None:
    write_coco(tmp_path / "a.json", [("0001.jpg", np.full((9, 14), 7))], LABELS)
    (tmp_path / "masks").write_text("a file")
    with pytest.raises(UserError, match=r"masks/0001-.* cannot be written"):
        import_seeds(Annotations(), tmp_path / "a.json", tmp_path, KNOWN)


def test_a_mask_that_somebody_changed_is_kept(tmp_path: Path) -> None:
    write_coco(tmp_path / "a.json", [("0001.jpg", np.full((9, 14), 7))], LABELS)
    import_seeds(Annotations(), tmp_path / "a.json", tmp_path, KNOWN)
    (file,) = (tmp_path / "masks").iterdir()
    write_index_png(file, np.zeros((9, 14), dtype=int), LABELS, overwrite=True)
    with pytest.raises(UserError, match="is there already and holds something else"):
        import_seeds(Annotations(), tmp_path / "a.json", tmp_path, KNOWN)
    assert not read_label_map(file, (9, 14)).any()


def test_export_takes_positive_seeds_at_the_original_size_and_the_later_wins(tmp_path: Path) -> None:
    where: dict[str, Any] = {"image": "a.jpg", "width": 3, "height": 2}
    seeds = (
        Box(label=7, corner=(0, 0), opposite=(1, 0), **where),
        Click(label=2, pixel=(1, 0), **where),
        Click(label=2, pixel=(2, 1), negative=True, **where),
        SpaceClick(label=2, origin=(0, 0, 0), direction=(0, 0, 1)),
        Click(label=300, image="a.jpg", width=6, height=4, pixel=(5, 3)),
    )
    annotations = Annotations(labels=LABELS, seeds=seeds)
    for known, size in ((None, (4, 6)), ({"a.jpg": (4, 6)}, (4, 6)), ({"a.jpg": (2, 3)}, (2, 3))):
        (path,) = export_seeds(
            annotations, lambda seed: pixels_of(seed, tmp_path), tmp_path / "out", "png", known, overwrite=True
        )
        expected = np.array([[7, 2, 0], [0, 0, 0]])
        if size == (4, 6):
            expected = expected.repeat(2, axis=0).repeat(2, axis=1)
            expected[3, 5] = 300
        elif size == (2, 3):
            expected[1, 2] = 300  # The centre of the small pixel (2, 1) is the corner of the large pixel (5, 3).
        assert read_label_map(path, size).tolist() == expected.tolist()


def test_export_from_a_smaller_copy_takes_the_pixels_that_its_rays_mean(tmp_path: Path) -> None:
    """Copies leave out what does not fill a pixel at the far edge: 499 rows of 4 pixels each cover 1996 of 1999."""
    where: dict[str, Any] = {"image": "a.jpg", "width": 3, "height": 499}
    rows = (0, 250, 400, 498)
    seeds = tuple(Box(label=7, corner=(0, row), opposite=(2, row), **where) for row in rows)
    annotations = Annotations(labels=LABELS, seeds=seeds)
    (path,) = export_seeds(
        annotations, lambda seed: pixels_of(seed, tmp_path), tmp_path / "out", "png", {"a.jpg": (1999, 12)}
    )
    covered = read_label_map(path, (1999, 12)).numpy()[:, 0] == 7
    pixels = np.stack([np.zeros(1999, dtype=int), np.arange(1999)], axis=1)
    assert covered.tolist() == np.isin(to_camera(pixels, (12, 1999), (3, 499))[:, 1], rows).tolist()
    assert np.flatnonzero(covered)[4:8].tolist() == [1000, 1001, 1002, 1003]


def test_export_overwrites_nothing_and_needs_a_seed(tmp_path: Path) -> None:
    annotations = annotated(tmp_path)
    for format, target in (("png", tmp_path / "out"), ("labelme", tmp_path / "lm"), ("coco", tmp_path / "out.json")):

        def export(overwrite: bool = False, format: Any = format, target: Path = target) -> list[Path]:
            return export_seeds(
                annotations, lambda seed: pixels_of(seed, tmp_path), target, format, overwrite=overwrite
            )

        first = export()[-1]
        before = first.read_bytes()
        with pytest.raises(UserError, match="is there already"):
            export()
        assert first.read_bytes() == before
        export(overwrite=True)
    with pytest.raises(UserError, match="no positive seed in any image"):
        export_seeds(Annotations(), lambda seed: pixels_of(seed, tmp_path), tmp_path / "x", "png")
    assert seeds_io.MASK_FOLDER == "masks"
