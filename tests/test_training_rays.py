"""Rays from tables, and samples made in their shape, against what nerfstudio makes."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.model_components.ray_generators import RayGenerator
from nerfstudio.model_components.ray_samplers import PDFSampler, UniformLinDispPiecewiseSampler

from jacobinerf_ns.compat import training_rays
from jacobinerf_ns.compat.training_rays import TabledRays, TrainingRays, ray_generator

BENT = [0.05, -0.08, 0.0, 0.0, 0.001, -0.002]


def cameras(count: int = 5, **changes: Any) -> Cameras:
    """Cameras that stand and look anywhere; two lenses of two sizes, one of them bent."""
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator))[0]
    poses = torch.cat([turned, torch.randn(count, 3, 1, generator=generator)], dim=-1)
    second = torch.arange(count)[:, None] % 2
    known: dict = {
        "fx": 40.0 + 3.0 * second,
        "fy": 41.0 - 2.0 * second,
        "cx": 16.0 + 0.3 * second,
        "cy": 12.0 - 0.7 * second,
        "width": 32 - 5 * second,
        "height": 24 + 7 * second,
        "distortion_params": torch.tensor(BENT) * second,
    }
    return Cameras(poses, **{**known, **changes})


def all_pixels(of: Cameras) -> torch.Tensor:
    """(camera, row, col) of every pixel."""
    grids = [
        torch.cartesian_prod(
            torch.tensor([place]), torch.arange(int(of.height[place])), torch.arange(int(of.width[place]))
        )
        for place in range(len(of))
    ]
    return torch.cat(grids)


@pytest.mark.parametrize("kind", [CameraType.PERSPECTIVE, CameraType.FISHEYE])
@pytest.mark.parametrize("bent", [True, False])
def test_rays_from_a_table_are_nerfstudios(kind: CameraType, bent: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training_rays, "PIXELS_AT_ONCE", 100)
    changes: dict = {} if bent else {"distortion_params": None}
    known = cameras(camera_type=kind, **changes)
    made = ray_generator(known)
    assert isinstance(made, TabledRays)
    pixels = all_pixels(known)
    ours, theirs = made(pixels), RayGenerator(known)(pixels)
    assert ours.shape == theirs.shape
    for name in ("origins", "directions", "camera_indices"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.pixel_area, theirs.pixel_area, rtol=1e-3, atol=0)  # of differences of directions
    assert ours.metadata.keys() == theirs.metadata.keys()
    torch.testing.assert_close(ours.metadata["directions_norm"], theirs.metadata["directions_norm"])
    assert ours.nears is None
    assert ours.fars is None
    assert ours.times is None


def test_the_table_holds_each_lens_once():
    made = ray_generator(cameras(9))
    assert isinstance(made, TabledRays)
    assert len(made.table) == 32 * 24 + 27 * 31


def test_cameras_that_no_table_describes_are_left_to_nerfstudio(monkeypatch: pytest.MonkeyPatch):
    others: list[dict] = [
        {"camera_type": CameraType.ORTHOPHOTO},
        {"times": torch.zeros(5, 1)},
        {"metadata": {"sensor": torch.zeros(5, 1)}},
    ]
    for changes in others:
        assert type(ray_generator(cameras(**changes))) is RayGenerator
    monkeypatch.setattr(training_rays, "TABLE_BYTES", 20 * (32 * 24 + 27 * 31) - 1)
    assert type(ray_generator(cameras())) is RayGenerator
    monkeypatch.setattr(training_rays, "TABLE_BYTES", 20 * (32 * 24 + 27 * 31))
    assert isinstance(ray_generator(cameras()), TabledRays)


def bundles(rays: int = 7) -> tuple[TrainingRays, RayBundle]:
    """The same rays as ours and as nerfstudio's."""
    known = cameras()
    made = ray_generator(known)(all_pixels(known)[::97][:rays])
    made.nears, made.fars = torch.full((rays, 1), 0.1), torch.full((rays, 1), 5.0)
    assert isinstance(made, TrainingRays)
    return made, RayBundle(**{entry.name: getattr(made, entry.name) for entry in fields(RayBundle)})


def assert_same(ours: RaySamples | Frustums, theirs: RaySamples | Frustums) -> None:
    """Every entry has the same type, shape and numbers."""
    assert type(ours) is type(theirs)
    assert ours.shape == theirs.shape
    for entry in fields(theirs):
        mine, known = getattr(ours, entry.name), getattr(theirs, entry.name)
        if isinstance(known, Frustums):
            assert_same(mine, known)
        elif isinstance(known, dict):
            assert mine.keys() == known.keys()
            assert all(torch.equal(mine[key], value) for key, value in known.items())
        elif isinstance(known, torch.Tensor):
            assert mine.dtype == known.dtype
            assert torch.equal(mine, known), entry.name
        else:
            assert callable(known) or mine is known


def test_samples_are_nerfstudios():
    initial, finer = UniformLinDispPiecewiseSampler(6), PDFSampler(4, include_original=False)
    found = []
    for bundle in bundles():
        torch.manual_seed(0)
        first = initial(bundle)
        second = finer(bundle, first, torch.rand(7, 6, 1))
        found.append((first, second, first[2:4], second.flatten(), second.frustums.get_positions()))
    assert type(found[0][0]) is RaySamples
    for mine, known in zip(found[0][:-1], found[1][:-1], strict=True):
        assert_same(mine, known)
    assert torch.equal(found[0][-1], found[1][-1])


def test_gradients_reach_rays_and_distances():
    found = []
    for bundle in bundles():
        bundle.directions.requires_grad_()
        bundle.origins.requires_grad_()
        edges = torch.linspace(0.2, 3.0, 5).repeat(7, 1)[..., None].requires_grad_()
        samples = bundle.get_ray_samples(edges[:, :-1], edges[:, 1:])
        assert samples.deltas is not None
        total = samples.frustums.get_positions().square().sum() + samples.deltas.square().sum()
        found.append(torch.autograd.grad(total, [bundle.directions, bundle.origins, edges]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_a_part_of_the_rays_makes_samples_too():
    ours, theirs = (bundle[2:5] for bundle in bundles())
    assert isinstance(ours, TrainingRays)
    edges = torch.linspace(0.2, 3.0, 5).repeat(3, 1)[..., None]
    assert_same(ours.get_ray_samples(edges[:, :-1], edges[:, 1:]), theirs.get_ray_samples(edges[:, :-1], edges[:, 1:]))
