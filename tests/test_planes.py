"""Large planes: what is flat gets its normals back, and walls are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacobinerf_ns.core import planes, surfaces
from jacobinerf_ns.core.surfaces import Cloud

UP, SIDE = np.array([0.0, 0, 1]), np.array([1.0, 0, 0])
ROOM = {
    "floor": (2, 0.0, UP),
    "ceiling": (2, 40.0, -UP),
    "west": (0, 0.0, SIDE),
    "east": (0, 60.0, -SIDE),
    "south": (1, 0.0, np.array([0.0, 1, 0])),
    "north": (1, 60.0, np.array([0.0, -1, 0])),
}


def cloud_of(points: np.ndarray, normals: np.ndarray, cell: float = 1.0) -> Cloud:
    count = len(points)
    return Cloud(
        points * cell,
        normals,
        np.zeros((count, 3)),
        np.zeros((count, 2)),
        cell,
        np.full(count, -1),
        np.zeros(count, bool),
    )


def side(axis: int, at: float, normal: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """A square grid of points, one a cell."""
    steps = np.arange(low + 0.5, high)
    flat = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    points = np.insert(flat, axis, at, axis=1)
    return points, np.broadcast_to(normal, points.shape)


def rounded_corner(noise: float = 0.4) -> tuple[Cloud, np.ndarray]:
    """A floor and a wall that noise and smoothing have made one: normals turn over six cells. And which is which."""
    rng = np.random.default_rng(0)
    floor, wall = side(2, 0.0, UP, 0, 40)[0], side(0, 0.0, SIDE, 0, 40)[0]
    points = np.concatenate([floor, wall]) + rng.normal(0, noise, (2 * len(floor), 3))
    is_wall = np.arange(len(points)) >= len(floor)
    from_corner = np.where(is_wall, points[:, 2], points[:, 0])
    turned = np.clip(0.5 - from_corner / 6, 0, 0.5) * np.pi / 2
    angle = np.where(is_wall, np.pi / 2 - turned, turned)
    normals = np.stack([np.sin(angle), np.zeros(len(points)), np.cos(angle)], axis=1)
    return cloud_of(points, normals), is_wall


@pytest.mark.parametrize("cell", [1.0, 0.013])
def test_a_rounded_corner_is_an_edge_again_in_any_unit(cell: float):
    cloud, is_wall = rounded_corner()
    cloud = cloud._replace(points=cloud.points * cell, cell=cell)
    between = 1 - np.abs(cloud.normals[:, [0, 2]]).max(axis=1)
    assert (between > 0.1).sum() > 50
    flat = planes.flattened(cloud, share=0.1)
    expected = np.where(is_wall[:, None], SIDE, UP)
    assert ((flat.normals * expected).sum(1) > np.cos(np.radians(3))).mean() > 0.97
    # Nothing is left that a segment could creep along, from the floor to the wall.
    assert (1 - np.abs(flat.normals[:, [0, 2]]).max(axis=1) > 0.01).mean() < 0.005
    bends = [surfaces.neighbours(each, surfaces.REACH).bend for each in (cloud, flat)]
    assert ((bends[0] > 0.05) & (bends[0] < 0.9)).any()
    assert ((bends[1] > 0.05) & (bends[1] < 0.9)).mean() < 0.002


def test_what_is_small_keeps_its_normals():
    floor = side(2, 0.0, UP, 0, 60)
    box = side(2, 6.0, UP, 20, 28)
    tilted = np.array([0.6, 0, 0.8])
    points = np.concatenate([floor[0], box[0]])
    normals = np.concatenate([floor[1], np.broadcast_to(tilted, box[0].shape)])
    found = planes.flattened(cloud_of(points, normals), share=0.03)
    assert np.array_equal(found.normals[len(floor[0]) :], normals[len(floor[0]) :])
    assert found.normals[: len(floor[0])] == pytest.approx(floor[1], abs=1e-6)


def test_what_is_on_the_other_side_of_the_room_is_not_on_a_plane():
    # In the plane of a table top, thirty cells away from it, and facing nearly the same way.
    table = side(2, 0.0, UP, 0, 30)
    away, turned = np.array([[60.0, 15, 0.5]]), np.array([[0.5, 0, 0.75**0.5]])
    points, normals = np.concatenate([table[0], away]), np.concatenate([table[1], turned])
    found = planes.flattened(cloud_of(points, normals), share=0.1)
    assert np.array_equal(found.normals[-1:], turned)


def room() -> tuple[Cloud, np.ndarray]:
    """A room with a cupboard in it, seen from inside, and the name of what each point is of."""
    parts = {
        name: side(axis, at, normal, 0, 60 if name in ("floor", "ceiling") else 40)
        for name, (axis, at, normal) in ROOM.items()
    }
    parts["cupboard"] = side(0, 30.0, SIDE, 0, 30)
    names = np.concatenate([[name] * len(points) for name, (points, _) in parts.items()])
    points, normals = (np.concatenate([part[k] for part in parts.values()]) for k in (0, 1))
    return cloud_of(points, normals), names


def test_walls_are_upright_and_nothing_is_behind_them():
    cloud, names = room()
    found = planes.flattened(cloud, share=0.03)
    held = {name: found.walls[names == name].mean() for name in set(names)}
    assert min(held[name] for name in ("west", "east", "south", "north")) > 0.9
    assert max(held[name] for name in ("floor", "ceiling", "cupboard")) < 0.1


def test_planes_come_largest_first_and_share_no_points():
    cloud, _ = room()
    found = planes.large_planes(cloud.points, cloud.normals, 0.03)
    tells = np.stack([plane.tells(cloud.points, cloud.normals) for plane in found])
    assert len(found) == 7
    sizes = tells.sum(1)
    assert (np.diff(sizes) <= 0.05 * sizes[0]).all()
    for plane in found:
        assert np.abs(plane.normal).max() == pytest.approx(1.0, abs=1e-6)
    assert planes.large_planes(cloud.points, cloud.normals, 1.0) == []


def test_where_walls_meet_is_no_edge_between_things():
    cloud, names = room()
    found = planes.flattened(cloud, share=0.03)
    between = surfaces.neighbours(found, surfaces.REACH)
    met = np.stack([names[between.first], names[between.second]], axis=1)
    walls = (np.isin(met, ["west", "south"]).all(1)) & (met[:, 0] != met[:, 1])
    floor = (np.isin(met, ["west", "floor"]).all(1)) & (met[:, 0] != met[:, 1])
    assert walls.any()
    assert not between.bend[walls].any()
    assert between.bend[floor] == pytest.approx(1.0)


@given(st.integers(0, 40), st.integers(0, 2**16))
def test_normals_stay_unit_vectors_and_any_cloud_will_do(count: int, seed: int):
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    cloud = cloud_of(rng.uniform(0, 4, (count, 3)), normals)
    found = planes.flattened(cloud, share=0.2)
    assert np.linalg.norm(found.normals, axis=1) == pytest.approx(np.ones(count))
    again = planes.flattened(cloud, share=0.2)
    assert np.array_equal(found.normals, again.normals)
