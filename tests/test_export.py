"""Parts of a scene as files: what is sampled, what Open3D makes of it, and what users are told."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.scripts import exporter
from test_commands import run
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.annotations.schema import Annotations, Click, Label, ViewSettings
from jacobinerf_ns.annotations.store import write_annotations
from jacobinerf_ns.cli.export import Export
from jacobinerf_ns.cli.main import entrypoint
from jacobinerf_ns.core.propagation import PropagationConfig, Prototypes
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.run.opened import open_run
from jacobinerf_ns.tasks.parts import geometry as part_geometry
from jacobinerf_ns.tasks.parts import sampling as part_sampling
from jacobinerf_ns.tasks.parts.geometry import Cloud

resource = pytest.importorskip("resource")
open3d = pytest.importorskip("open3d", exc_type=ImportError)

LEFT, RIGHT, TINY_ONE = ((-1.0, 0.0, -4.0), 0.8), ((1.0, 0.0, -4.0), 0.8), ((0.0, 1.1, -4.0), 0.03)


class Balls:
    """Stands in for a model: coloured balls in empty space, whose Jacobians are one unit vector per ball."""

    device = torch.device("cpu")
    config = SimpleNamespace(eval_num_rays_per_chunk=500)

    def __init__(self, *balls: tuple[tuple[float, float, float], float]) -> None:
        self.centres = torch.tensor([centre for centre, _ in balls])
        self.radii = torch.tensor([radius for _, radius in balls])
        self.asked = 0

    @property
    def rays_at_once(self) -> int:
        return self.config.eval_num_rays_per_chunk

    def trace(self, rays: RayBundle) -> SimpleNamespace:
        self.asked += len(rays)
        towards = self.centres - rays.origins[:, None]
        along = (towards * rays.directions[:, None]).sum(-1)
        inside = self.radii**2 - (towards.square().sum(-1) - along**2)
        depths = torch.where(inside > 0, along - inside.clamp(min=0).sqrt(), torch.inf)
        depth, ball = depths.min(-1)
        hit = depth.isfinite()
        outputs = {
            "rgb": torch.eye(3)[ball],
            "depth": torch.where(hit, depth, 1.0)[:, None],
            "accumulation": hit.float()[:, None],
        }
        frustums = SimpleNamespace(origins=rays.origins[:, None], directions=rays.directions[:, None])
        trace = SimpleNamespace(ray_samples=SimpleNamespace(frustums=frustums))
        # Empty space looks like the first ball: that nothing solid is there must count, too.
        return SimpleNamespace(outputs=outputs, trace=trace, jacobians=torch.eye(3)[torch.where(hit, ball, 0)])


def balls(*placed: tuple[tuple[float, float, float], float]) -> Any:
    """`Balls`, for functions that ask for a model."""
    return Balls(*placed)


def cameras(*sizes: tuple[int, int]) -> Cameras:
    """Cameras of (height, width) side by side, all looking along −z."""
    poses = torch.eye(4)[:3].repeat(len(sizes), 1, 1)
    poses[:, 0, 3] = torch.arange(len(sizes)) * 0.2
    heights, widths = (torch.tensor(side)[:, None] for side in zip(*sizes, strict=True))
    focal = widths.float() / 2
    return Cameras(poses, focal, focal, widths / 2, heights / 2, widths, heights)


def snapshot(count: int = 2, **config) -> LabelSnapshot:
    labels = tuple(Label(id=7 - 2 * i, name=f"ball {i}", colour=(0, 0, 0)) for i in range(count))
    prototypes = Prototypes(torch.eye(3)[:count], torch.arange(count), torch.ones(count).bool(), torch.ones(count))
    return LabelSnapshot(labels, prototypes, PropagationConfig(**config))


def sampled(model: Any, views: Cameras, shown: LabelSnapshot, chosen: list[int], count: int):
    sightings = part_sampling.find_labels(model, views, shown, chosen)
    return part_sampling.sample_points(model, views, shown, chosen, sightings, count)


def test_points_lie_on_the_chosen_label_only_and_cover_what_is_seen_of_it():
    model, views = balls(LEFT, RIGHT), cameras((60, 80), (90, 120))
    points = sampled(model, views, snapshot(), [1], 3000)
    offsets = points.positions - torch.tensor(RIGHT[0])
    assert len(points.labels) == 3000
    assert (points.labels == 5).all()
    torch.testing.assert_close(offsets.norm(dim=-1), torch.full((3000,), RIGHT[1]), atol=1e-5, rtol=0)
    assert torch.equal(points.colours, torch.tensor([0.0, 1.0, 0.0]).expand(3000, 3))
    assert ((offsets * points.directions).sum(-1) < 0).all()
    # Up to the silhouette, on all sides: rays graze the ball there.
    grazing = (offsets * points.directions).sum(-1).abs() < 0.15 * RIGHT[1]
    angles = torch.atan2(offsets[grazing, 1], offsets[grazing, 0])
    assert (torch.histc(angles, bins=8, min=-torch.pi, max=torch.pi) > 0).all()


def test_the_same_points_every_time_and_both_labels_when_both_are_chosen():
    first, second = (sampled(balls(LEFT, RIGHT), cameras((60, 80)), snapshot(), [0, 1], 500) for _ in range(2))
    assert torch.equal(first.positions, second.positions)
    assert set(first.labels.tolist()) == {7, 5}
    side = torch.where(first.labels == 7, -1.0, 1.0)
    assert (first.positions[:, 0] * side > 0).all()


def test_a_small_part_is_found_by_a_finer_grid_and_sampled_with_few_rays():
    model = balls(TINY_ONE, RIGHT)
    sightings = part_sampling.find_labels(model, cameras((300, 400)), snapshot(), [0])
    assert sightings.grids.tolist() != [[48, 64]]
    looked, model.asked = model.asked, 0
    points = part_sampling.sample_points(model, cameras((300, 400)), snapshot(), [0], sightings, 400)
    assert len(points.labels) == 400
    assert model.asked < part_sampling.RAYS_PER_POINT * 400
    # The ball covers about a 10,000th of the view: without the grid, 400 points would take millions of rays.
    assert looked + model.asked < 100_000


def test_looking_and_sampling_end_where_nothing_is_to_be_seen():
    model, views = balls(RIGHT), cameras((300, 400), (30, 40))
    sightings = part_sampling.find_labels(model, views, snapshot(), [1])
    assert len(sightings.cells) == 0
    assert sightings.grids.tolist() == [[192, 256], [30, 40]]
    assert sightings.strongest.tolist() == [1.0, 0.0]
    with pytest.raises(UserError, match="no ray hits"):
        part_sampling.sample_points(model, views, snapshot(), [1], sightings, 10)


def test_the_papers_decision_is_taken_on_whole_images():
    model, shown = balls(LEFT, RIGHT), snapshot(decision="paper")
    views = cameras((30, 40))
    sightings = part_sampling.find_labels(model, views, shown, [1])
    assert sightings.grids.tolist() == [[30, 40]]
    points = part_sampling.sample_points(model, views, shown, [1], sightings, 300)
    assert (points.positions[:, 0] > 0).float().mean() > 0.95


def test_strays_are_outliers_and_a_flat_cloud_has_none():
    generator = np.random.default_rng(0)
    flat = np.concatenate([generator.random((2000, 2)), np.zeros((2000, 1))], axis=1)
    strays = generator.random((40, 3)) * 4 + np.array([0, 0, 0.5])
    kept = part_geometry.inliers(np.concatenate([flat, strays]))
    assert kept[:2000].mean() > 0.995
    assert kept[2000:].sum() == 0
    assert part_geometry.inliers(flat[:20]).all()


def ball(count: int, lowest: float = -1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of a unit ball above a height, and the rays that see them from outside."""
    points = np.random.default_rng(seed).normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    points = points[points[:, 2] >= lowest]
    return points, -points


def cloud_of(points: np.ndarray, directions: np.ndarray) -> Cloud:
    colours = np.broadcast_to(np.array([10, 200, 30], dtype=np.uint8), points.shape)
    normals = part_geometry.estimate_normals(points, directions)
    return Cloud(points, colours, normals, np.full(len(points), 65535))


def test_normals_are_the_balls_and_look_at_the_cameras():
    points, directions = ball(4000)
    normals = part_geometry.estimate_normals(points, directions)
    assert ((normals * points).sum(-1) > np.cos(np.radians(5))).all()
    inward = part_geometry.estimate_normals(points, -directions)
    np.testing.assert_allclose(inward, -normals)


def test_the_mesh_follows_the_cloud_and_leaves_open_what_was_not_seen():
    points, directions = ball(20000, lowest=0.0)
    mesh = part_geometry.reconstruct(cloud_of(points, directions), "dome")
    errors = np.abs(np.linalg.norm(mesh.vertices, axis=-1) - 1)
    assert np.quantile(errors, 0.9) < 0.005
    assert errors.max() < 0.1
    assert mesh.vertices[:, 2].min() > -0.1
    area = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(mesh.vertices), open3d.utility.Vector3iVector(mesh.triangles)
    ).get_surface_area()
    assert 2 * np.pi < area < 1.1 * 2 * np.pi  # a rim of three point spacings, no bottom
    assert (mesh.colours == [10, 200, 30]).all()


def test_crumbs_are_no_part_of_the_mesh():
    (points, directions), (crumb, inwards) = ball(8000), ball(60)
    cloud = cloud_of(np.concatenate([points, crumb * 0.02 + 2]), np.concatenate([directions, inwards]))
    mesh = part_geometry.reconstruct(cloud, "ball")
    assert np.linalg.norm(mesh.vertices, axis=-1).max() < 1.1
    assert mesh.triangles.max() == len(mesh.vertices) - 1


def test_too_few_points_for_a_mesh_are_counted():
    with pytest.raises(UserError, match=r"^57 points of label 'cup' are too few for a mesh, expected 200 or more"):
        part_geometry.reconstruct(cloud_of(*ball(57)), "cup")


def test_clouds_come_back_as_they_were_written(tmp_path: Path):
    points, directions = ball(300)
    cloud = cloud_of(points + 1e6, directions)
    part_geometry.write_cloud(tmp_path / "points.ply", cloud)
    back = open3d.t.io.read_point_cloud(str(tmp_path / "points.ply")).point
    assert np.array_equal(back.positions.numpy(), cloud.positions)
    assert np.array_equal(back.colors.numpy(), cloud.colours)
    assert np.array_equal(back.label.numpy()[:, 0], cloud.labels)
    np.testing.assert_allclose(back.normals.numpy(), cloud.normals, atol=1e-6)
    with pytest.raises(UserError, match="is there already"):
        part_geometry.write_cloud(tmp_path / "points.ply", cloud)


def test_meshes_come_back_as_they_were_written(tmp_path: Path):
    mesh = part_geometry.reconstruct(cloud_of(*ball(3000)), "ball")
    part_geometry.write_mesh(tmp_path / "mesh.ply", mesh)
    back = open3d.io.read_triangle_mesh(str(tmp_path / "mesh.ply"))
    assert np.array_equal(np.asarray(back.vertices), mesh.vertices)
    assert np.array_equal(np.asarray(back.triangles), mesh.triangles)
    assert np.array_equal((np.asarray(back.vertex_colors) * 255).round(), mesh.colours)


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path: Path):
    cloud = cloud_of(*ball(3000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"points.ply cannot be written \(File too large\)"):
            part_geometry.write_cloud(tmp_path / "points.ply", cloud)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with two labels that it can tell apart, one that is never the strongest, and one without seeds."""
    folder = tmp_path_factory.mktemp("export")
    trainer = start(tiny_config(tiny_capture(folder / "room"), folder, steps=150))
    trainer.train()
    path = trainer.base_dir / "config.yml"
    names = ["wall", "chair", "shadow", "bare"]
    labels = tuple(Label(id=i + 1, name=name, colour=(i, i, i)) for i, name in enumerate(names))
    image = trainer.pipeline.datamanager.train_dataset.image_filenames[0].name
    clicks = [(1, (3, 3)), (1, (20, 3)), (2, (12, 9)), (3, (3, 3))]
    seeds = tuple(Click(label=label, image=image, width=24, height=18, pixel=pixel) for label, pixel in clicks)
    view = ViewSettings(propagation=PropagationConfig(threshold=0.2))
    write_annotations(path.parent / "annotations.json", Annotations(labels=labels, seeds=seeds, view=view))
    return path


def export(config: Path, out: Path, *labels: str, **options):
    return Export(load_config=config, output_dir=out, label=list(labels), **{"num_points": 400, **options}).main()


def points_of(folder: Path) -> dict[str, np.ndarray]:
    point = open3d.t.io.read_point_cloud(str(folder / "points.ply")).point
    return {name: point[name].numpy() for name in ("positions", "normals", "colors", "label")}


def test_exported_points_lie_where_a_training_view_shows_the_label(config: Path, tmp_path: Path):
    summary = export(config, tmp_path, "chair", remove_outliers=False)
    assert summary == json.loads((tmp_path / "export.json").read_text())
    found = points_of(tmp_path)
    assert (found["label"] == 2).all()
    assert len(found["positions"]) == summary["points"] == summary["labels"][0]["points"] == 400
    opened = open_run(config)
    model, views = opened.pipeline.model, opened.pipeline.datamanager.train_dataset.cameras
    scene = opened.pipeline.world.points_to_scene(torch.from_numpy(found["positions"])).float()
    assert opened.pipeline.labels is not None
    current = opened.pipeline.labels.current()
    assert current is not None
    model.label_source = lambda: replace(current, selected=1)
    shown = torch.zeros(len(scene), dtype=torch.bool)
    for index in range(len(views)):
        camera = views[index : index + 1]
        camera.rescale_output_resolution(6)
        outputs = model.get_outputs_for_camera(camera)
        pose = camera.camera_to_worlds[0]
        x, y, z = ((scene - pose[:, 3]) @ pose[:, :3]).unbind(-1)
        column = (camera.cx[0] - camera.fx[0] * x / z).floor().long()
        row = (camera.cy[0] + camera.fy[0] * y / z).floor().long()
        inside = (z < 0) & (column >= 0) & (row >= 0) & (column < camera.width[0]) & (row < camera.height[0])
        row, column = row.where(inside, 0), column.where(inside, 0)
        distance = (scene - pose[:, 3]).norm(dim=-1)
        first = (outputs["depth"][row, column, 0] / distance - 1).abs() < 0.03
        shown |= inside & first & outputs["selection"][row, column, 0]
    assert shown.float().mean() >= 0.95


def test_world_and_scene_are_the_same_points(config: Path, tmp_path: Path):
    names, world = ("wall", "chair"), open_run(config).pipeline.world
    reports = [export(config, tmp_path / frame, *names, frame=frame) for frame in ("world", "scene")]
    there, here = points_of(tmp_path / "world"), points_of(tmp_path / "scene")
    assert np.abs(there["positions"] - here["positions"]).max() > 0.1
    mapped = world.points_to_world(torch.from_numpy(here["positions"])).numpy()
    np.testing.assert_allclose(mapped, there["positions"], rtol=1e-9, atol=1e-9)
    turned = world.directions_to_world(torch.from_numpy(here["normals"])).numpy()
    np.testing.assert_allclose(turned, there["normals"], atol=1e-5)
    assert reports[0]["labels"] == reports[1]["labels"]
    box = reports[0]["labels"][0]["bounding_box_world"]
    wall = there["positions"][there["label"][:, 0] == 1]
    np.testing.assert_allclose([box["min"], box["max"]], [wall.min(0), wall.max(0)])


def test_all_takes_what_has_seeds_and_is_seen_and_meshes_it(config: Path, tmp_path: Path):
    summary = export(config, tmp_path, "all", mesh=True, num_points=3000)
    assert [entry["name"] for entry in summary["labels"]] == ["wall", "chair"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "export.json",
        "mesh_chair.ply",
        "mesh_wall.ply",
        "points.ply",
    ]
    for entry in summary["labels"]:
        mesh = open3d.io.read_triangle_mesh(str(tmp_path / entry["mesh"]))
        assert len(mesh.triangles) == entry["triangles"] > 0
        corners = np.array([entry["bounding_box_world"][end] for end in ("min", "max")])
        margin = 0.2 * np.ptp(corners, axis=0).max()
        vertices = np.asarray(mesh.vertices)
        assert (vertices > corners[0] - margin).all()
        assert (vertices < corners[1] + margin).all()


def test_an_export_is_never_overwritten_unasked(config: Path, tmp_path: Path):
    export(config, tmp_path, "chair", num_points=20, json=False)
    before = (tmp_path / "points.ply").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["points.ply"]
    with pytest.raises(UserError, match=r"points.ply is there already: give --overwrite"):
        export(config, tmp_path, "wall", num_points=30)
    assert (tmp_path / "points.ply").read_bytes() == before
    export(config, tmp_path, "wall", num_points=30, overwrite=True)
    assert (points_of(tmp_path)["label"] == 1).all()


def test_a_cloud_too_small_for_a_mesh_is_written_all_the_same(config: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"50 points of label 'chair' are too few for a mesh.*all else is in"):
        export(config, tmp_path, "chair", num_points=50, mesh=True, remove_outliers=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "points.ply"]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["chiar"], {}, r"no label 'chiar' among 4 labels: did you mean chair"),
        ([], {}, r"no label is named: give --label NAME \(there are wall, chair, shadow, bare\)"),
        (["chair", "bare"], {}, r"label 'bare' has no seeds"),
        (["chair", "shadow"], {}, r"nothing of label 'shadow' is seen in the 4 training views \(1728 rays\)"),
        (["chair"], {"num_points": 0}, r"--num-points is 0, expected 1 or more"),
        (["chair"], {"threshold": 1.5}, r"--threshold is 1.5, expected 0..1"),
        (["chair"], {"annotations": Path("nowhere.json")}, r"no label in .*nowhere.json"),
    ],
)
def test_bad_input_is_said_and_nothing_is_written(
    config: Path, tmp_path: Path, labels: list[str], options: dict, message: str
):
    with pytest.raises(UserError, match=message) as caught:
        export(config, tmp_path / "out", *labels, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_a_folder_that_cannot_be_written_is_said_before_the_work(config: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file cannot be written .*: choose another --output-dir"):
        export(config, tmp_path / "file", "chair", num_points=10**9)
    assert (tmp_path / "file").read_text() == "mine"


def stock_export(config: Path, folder: Path) -> list[str]:
    """The command line of nerfstudio's own export."""
    options = ["--rgb-output-name", "rgb_selected", "--normal-method", "open3d", "--remove-outliers", "False"]
    sizes = ["--num-points", "300", "--num-rays-per-batch", "256"]
    return ["ns-export", "pointcloud", "--load-config", str(config), "--output-dir", str(folder), *options, *sizes]


def refused(entrypoint: Callable[[], None], command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command that ends with exit code 2, within this process: to start one takes ten seconds."""
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        entrypoint()
    assert ended.value.code == 2


def select(config: Path, label: int) -> None:
    path = config.parent / "annotations.json"
    content = json.loads(path.read_text())
    content["view"]["selected"] = label
    path.write_text(json.dumps(content))


@pytest.mark.slow
def test_stock_export_takes_the_selection_only(config: Path, tmp_path: Path):
    select(config, 2)
    run(*stock_export(config, tmp_path), cwd=config.parent)
    points = np.asarray(open3d.io.read_point_cloud(str(tmp_path / "point_cloud.ply")).points)
    assert len(points) >= 300
    opened = open_run(config)
    cameras = opened.pipeline.datamanager.train_dataset.cameras
    selected = []
    for index in range(len(cameras)):
        rays = cameras.generate_rays(camera_indices=index, keep_shape=True)
        outputs = opened.pipeline.model.get_outputs_for_camera_ray_bundle(rays)
        surface = rays.origins + rays.directions * outputs["depth"]
        selected.append(surface[outputs["selection"][..., 0]])
    pixels = torch.cat(selected).double()
    assert 0 < len(pixels) < 0.9 * len(cameras) * 24 * 18
    assert torch.cdist(torch.from_numpy(points), pixels).amin(-1).max() < 1e-3


@pytest.mark.slow
def test_stock_export_of_an_empty_selection_is_one_line(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    select(config, 3)
    refused(exporter.entrypoint, stock_export(config, tmp_path), monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: the selection is empty")]


@pytest.mark.slow
def test_export_is_a_command(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = ["jacobinerf", "export", "--load-config", str(config), "--num-points", "100", "--output-dir", "out"]
    assert "chair: " in run(*command, "--label", "chair", "--label", "wall", cwd=tmp_path)
    assert (tmp_path / "out/points.ply").exists()
    monkeypatch.chdir(tmp_path)
    refused(entrypoint, [*command, "--label", "chiar", "--overwrite"], monkeypatch)
    assert "error: no label 'chiar'" in capsys.readouterr().err
