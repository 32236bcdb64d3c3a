"""`jacobinerf propagate`: label maps of a tiny run's photos, their formats, resuming, and what is refused."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from nerfstudio.configs.method_configs import method_configs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.annotations.formats.base import FileLabel
from jacobinerf_ns.annotations.formats.coco import read_coco
from jacobinerf_ns.annotations.formats.labelme import read_labelme
from jacobinerf_ns.annotations.formats.png import read_legend
from jacobinerf_ns.annotations.schema import Annotations, Box, Click, Edit, Label, Mask, ViewSettings
from jacobinerf_ns.annotations.store import write_annotations
from jacobinerf_ns.cli.propagate import INTERRUPTED, Propagate
from jacobinerf_ns.core.propagation import PAPER_PROPAGATION, PropagationConfig
from jacobinerf_ns.datamanager import FeatureDataManagerConfig
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.grids import resample
from jacobinerf_ns.files.index_maps import read_label_map
from jacobinerf_ns.files.resumable import claim_folder
from jacobinerf_ns.run.labelled_views import Labels
from jacobinerf_ns.run.opened import open_run
from jacobinerf_ns.run.photos import Photo, list_photos
from jacobinerf_ns.tasks.masks import choose_annotations, draw_overlay, plan_files, propagate
from jacobinerf_ns.tasks.settings import PropagateSettings

assert method_configs  # nerfstudio's own configs have to be imported before any plugin's

WALL = Label(id=3, name="wall", colour=(230, 159, 0))
FLOOR = Label(id=7, name="floor", colour=(86, 180, 233))
LAMP = Label(id=9, name="lamp", colour=(0, 158, 115))
WIDTH, HEIGHT = 24, 18


def as_found(label: Label) -> FileLabel:
    return FileLabel(label.name, label.id, label.colour)


def click(label: Label, image: str, pixel: tuple[int, int], negative: bool = False) -> Click:
    return Click(label=label.id, image=image, pixel=pixel, negative=negative, width=WIDTH, height=HEIGHT)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on photos at half their size, with an annotation file beside its config.yml."""
    folder = tmp_path_factory.mktemp("propagate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        config = tiny_config(tiny_capture(folder / "capture"), folder / "runs", steps=120)
        config.pipeline.datamanager.dataparser = JacobiNeRFDataParserConfig(downscale_factor=2)
        trainer = start(config)
        trainer.train()
        image = trainer.pipeline.datamanager.train_dataparser_outputs.image_filenames[0].name
        seeds = (click(WALL, image, (3, 3)), click(FLOOR, image, (12, 16)), click(WALL, image, (20, 5)))
        view = ViewSettings(propagation=PropagationConfig(threshold=0.5))
        write_annotations(
            trainer.base_dir / "annotations.json", Annotations(labels=(WALL, FLOOR), seeds=seeds, view=view)
        )
        yield trainer.base_dir / "config.yml"


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry with every photo that is rendered."""
    views, plain = [], Labels.render

    def counted(labels: Labels, view):
        views.append(len(view))
        return plain(labels, view)

    monkeypatch.setattr(Labels, "render", counted)
    return views


def own_annotations(config_path: Path) -> Annotations:
    return Annotations.model_validate_json((config_path.parent / "annotations.json").read_text())


def clicked_image(config_path: Path) -> str:
    seed = own_annotations(config_path).seeds[0]
    assert isinstance(seed, Click)
    return seed.image


def visible(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def png(path: Path) -> np.ndarray:
    return read_label_map(path, (18, 24)).numpy()


def shown_masks(config_path: Path, full_resolution: bool = False) -> dict[str, np.ndarray]:
    """Label maps by photo name, put together from the `mask_` outputs that nerfstudio shows."""
    pipeline = open_run(config_path).pipeline
    maps = {}
    for photo in list_photos(pipeline.datamanager, "all", full_resolution):
        outputs = pipeline.model.get_outputs_for_camera(photo.camera)
        maps[photo.name] = sum(
            label.id * outputs[f"mask_{label.name}"][..., 0].numpy().astype(int) for label in (WALL, FLOOR)
        )
    return maps


def test_index_pngs_are_what_the_model_shows(config_path: Path, tmp_path: Path):
    result = propagate(config_path, tmp_path / "out")
    maps = [f"000{number}.png" for number in range(6)]
    assert visible(result.folder) == [*maps, "classes.json", "propagation.json"]
    assert (result.rendered, result.there_already) == (6, 0)
    shown = shown_masks(config_path)
    assert sorted(shown) == [f"images/{name}" for name in maps]
    counted = np.zeros(10, dtype=int)
    for name in maps:
        small, ids = shown[f"images/{name}"], png(result.folder / name)
        assert small.shape == (9, 12)
        np.testing.assert_array_equal(ids, small.repeat(2, axis=0).repeat(2, axis=1))
        counted += np.bincount(ids.ravel(), minlength=10)
    assert min(counted[3], counted[7]) > 100
    assert result.share(3) == pytest.approx(counted[3] / counted.sum())
    assert result.share(0) == pytest.approx(counted[0] / counted.sum())
    with Image.open(result.folder / maps[0]) as picture:
        assert (picture.mode, picture.size) == ("P", (24, 18))
    assert read_legend(result.folder / "classes.json") == tuple(map(as_found, (WALL, FLOOR)))
    assert result.photos[3] == sum(3 in png(result.folder / name) for name in maps)


def test_full_resolution_renders_the_original_size(config_path: Path, tmp_path: Path):
    result = propagate(config_path, tmp_path / "out", PropagateSettings(split="test", full_resolution=True))
    shown = shown_masks(config_path, full_resolution=True)
    names = [name for name in visible(result.folder) if name.endswith(".png")]
    assert len(names) == 2
    for name in names:
        assert shown[f"images/{name}"].shape == (18, 24)
        np.testing.assert_array_equal(png(result.folder / name), shown[f"images/{name}"])
    small = propagate(config_path, tmp_path / "small", PropagateSettings(split="test"))
    assert any((png(small.folder / name) != png(result.folder / name)).any() for name in names)


def test_splits_add_up(config_path: Path, tmp_path: Path):
    data = open_run(config_path).pipeline.datamanager
    names = {split: [photo.name for photo in list_photos(data, split)] for split in ("train", "test", "all")}
    assert (len(names["train"]), len(names["test"])) == (4, 2)
    assert names["all"] == names["train"] + names["test"]
    data.eval_dataset, data.test_split = data.train_dataset, "train"
    assert [photo.name for photo in list_photos(data, "all")] == names["train"]
    photo = list_photos(data, "train")[0]
    assert photo.size == (18, 24)
    assert photo.path.is_file()
    assert photo.trained != photo.path
    assert len(photo.truth) == 2


def test_stock_dataparsers_have_originals_too(tmp_path: Path):
    capture = tiny_capture(tmp_path / "capture")
    (capture / "images_2").mkdir()
    for path in (capture / "images").iterdir():
        with Image.open(path) as picture:
            picture.resize((12, 9)).save(capture / "images_2" / path.name)
    parser = NerfstudioDataParserConfig(data=capture, downscale_factor=2)
    data = FeatureDataManagerConfig(dataparser=parser).setup(device="cpu", test_mode="test")
    small, large = (list_photos(data, "test", full_resolution=full) for full in (False, True))
    assert [photo.name for photo in small] == [f"images/{photo.path.name}" for photo in small]
    assert {(photo.size, photo.truth, int(photo.camera.width[0])) for photo in small} == {((18, 24), (), 12)}
    assert {(photo.size, photo.truth, int(photo.camera.width[0])) for photo in large} == {((18, 24), (), 24)}
    assert {photo.trained.parent.name for photo in small} == {"images_2"}


def test_no_photo_is_loaded_where_none_is_needed(config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nerfstudio.data.datasets.base_dataset import InputDataset

    def refuse(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(InputDataset, "get_numpy_image", refuse)
    assert propagate(config_path, tmp_path / "out", PropagateSettings(split="train")).rendered == 4


def test_coco_is_one_file(config_path: Path, tmp_path: Path):
    reference = propagate(config_path, tmp_path / "png").folder
    result = propagate(config_path, tmp_path / "coco", PropagateSettings(format="coco"))
    maps = [f"label_maps/000{number}.png" for number in range(6)]
    assert visible(result.folder) == ["annotations.coco.json", "classes.json", *maps, "propagation.json"]
    content = json.loads((result.folder / "annotations.coco.json").read_text())
    assert sorted(image["file_name"] for image in content["images"]) == [f"images/000{n}.png" for n in range(6)]
    assert {(image["width"], image["height"]) for image in content["images"]} == {(24, 18)}
    ids = {"wall": 3, "floor": 7}
    for image in read_coco(result.folder / "annotations.coco.json").images:
        whole = np.zeros(image.size, dtype=int)
        for region in image.regions:
            whole[region.mask] = ids[region.label.name]
        np.testing.assert_array_equal(whole, png(reference / Path(image.name).name))


def test_labelme_is_a_file_per_photo(config_path: Path, tmp_path: Path):
    reference = propagate(config_path, tmp_path / "png").folder
    folder = propagate(config_path, tmp_path / "labelme", PropagateSettings(format="labelme", split="train")).folder
    jsons = [path for path in folder.glob("*.json") if path.stem.isdigit()]
    assert len(jsons) == 4
    for path in jsons:
        image = read_labelme(path)
        assert image.size == (18, 24)
        assert (folder / image.name).resolve().is_file()
        ids = png(reference / f"{path.stem}.png")
        masks = {region.label.name: region.mask for region in image.regions}
        assert set(masks) == {label.name for label in (WALL, FLOOR) if label.id in ids}
        for label in (WALL, FLOOR):
            if label.name in masks:
                np.testing.assert_array_equal(masks[label.name], ids == label.id)


def test_only_what_is_missing_is_made(config_path: Path, tmp_path: Path, rendered: list[int]):
    folder = propagate(config_path, tmp_path / "out").folder
    before = {name: (folder / name).stat().st_mtime_ns for name in visible(folder)}
    lost = png(folder / "0002.png")
    (folder / "0002.png").unlink()
    rendered.clear()
    again = propagate(config_path, folder)
    assert len(rendered) == again.rendered == 1
    assert again.there_already == 5
    np.testing.assert_array_equal(png(folder / "0002.png"), lost)
    after = {name: (folder / name).stat().st_mtime_ns for name in visible(folder)}
    assert {name for name in before if before[name] != after[name]} == {"0002.png"}
    assert again.pixels.total() == 6 * 18 * 24


def test_companions_are_made_without_rendering_and_never_replaced(
    config_path: Path, tmp_path: Path, rendered: list[int]
):
    settings = PropagateSettings(format="labelme", split="test")
    folder = propagate(config_path, tmp_path / "out", settings).folder
    first, second = sorted(path for path in folder.glob("*.json") if path.stem.isdigit())
    first.write_text("corrected by hand")
    second.unlink()
    rendered.clear()
    propagate(config_path, folder, replace(settings, overlays=True))
    assert rendered == []
    assert first.read_text() == "corrected by hand"
    assert read_labelme(second).size == (18, 24)
    assert [name for name in visible(folder) if "overlays" in name] == [
        f"overlays/{p.stem}.jpg" for p in (first, second)
    ]


def test_a_coco_file_is_never_replaced(config_path: Path, tmp_path: Path, rendered: list[int]):
    settings = PropagateSettings(format="coco", split="test")
    folder = propagate(config_path, tmp_path / "out", settings).folder
    rendered.clear()
    (folder / "annotations.coco.json").write_text("corrected by hand")
    propagate(config_path, folder, settings)
    assert (folder / "annotations.coco.json").read_text() == "corrected by hand"
    (folder / "annotations.coco.json").unlink()
    propagate(config_path, folder, settings)
    assert len(list(read_coco(folder / "annotations.coco.json").images)) == 2
    assert rendered == []


def test_overlays_are_the_photos_under_the_labels_colours(tmp_path: Path):
    Image.new("RGB", (2, 1), (100, 0, 0)).save(tmp_path / "1.png")
    photo = Photo("1.png", tmp_path / "gone.png", tmp_path / "1.png", (1, 2), camera=None, truth=())  # type: ignore
    pixels = np.asarray(draw_overlay(photo, np.array([[0, 3]]), [WALL]))
    assert pixels.tolist() == [[[100, 0, 0], [165, 80, 0]]]
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png cannot be read .* leave --overlays out"):
        draw_overlay(photo, np.array([[0, 3]]), [WALL])


def changed_weights(path: Path) -> None:
    checkpoint = next((path.parent / "nerfstudio_models").iterdir())
    content = torch.load(checkpoint, weights_only=True)
    content["pipeline"]["_model.field.mlp_head.rgb_layer.bias"] += 0.01
    torch.save(content, checkpoint)


def changed_seeds(path: Path) -> None:
    annotations = own_annotations(path)
    write_annotations(path.parent / "annotations.json", annotations.model_copy(update={"seeds": annotations.seeds[:2]}))


@pytest.fixture
def restored(config_path: Path, tmp_path: Path) -> Iterator[Path]:
    """The run, whose files are put back after the test."""
    kept = tmp_path / "kept"
    shutil.copytree(config_path.parent, kept)
    yield config_path
    shutil.rmtree(config_path.parent)
    shutil.copytree(kept, config_path.parent)


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (changed_weights, {}, "another checkpoint"),
        (changed_seeds, {}, "other annotations or settings"),
        (None, {"split": "train"}, "other photos or cameras and another split"),
        (None, {"format": "labelme"}, "another format"),
        (None, {"labels": ("wall",)}, "another choice of labels"),
        (None, {"void_below": 0.9}, "other annotations or settings"),
        (None, {"full_resolution": True}, "other photos or cameras and another resolution"),
    ],
)
def test_another_result_is_refused_and_replaced_on_request(
    restored: Path,
    tmp_path: Path,
    change: Callable[[Path], None] | None,
    settings: dict,
    words: str,
    rendered: list[int],
):
    folder = propagate(restored, tmp_path / "out").folder
    before = {name: (folder / name).read_bytes() for name in visible(folder)}
    if change is not None:
        change(restored)
    rendered.clear()
    with pytest.raises(UserError, match=rf"out was made from {words}: choose another --output-dir, or --overwrite"):
        propagate(restored, folder, PropagateSettings(**settings))
    assert {name: (folder / name).read_bytes() for name in visible(folder)} == before
    assert rendered == []
    result = propagate(restored, folder, PropagateSettings(**settings, overwrite=True))
    assert result.there_already == 0
    assert result.rendered == len(rendered) == (4 if settings.get("split") else 6)
    listed = json.loads((folder / "propagation.json").read_text())["files"]
    assert visible(folder) == sorted([*listed, "propagation.json"])


def test_the_content_of_mask_files_counts(config_path: Path, tmp_path: Path):
    mask = np.zeros((18, 24), dtype=np.uint8)
    mask[:6] = 1
    Image.fromarray(mask).save(tmp_path / "m.png")
    annotations = own_annotations(config_path)
    seed = Mask(label=FLOOR.id, image=clicked_image(config_path), file="m.png", value=1, width=WIDTH, height=HEIGHT)
    write_annotations(tmp_path / "a.json", annotations.model_copy(update={"seeds": (*annotations.seeds[:2], seed)}))
    settings = PropagateSettings(split="test")
    propagate(config_path, tmp_path / "out", settings, tmp_path / "a.json")
    assert propagate(config_path, tmp_path / "out", settings, tmp_path / "a.json").there_already == 2
    mask[6] = 1
    Image.fromarray(mask).save(tmp_path / "m.png")
    with pytest.raises(UserError, match="made from other annotations"):
        propagate(config_path, tmp_path / "out", settings, tmp_path / "a.json")


def test_foreign_files_are_left_alone(config_path: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").write_text("hidden files do not count")
    (out / "0001.png").write_text("mine")
    (out / "notes.txt").write_text("mine")
    settings = PropagateSettings(split="train")
    with pytest.raises(UserError, match=r"out holds files that this command did not make: choose another"):
        propagate(config_path, out, settings)
    assert (out / "0001.png").read_text() == "mine"
    propagate(config_path, out, replace(settings, overwrite=True))
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "annotations.coco.json").exists() is False


def test_a_capture_is_never_written_into(config_path: Path, tmp_path: Path):
    capture = config_path.parents[4] / "capture"
    before = {name: (capture / name).read_bytes() for name in visible(capture)}
    for folder, words in ((capture, "is a capture"), (capture / "images", "is a folder of the capture")):
        with pytest.raises(UserError, match=rf"{words}.*choose another --output-dir"):
            propagate(config_path, folder, PropagateSettings(overwrite=True))
    with pytest.raises(UserError, match="of the capture"):
        propagate(config_path, capture / "semantics", PropagateSettings(overwrite=True))
    assert {name: (capture / name).read_bytes() for name in visible(capture)} == before


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"version": 2, "made_of": {}, "files": []}', '{"version": 1, "made_of": {}, "files": ["../x"]}'],
)
def test_a_damaged_manifest(tmp_path: Path, content: str):
    outside = tmp_path / "x"
    outside.write_text("not ours")
    manifest = tmp_path / "out" / "propagation.json"
    manifest.parent.mkdir()
    manifest.write_text(content)
    with pytest.raises(UserError, match=r"propagation\.json is damaged or made by another version: choose another"):
        claim_folder(manifest, {"key": 1}, ["1.png"], {"key": "another key"})
    claim_folder(manifest, {"key": 1}, ["1.png"], {"key": "another key"}, overwrite=True)
    assert json.loads(manifest.read_text()) == {"version": 1, "made_of": {"key": 1}, "files": ["1.png"]}
    assert outside.exists()


def test_overwriting_takes_the_old_files_away_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    manifest = tmp_path / "propagation.json"
    claim_folder(manifest, {"key": 1}, ["1.png", "a/2.png"], {"key": "another key"})
    for name in ("1.png", "a/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            claim_folder(manifest, {"key": 2}, ["1.png"], {"key": "another key"}, overwrite=True)
    # Interrupted in between: the old files are gone and the manifest is still the old one.
    assert visible(tmp_path) == ["propagation.json"]
    with pytest.raises(UserError, match="made from another key"):
        claim_folder(manifest, {"key": 2}, ["1.png"], {"key": "another key"})


def test_a_full_disk_costs_one_photo(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rendered: list[int]
):
    plain, label_maps = os.fsync, []

    def fills_up(handle: int) -> None:
        label_maps.append(handle)
        if len(label_maps) > 5:  # the manifest, the legend and three photos
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        with pytest.raises(UserError) as caught:
            propagate(config_path, tmp_path / "out")
    assert "No space left on device" in str(caught.value)
    assert "3 of 6 photos are done and kept: the same command goes on from there" in str(caught.value)
    assert len([name for name in visible(tmp_path / "out") if name.endswith(".png")]) == 3
    rendered.clear()
    again = propagate(config_path, tmp_path / "out")
    assert (again.rendered, again.there_already, len(rendered)) == (3, 3, 3)


def test_a_folder_that_cannot_be_written(config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"file cannot be used as a folder \(Not a directory\)"):
        propagate(config_path, tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be written \(.*\): choose a folder"):
        propagate(config_path, tmp_path / "file", PropagateSettings(overwrite=True))

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("jacobinerf_ns.files.atomic.tempfile.mkstemp", read_only)
    with pytest.raises(UserError, match=r"out/propagation\.json cannot be written \(Read-only file system\): choose a"):
        propagate(config_path, tmp_path / "out")


def test_ctrl_c_leaves_whole_files_only(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    plain, saved = Image.Image.save, []

    def interrupted(image: Image.Image, path: Path, **options: str) -> None:
        saved.append(path)
        if len(saved) == 3:
            Path(path).write_bytes(b"half a file")
            raise KeyboardInterrupt
        plain(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(SystemExit) as exit:
        Propagate(config_path, tmp_path / "out").main()
    assert exit.value.code == INTERRUPTED
    assert "the same command goes on from there" in capsys.readouterr().err
    names = visible(tmp_path / "out")
    assert len(names) == 4
    assert names[2:] == ["classes.json", "propagation.json"]
    for name in names[:2]:
        png(tmp_path / "out" / name)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: Image.fromarray(np.full((18, 24), 5, dtype=np.uint8)).save(path), "has the id 5, which no label"),
        (lambda path: Image.fromarray(np.zeros((3, 4), dtype=np.uint8)).save(path), "4x3 pixels .* expected 24x18"),
        (lambda path: path.write_bytes(path.read_bytes()[:70]), "cannot be read"),
    ],
)
def test_finished_files_are_looked_at(config_path: Path, tmp_path: Path, damage: Callable[[Path], None], words: str):
    settings = PropagateSettings(split="test")
    folder = propagate(config_path, tmp_path / "out", settings).folder
    path = sorted(folder.glob("*.png"))[0]
    damage(path)
    with pytest.raises(UserError, match=rf"{path.name}.* {words}"):
        propagate(config_path, folder, settings)


def test_settings_hold_for_the_run_only(config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own, before = config_path.parent / "annotations.json", (config_path.parent / "annotations.json").read_bytes()
    seen, plain = [], Labels.render

    def watched(labels: Labels, view):
        shown = plain(labels, view)
        seen.append(labels.snapshot)
        # Somebody clicks while the command runs: its later photos must not be of other labels.
        write_annotations(own, own_annotations(config_path).model_copy(update={"labels": (), "seeds": ()}))
        return shown

    settings = PropagateSettings(split="train", refine=2, smooth=0.5, space="3d", void_below=0.25)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Labels, "render", watched)
            result = propagate(config_path, tmp_path / "out", settings)
    finally:
        own.write_bytes(before)
    assert len(seen) == 4
    assert {snapshot.config for snapshot in seen} == {
        PropagationConfig(threshold=0.5, refine=2, smooth=0.5, space="3d", void_below=0.25)
    }
    assert {snapshot.labels for snapshot in seen} == {(WALL, FLOOR)}
    plainly = propagate(config_path, tmp_path / "plain", PropagateSettings(split="train"))
    names = [f"{path.stem}.png" for path in result.folder.glob("0*.png")]
    assert any((png(result.folder / name) != png(plainly.folder / name)).any() for name in names)


def test_labels_that_are_not_asked_for_still_compete(config_path: Path, tmp_path: Path):
    both = propagate(config_path, tmp_path / "both").folder
    alone = propagate(config_path, tmp_path / "alone", PropagateSettings(labels=("floor",)))
    assert read_legend(alone.folder / "classes.json") == (as_found(FLOOR),)
    for number in range(6):
        ids = png(both / f"000{number}.png")
        np.testing.assert_array_equal(png(alone.folder / f"000{number}.png"), np.where(ids == FLOOR.id, ids, 0))


def test_edits_and_empty_labels_take_no_part(config_path: Path):
    annotations = own_annotations(config_path)
    edits = (Edit(kind="remove", label=WALL.id),)
    seeds = (*annotations.seeds, click(LAMP, clicked_image(config_path), (1, 1), negative=True))
    more = Annotations(labels=(WALL, LAMP, FLOOR), seeds=seeds, edits=edits, view=annotations.view)
    chosen, written = choose_annotations(more, PropagateSettings(labels=("floor", "wall")))
    assert chosen == annotations
    assert written == (WALL, FLOOR)


def refused(config_path: Path, tmp_path: Path, annotations: Annotations | None, words: str, **settings: object) -> None:
    """Propagating ends with these words, before the model is built and before anything is written."""
    path = tmp_path / "a.json"
    if annotations is not None:
        write_annotations(path, annotations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nerfstudio.pipelines.base_pipeline.VanillaPipelineConfig.setup", None)
        with pytest.raises(UserError, match=words):
            propagate(config_path, tmp_path / "out", PropagateSettings(**settings), path)  # type: ignore
    assert not (tmp_path / "out").exists()


def test_bad_annotations_are_one_line(config_path: Path, tmp_path: Path):
    own = own_annotations(config_path)
    image = clicked_image(config_path)
    refused(config_path, tmp_path, None, r"no annotation file .*a\.json: click first \(jacobinerf annotate")
    refused(config_path, tmp_path, Annotations(), r"a\.json has no label: click first")
    bare = own.model_copy(update={"labels": (*own.labels, LAMP)})
    refused(config_path, tmp_path, bare, r"label 'lamp' has no positive seed: click it .* with --labels")
    against = bare.model_copy(update={"seeds": (*own.seeds, click(LAMP, image, (1, 1), negative=True))})
    refused(config_path, tmp_path, against, r"label 'lamp' has no positive seed")
    refused(config_path, tmp_path, own, r"no label 'flor' among 2 labels: did you mean floor", labels=("flor",))
    refused(config_path, tmp_path, own, r"refine is -1, expected 0\.\.1000", refine=-1)
    refused(config_path, tmp_path, own, r"void_below is 1\.5, expected 0\.\.1", void_below=1.5)
    paper = own.model_copy(update={"view": ViewSettings(propagation=PAPER_PROPAGATION)})
    refused(config_path, tmp_path, paper, r"void_below does nothing .* 'paper'", void_below=0.5)
    (tmp_path / "a.json").write_text("{")
    refused(config_path, tmp_path, None, r"a\.json is not valid JSON")


def test_two_photos_of_one_stem_and_taken_names(tmp_path: Path):
    def photos(*names: str) -> list[Photo]:
        return [Photo(name, tmp_path / name, tmp_path / name, (2, 2), None, ()) for name in names]  # type: ignore

    planned = plan_files(photos("a/1.jpg", "b/1.jpg"), tmp_path, "labelme", overlays=True)
    assert [path.relative_to(tmp_path).as_posix() for path in planned[1].paths] == [
        "label_maps/b/1.png",
        "b/1.json",
        "overlays/b/1.jpg",
    ]
    for name in ("images/classes.jpg", "images/Propagation.jpg"):
        with pytest.raises(UserError, match=r"LabelMe file of photo .* is taken: use --format png"):
            plan_files(photos(name), tmp_path, "labelme", overlays=False)
        assert plan_files(photos(name), tmp_path, "png", overlays=False)


def test_each_pixel_gets_the_id_under_its_centre():
    # 5 pixels at half the size are 2, and the last one, which filled none, takes its neighbour's id.
    assert resample(np.array([[1, 2]]), (2, 5)).tolist() == [[1, 1, 2, 2, 2]] * 2
    assert resample(np.array([[1, 2], [3, 4]]), (2, 2)).tolist() == [[1, 2], [3, 4]]
    assert resample(np.arange(6).reshape(2, 3), (4, 6))[3].tolist() == [3, 3, 4, 4, 5, 5]


def test_the_command_says_what_it_wrote(config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--load-config", str(config_path), "--output-dir", str(tmp_path / "out"), "--split", "test"]
    command = tyro.cli(Propagate, args=[*arguments, "--format", "coco", "--labels", "wall", "floor", "--overlays"])
    assert command.labels == ("wall", "floor")
    result = command.main()
    printed = capsys.readouterr().out
    assert f"2 photos labelled: {tmp_path / 'out'}" in printed
    assert f"{result.share(WALL.id):.1%}" in printed
    assert "--void-below" not in printed
    command.main()
    assert "2 photos labelled, 2 of 2 were there already" in capsys.readouterr().out


def test_a_single_label_ends_at_its_threshold(config_path: Path, tmp_path: Path):
    box = Box(
        label=WALL.id, image=clicked_image(config_path), corner=(0, 0), opposite=(4, 4), width=WIDTH, height=HEIGHT
    )
    # Of a field that has learnt for eight steps nothing need hang together.
    view = ViewSettings(propagation=PropagationConfig(connected=False))
    write_annotations(tmp_path / "a.json", Annotations(labels=(WALL,), seeds=(box,), view=view))

    def share(threshold: float) -> float:
        folder = tmp_path / f"{threshold}"
        command = Propagate(config_path, folder, annotations=tmp_path / "a.json", split="test", threshold=threshold)
        return command.main().share(WALL.id)

    shares = [share(threshold) for threshold in (0.0, 0.5)]
    assert 0 < shares[1] < shares[0]
