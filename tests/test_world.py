"""The capture's world frame against rotations, and against nerfstudio's own parser."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from nerfstudio.data.dataparsers.base_dataparser import transform_poses_to_original_space
from tiny import tiny_capture
from torch import Tensor

from jacobinerf_ns.annotations.frames import WorldFrame
from jacobinerf_ns.annotations.rays import seed_rays, world_click
from jacobinerf_ns.annotations.schema import Annotations, Label
from jacobinerf_ns.dataparsers.jacobinerf_data import JacobiNeRFDataParserConfig


def random_frame(seed: int) -> WorldFrame:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    rotation[:, 0] *= torch.linalg.det(rotation).sign()
    shift = 3 * torch.randn(3, 1, generator=generator)
    scale = float(torch.rand(1, generator=generator)) + 0.1
    return WorldFrame(torch.cat([rotation, shift], dim=1), scale)


def random_points(seed: int) -> Float[Tensor, "points 3"]:
    return 2 * torch.randn(50, 3, generator=torch.Generator().manual_seed(100 + seed))


@pytest.mark.parametrize("seed", range(20))
def test_round_trips(seed: int):
    frame, points = random_frame(seed), random_points(seed)
    torch.testing.assert_close(frame.points_to_scene(frame.points_to_world(points)), points, atol=1e-5, rtol=0)
    torch.testing.assert_close(frame.points_to_world(frame.points_to_scene(points)), points, atol=1e-5, rtol=0)
    unit = torch.nn.functional.normalize(points, dim=-1)
    there = frame.directions_to_world(unit)
    torch.testing.assert_close(there.norm(dim=-1), torch.ones(len(points)), atol=1e-6, rtol=0)
    torch.testing.assert_close(frame.directions_to_scene(there), unit, atol=1e-5, rtol=0)
    torch.testing.assert_close(frame.directions_to_scene(3 * there), unit, atol=1e-5, rtol=0)


def test_by_hand():
    """A quarter turn about z, one up, twice as large."""
    frame = WorldFrame(torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]]), 2.0)
    assert frame.points_to_scene(torch.tensor([[1.0, 2, 3]])).tolist() == [[-4, 2, 8]]
    assert frame.points_to_world(torch.tensor([[-4.0, 2, 8]])).tolist() == [[1, 2, 3]]
    assert frame.directions_to_scene(torch.tensor([[5.0, 0, 0]])).tolist() == [[0, 1, 0]]
    assert frame.directions_to_world(torch.tensor([[0.0, 1, 0]])).tolist() == [[1, 0, 0]]
    assert frame.points_to_world(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_nerfstudio(seed: int):
    """Camera centres are points, and their optical axes directions, of nerfstudio's own inverse."""
    frame = random_frame(seed)
    poses = torch.cat([torch.stack([random_frame(10 * seed + i).transform for i in range(1, 6)])])
    original = transform_poses_to_original_space(poses, frame.transform, frame.scale, camera_convention="opengl")
    torch.testing.assert_close(frame.points_to_world(poses[:, :, 3]), original[:, :, 3], atol=1e-5, rtol=0)
    torch.testing.assert_close(frame.directions_to_world(poses[:, :, 2]), original[:, :, 2], atol=1e-5, rtol=0)


def test_coordinates_of_a_survey_keep_their_millimetres():
    """Metres in a country's grid do not fit into float32: clicks are kept in float64, even of a float32 viewer."""
    frame = WorldFrame(torch.cat([torch.eye(3), torch.full((3, 1), -5e6)], dim=1), 0.01)
    click = world_click(frame, torch.tensor([1e-5, 0.0, 0.5]), torch.tensor([0.0, 0, 1]), 1)
    assert click.origin == pytest.approx((5e6 + 0.001, 5e6, 5e6 + 50), rel=0, abs=1e-5)
    origin = torch.tensor([click.origin], dtype=torch.float64)
    assert frame.points_to_scene(origin)[0].tolist() == pytest.approx([1e-5, 0.0, 0.5], rel=0, abs=1e-7)


SETTINGS = [
    {"orientation_method": "up", "auto_scale_poses": True},
    {"orientation_method": "none", "auto_scale_poses": False, "center_method": "none"},
    {"orientation_method": "vertical", "auto_scale_poses": True, "center_method": "focus"},
    {"orientation_method": "pca", "auto_scale_poses": True, "scale_factor": 0.3},
]


@pytest.fixture(scope="module")
def captures(tmp_path_factory) -> list:
    """The same training cameras as different dataparser settings place them."""
    folder: Path = tiny_capture(tmp_path_factory.mktemp("capture") / "data")
    return [
        JacobiNeRFDataParserConfig(data=folder, **settings).setup().get_dataparser_outputs("train")
        for settings in SETTINGS
    ]


@pytest.mark.parametrize("other", range(1, len(SETTINGS)))
def test_a_click_survives_other_dataparser_settings(captures, other: int):
    first, second = captures[0], captures[other]
    frames = [WorldFrame(outputs.dataparser_transform, outputs.dataparser_scale) for outputs in (first, second)]
    assert not torch.allclose(first.cameras.camera_to_worlds, second.cameras.camera_to_worlds, atol=1e-2)
    cameras = torch.tensor([[0], [1], [3]])
    coords = torch.tensor([[0.5, 0.5], [7.5, 20.5], [17.5, 3.5]])
    rays = [outputs.cameras.generate_rays(camera_indices=cameras, coords=coords) for outputs in (first, second)]
    worlds = [
        (frame.points_to_world(ray.origins), frame.directions_to_world(ray.directions))
        for frame, ray in zip(frames, rays, strict=True)
    ]
    for a, b in zip(*worlds, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    seeds = tuple(
        world_click(frames[0], origin, direction, 1)
        for origin, direction in zip(rays[0].origins, rays[0].directions, strict=True)
    )
    clicks = Annotations(labels=(Label(id=1, name="chair", colour=(0, 0, 0)),), seeds=seeds)
    found = seed_rays(clicks, Path(), second.cameras, second.image_filenames, frames[1]).rays
    torch.testing.assert_close(found.origins, rays[1].origins, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.directions, rays[1].directions, atol=1e-5, rtol=0)


def test_applied_transform_is_undone(captures, tmp_path: Path):
    """Where `ns-process-data` turned the poses, the world is the frame before; the same clicks hit the same pixels."""
    folder = tmp_path / "data"
    shutil.copytree(captures[0].image_filenames[0].parents[1], folder)
    meta = json.loads((folder / "transforms.json").read_text())
    applied = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0.5], [0, 0, -1, 0], [0, 0, 0, 1]])
    for entry in meta["frames"]:
        entry["transform_matrix"] = (applied @ torch.tensor(entry["transform_matrix"])).tolist()
    meta["applied_transform"] = applied[:3].tolist()
    (folder / "transforms.json").write_text(json.dumps(meta))
    turned = JacobiNeRFDataParserConfig(data=folder).setup().get_dataparser_outputs("train")
    centres = [
        WorldFrame(outputs.dataparser_transform, outputs.dataparser_scale).points_to_world(
            outputs.cameras.camera_to_worlds[:, :, 3]
        )
        for outputs in (captures[1], turned)
    ]
    torch.testing.assert_close(centres[0], centres[1], atol=1e-5, rtol=0)
