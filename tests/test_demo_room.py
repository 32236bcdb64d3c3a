"""The demo room: exact labels, what makes it worth shaping, and a capture that is whole or not there."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jacobinerf_ns.demo.capture import VERSION, held_out_views, pixel_rays, trace_view, write_capture
from jacobinerf_ns.demo.ray_tracer import LIGHT_POINTS, Trace, trace_rays
from jacobinerf_ns.demo.room import CLASSES, HALF, HEIGHT, camera_path, class_id, furnished_room
from jacobinerf_ns.demo.solids import Material, Part, enter
from jacobinerf_ns.errors import UserError

WIDTH, HEIGHT_PIXELS, VIEWS = 96, 72, 48


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    """Every view of the default capture, one ray per pixel centre."""
    scene = furnished_room()
    return [trace_rays(scene, *pixel_rays(pose, WIDTH, HEIGHT_PIXELS), light_point=4) for pose in camera_path(VIEWS)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small capture on disk."""
    return write_capture(tmp_path_factory.mktemp("demo") / "room", num_views=8, width=32, height=24, num_test=2)


def _read(path: Path) -> np.ndarray:
    return np.array(Image.open(path)).astype(np.int64)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ball_box_and_tube_are_entered_where_geometry_says() -> None:
    origins = np.array([[0.0, -3.0, 0.5], [0.0, -3.0, 1.4], [0.3, 0.1, 9.0], [0.0, 0.0, 0.5]])
    directions = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -2.0], [0.0, 1.0, 0.0]])
    material = Material((1.0, 1.0, 1.0))
    # A cube of side 2 turned by 45 degrees meets the first ray with an edge, sqrt(2) before its centre.
    box, _ = enter(Part("box", (0, 0, 0.5), (1, 1, 1), material, yaw=45.0), origins, directions)
    np.testing.assert_allclose(box, [3 - 2**0.5, 3 - 2**0.5, 3.75, np.inf])
    ball, normals = enter(Part("ball", (0, 0, 0.5), (1, 2, 0.5), material), origins, directions)
    np.testing.assert_allclose(ball[[0, 1, 3]], [1.0, np.inf, np.inf])
    np.testing.assert_allclose(normals[0], [0.0, -1.0, 0.0])
    np.testing.assert_allclose(ball[2], (8.5 - 0.5 * (1 - 0.3**2 - 0.05**2) ** 0.5) / 2)
    tube, normals = enter(Part("tube", (0, 0, 0.5), (0.5, 0.5, 0.5), material), origins, directions)
    np.testing.assert_allclose(tube, [2.5, np.inf, 4.0, np.inf])
    np.testing.assert_allclose(normals[[0, 2]], [[0, -1, 0], [0, 0, 1]])


def test_distances_do_not_depend_on_the_length_of_directions() -> None:
    scene, pose = furnished_room(), camera_path(VIEWS)[0]
    origins, directions = pixel_rays(pose, 24, 18)
    one, two = (trace_rays(scene, origins, scale * directions, light_point=0) for scale in (1.0, 3.0))
    np.testing.assert_allclose(one.distance, two.distance)
    np.testing.assert_allclose(one.colour, two.colour)


def test_all_light_points_together_are_the_mean() -> None:
    scene, pose = furnished_room(), camera_path(VIEWS)[5]
    rays = pixel_rays(pose, 24, 18)
    together = trace_rays(scene, *rays).colour
    single = [trace_rays(scene, *rays, light_point=index).colour for index in range(LIGHT_POINTS)]
    unclipped = np.max(single, axis=(0, 2)) < 1
    expected = np.mean([colour**2.2 for colour in single], axis=0) ** (1 / 2.2)
    np.testing.assert_allclose(together[unclipped], expected[unclipped], atol=1e-9)
    assert np.ptp(single, axis=0).max() > 0.05  # Shadows have soft edges: the points do not agree everywhere.


def test_no_void_and_every_instance_has_one_class(traces: list[Trace]) -> None:
    semantic = np.concatenate([trace.semantic for trace in traces])
    instance = np.concatenate([trace.instance for trace in traces])
    assert set(semantic) == set(range(1, len(CLASSES) + 1))
    assert instance.min() == 1
    assert len(set(zip(semantic, instance, strict=True))) == len(set(instance)) == len(furnished_room().items) + 3


def test_every_class_and_object_is_seen_often(traces: list[Trace]) -> None:
    scene = furnished_room()
    for name in CLASSES:
        assert sum((trace.semantic == class_id(name)).sum() >= 10 for trace in traces) >= 20, name
    for item in scene.items:
        assert sum((trace.instance == item.instance).sum() >= 8 for trace in traces) >= 8, item.name
    # One view that shows all classes makes a one-click-per-class experiment possible.
    assert max(len(set(trace.semantic)) for trace in traces) == len(CLASSES)


def test_cameras_are_inside_the_room_and_clear_of_furniture(traces: list[Trace]) -> None:
    eyes = camera_path(VIEWS)[:, :3, 3]
    assert (np.abs(eyes[:, :2]) < np.array(HALF) - 0.2).all()
    assert (eyes[:, 2] < HEIGHT - 0.2).all()
    assert min(trace.distance.min() for trace in traces) > 0.3
    steps = np.linalg.norm(eyes - np.roll(eyes, 1, axis=0), axis=1)
    assert steps.max() < 0.35


def _colours(traces: list[Trace], kind: str) -> dict[str, np.ndarray]:
    """Median photograph colour of every object of a class."""
    shell: dict[str, int] = {"floor": 1, "ceiling": 2, "wall": 3}
    ids = {item.name: item.instance for item in furnished_room().items if item.semantic == class_id(kind)}
    ids = ids or {kind: shell[kind]}
    colour = np.concatenate([trace.colour for trace in traces])
    instance = np.concatenate([trace.instance for trace in traces])
    return {name: np.median(colour[instance == number], axis=0) for name, number in ids.items()}


def test_colour_does_not_tell_the_classes_apart(traces: list[Trace]) -> None:
    for kind in ("chair", "cushion", "book", "lamp"):
        colours = list(_colours(traces, kind).values())
        assert max(np.abs(one - two).max() for one in colours for two in colours) > 0.25, kind
    look_alikes = [
        ("wall", "cabinet white"),
        ("wall", "table white"),
        ("wall", "lamp white"),
        ("wall", "cushion white"),
    ]
    look_alikes += [("door", "cabinet wooden"), ("chair blue", "cushion blue"), ("chair green", "cushion green")]
    look_alikes += [("lamp orange", "book on wood, orange"), ("floor", "door"), ("floor", "cabinet wooden")]
    median = {name: colour for kind in CLASSES for name, colour in _colours(traces, kind).items()}
    for one, two in look_alikes:
        assert np.abs(median[one] - median[two]).max() < 0.16, (one, two)


def test_colours_and_labels_of_the_middle_ray_belong_together() -> None:
    scene, pose = furnished_room(), camera_path(VIEWS)[0]
    colour, centre, depth = trace_view(scene, pose, 24, 18)
    origins, directions = pixel_rays(pose, 24, 18)
    alone = trace_rays(scene, origins, directions)
    assert (centre.semantic == alone.semantic).all()
    points = origins + depth.reshape(-1, 1) * directions
    np.testing.assert_allclose(np.linalg.norm(points - origins, axis=1), alone.distance)
    # Inside one object a pixel is about as bright as its middle.
    labels = centre.instance.reshape(18, 24)
    inner = (labels[1:-1, 1:-1] == labels[:-2, 1:-1]) & (labels[1:-1, 1:-1] == labels[1:-1, 2:])
    difference = np.abs(colour - alone.colour.reshape(18, 24, 3))[1:-1, 1:-1][inner]
    assert np.median(difference) < 0.02


def test_written_capture_reprojects_onto_itself(tmp_path: Path) -> None:
    """The files alone: depth and pose of one view lead to the same label in another."""
    folder = write_capture(tmp_path / "room", num_views=12, width=96, height=72, num_test=2)
    meta = json.loads((folder / "transforms.json").read_text())
    views = [(np.array(f["transform_matrix"]), _read(folder / f["semantics_path"])) for f in meta["frames"]]
    depths = [_read(folder / frame["depth_file_path"]) * meta["depth_unit_scale_factor"] for frame in meta["frames"]]
    agree = total = 0
    for index in range(len(views)):
        (pose, labels), (other, other_labels) = views[index], views[index - 1]
        v, u = np.mgrid[: meta["h"], : meta["w"]] + 0.5
        ray = np.stack([(u - meta["cx"]) / meta["fl_x"], (meta["cy"] - v) / meta["fl_y"], -np.ones_like(u)], axis=-1)
        world = (ray * depths[index][..., None]) @ pose[:3, :3].T + pose[:3, 3]
        x, y, z = np.moveaxis((world - other[:3, 3]) @ other[:3, :3], -1, 0) * np.array([1, -1, -1])[:, None, None]
        column = np.floor(x / z * meta["fl_x"] + meta["cx"]).astype(int)
        row = np.floor(y / z * meta["fl_y"] + meta["cy"]).astype(int)
        seen = (z > 0.1) & (column >= 0) & (column < meta["w"]) & (row >= 0) & (row < meta["h"])
        row, column = row.clip(0, meta["h"] - 1), column.clip(0, meta["w"] - 1)
        seen &= np.abs(depths[index - 1][row, column] - z) < 0.01 * z
        agree += (other_labels[row, column] == labels)[seen].sum()
        total += seen.sum()
    assert total > 0.4 * 12 * 96 * 72
    assert agree / total >= 0.99


def test_layout_of_the_capture(small: Path) -> None:
    meta = json.loads((small / "transforms.json").read_text())
    assert [frame["file_path"] for frame in meta["frames"]] == [f"images/{index:04d}.png" for index in range(8)]
    assert meta["test_filenames"] == meta["val_filenames"] == ["images/0002.png", "images/0006.png"]
    assert len(meta["train_filenames"]) == 6
    modes = {"file_path": "RGB", "semantics_path": "L", "instances_path": "L", "depth_file_path": "I;16"}
    for key, mode in modes.items():
        image = Image.open(small / meta["frames"][3][key])
        assert (image.mode, image.size) == (mode, (32, 24))
    classes = json.loads((small / "classes.json").read_text())
    assert [entry["name"] for entry in classes["classes"]] == list(CLASSES)
    assert len({tuple(entry["color"]) for entry in classes["classes"]}) == len(CLASSES)
    owner = {entry["id"]: entry["class_id"] for entry in classes["instances"]}
    for frame in meta["frames"]:
        semantic, instance = _read(small / frame["semantics_path"]), _read(small / frame["instances_path"])
        assert all(owner[i] == s for i, s in set(zip(instance.ravel(), semantic.ravel(), strict=True)))


def test_held_out_views_lie_between_training_views() -> None:
    assert held_out_views(48, 8) == [3, 9, 15, 21, 27, 33, 39, 45]


def test_same_settings_give_the_same_bytes_and_are_reused(small: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []

    def write() -> Path:
        return write_capture(tmp_path / "again", 8, 32, 24, 2, report=lambda *progress: done.append(progress))

    again = write()
    assert _files(again) == _files(small)
    assert done == [(index, 8) for index in range(1, 9)]
    write()
    assert len(done) == 8
    (again / "semantics" / "0003.png").unlink()
    write()
    assert _files(again) == _files(small)


def test_other_settings_replace_our_own_capture_only(tmp_path: Path) -> None:
    output = write_capture(tmp_path / "room", num_views=2, width=8, height=6, num_test=1)
    write_capture(output, num_views=3, width=8, height=6, num_test=1)
    assert len(list((output / "images").iterdir())) == 3
    assert json.loads((output / "transforms.json").read_text())["demo"]["version"] == VERSION
    (output / "notes.txt").write_text("mine")
    before = _files(output)
    with pytest.raises(UserError, match="is not a demo capture: choose another folder, nothing was written"):
        write_capture(output, num_views=2, width=8, height=6, num_test=1)
    assert _files(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["room"]


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_capture(tmp_path / "room", num_views=3, width=8, height=6, num_test=1, report=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [(48, 0, 72, 8), (48, 96, 0, 8), (48, 96, 72, 0), (4, 96, 72, 4)])
def test_settings_that_make_no_capture(tmp_path: Path, settings: tuple[int, int, int, int]) -> None:
    with pytest.raises(UserError, match="expected a size of at least 1x1"):
        write_capture(tmp_path / "room", *settings)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file \(.*\): choose another folder"):
        write_capture(tmp_path / "file" / "room", num_views=2, width=8, height=6, num_test=1)


def test_capture_loads_through_the_dataparser(small: Path) -> None:
    from nerfstudio.data.datasets.base_dataset import InputDataset

    from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig
    from jacobinerf_ns.files.index_maps import read_label_map

    outputs = JacobiNeRFDataParserConfig(data=small).setup().get_dataparser_outputs("val")
    assert InputDataset(outputs)[1]["image"].shape == (24, 32, 3)
    assert outputs.metadata["classes"] == dict(enumerate(CLASSES, start=1))
    ids = read_label_map(outputs.metadata["semantics_filenames"][1], (24, 32))
    assert ids.tolist() == _read(small / "semantics" / "0006.png").tolist()
