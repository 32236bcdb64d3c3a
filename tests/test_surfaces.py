"""The teacher that looks at the field: small scenes with known parts, and runs that go on with what it found."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SHAPING_START, start, tiny_capture, tiny_config

from jacobinerf_ns.cli.features import Features
from jacobinerf_ns.core import surfaces
from jacobinerf_ns.core.agreement import SeenView, agreed
from jacobinerf_ns.core.partition import PartitionConfig, leaves_of, partition, partitions
from jacobinerf_ns.core.segments import Weights, cut, flatness, merge_tree, small_segments
from jacobinerf_ns.core.silhouettes import Outlines, outlines
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.field_teacher import Sight, read_surfaces, surface_features, surfaces_in, write_surfaces
from jacobinerf_ns.features.palette import PaletteStore
from jacobinerf_ns.features.surfaces import Surfaces, SurfacesConfig, _sizes, feature_tables, pooled_tables, side_for
from jacobinerf_ns.pipeline import JacobiNeRFPipeline

GREY, RED = np.array([50.0, 0, 0]), np.array([50.0, 60, 40])


def looking_down(place: tuple[float, float], height: float = 4.0, side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Origin and unit directions of a camera that looks down."""
    y, x = np.meshgrid(np.linspace(-0.6, 0.6, side), np.linspace(-0.6, 0.6, side), indexing="ij")
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1)
    return np.array([*place, height]), rays / np.linalg.norm(rays, axis=-1, keepdims=True)


BOXES = (((-1.4, -0.3), (-0.7, 0.7), 0.8), ((0.3, 1.4), (-0.7, 0.7), 0.8))
"""Two boxes on a floor at z = 0: ranges of x and y, and height."""


def hit(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the floor and the boxes, and which was hit (0: the floor)."""
    with np.errstate(divide="ignore"):
        nearest, which = -origin[2] / rays[..., 2], np.zeros(rays.shape[:2], int)
        for number, (xs, ys, top) in enumerate(BOXES, start=1):
            planes = np.array([xs, ys, (0.0, top)])
            t = (planes.T[:, None, None] - origin) / rays
            enter, leave = t.min(0).max(-1), t.max(0).min(-1)
            inside = (enter < leave) & (enter > 0) & (enter < nearest)
            nearest, which = np.where(inside, enter, nearest), np.where(inside, number, which)
    return nearest, which


def scene(scale: float = 1.0, noise: float = 0.0) -> tuple[list[SeenView], list[np.ndarray]]:
    """Nine views of the boxes, all of one colour, and what each pixel shows."""
    rng = np.random.default_rng(0)
    views, truth = [], []
    for x in (-1.2, 0.0, 1.2):
        for y in (-1.2, 0.0, 1.2):
            origin, rays = looking_down((x, y))
            distances, which = hit(origin, rays)
            distances = distances * (1 + noise * rng.normal(size=distances.shape))
            colours = np.broadcast_to(GREY, rays.shape)
            views.append(SeenView(origin * scale, rays, distances * scale, np.ones_like(which, bool), colours))
            truth.append(which)
    return views, truth


@pytest.mark.parametrize("scale", [1.0, 37.0])
def test_boxes_of_one_colour_come_off_the_floor_in_any_unit(scale: float):
    views, truth = scene(scale)
    found, grids = partition(views, PartitionConfig(levels=(0.05, 0.15)))
    for value in (0, 1, 2):
        held = np.concatenate([grid[which == value] for grid, which in zip(grids, truth, strict=True)])
        segments = found.levels[1][held]
        most = np.bincount(segments).argmax()
        everywhere = np.concatenate([(found.levels[1][grid] == most).ravel() for grid in grids])
        expected = np.concatenate([(which == value).ravel() for which in truth])
        assert (everywhere & expected).sum() / (everywhere | expected).sum() > 0.9


def test_a_convex_edge_costs_less_than_a_concave_one():
    # Two walls that meet at a right angle along the y axis; seen from outside it is a box's edge, else a corner.
    for outside, share in ((True, surfaces.CONVEX_SHARE), (False, 1.0)):
        points = np.array([[-0.5, 0, 0], [0, 0, -0.5]])
        normals = np.array([[0.0, 0, 1], [1, 0, 0]]) if outside else np.array([[0.0, 0, -1], [-1, 0, 0]])
        cloud = surfaces.Cloud(
            points,
            normals,
            np.stack([GREY, GREY]),
            np.zeros((2, 2)),
            cell=1.0,
            plane=np.full(2, -1),
            walls=np.zeros(2, bool),
        )
        between = surfaces.neighbours(cloud, reach=1.8)
        assert between.bend == pytest.approx([share])
        assert between.contrast == pytest.approx([0.0])


def test_normals_do_not_lie_across_an_outline():
    origin, rays = looking_down((0.0, 0.0))
    distances, which = hit(origin, rays)
    normals = surfaces.image_normals(origin + rays * distances[..., None], origin)
    flat = (which == 0) | (normals[..., 2] > 0.5)
    assert np.isclose(normals[flat][:, 2], 1.0, atol=1e-6).mean() > 0.97


def test_a_rugs_stripes_have_one_look_and_their_colours_are_different():
    colours = np.stack([GREY, RED] * 20)
    points = np.stack([np.arange(40.0), np.zeros(40), np.zeros(40)], axis=1)
    up = np.tile([0.0, 0.0, 1.0], (40, 1))
    cloud = surfaces.fuse(points, up, colours, cell=1.0, look_rounds=4)
    bare = surfaces.look_of(colours)
    assert np.square(bare[20] - bare[21]).sum() / 2 > 0.8
    assert np.square(cloud.looks[20] - cloud.looks[21]).sum() / 2 < 0.05


def test_views_that_err_to_either_side_agree_on_the_middle():
    exact, _ = scene()
    wrong = [view._replace(distances=view.distances * (1 + 0.03 * (-1) ** k)) for k, view in enumerate(exact[:8])]
    middle = (slice(8, 40), slice(8, 40))
    for view, (distances, voices) in zip(exact, agreed(wrong, wrong), strict=False):
        before = 0.03 * view.distances[middle]
        assert np.median(np.abs(distances - view.distances)[middle] / before) < 0.4
        assert np.median(voices[middle]) >= 4


def test_what_one_view_alone_believes_is_not_agreed_on():
    views, _ = scene()
    floater = views[4].distances.copy()
    floater[20:28, 20:28] *= 0.5
    seen = [view if k != 4 else view._replace(distances=floater) for k, view in enumerate(views)]
    _, voices = agreed(seen, seen)[4]
    assert voices[20:28, 20:28].max() < 3
    assert np.median(voices) >= 3


NOTHING_SEEN = Outlines(*(np.zeros(0, int) for _ in range(4)))
PLAIN = Weights(bend=1.0, jump=1.0, look=1.0, body_share=1.0, full=1.0)


def test_small_segments_and_the_order_of_merges():
    # 0-1 cheap, 2-3 cheap, 1-2 dear, 3-4 dearer.
    first, second, cost = np.array([0, 2, 1, 3]), np.array([1, 3, 2, 4]), np.array([0.0, 0.0, 0.5, 0.8])
    segment = small_segments(5, first, second, cost, scale=0.1, least=1)
    assert segment.tolist() == [0, 0, 1, 1, 2]
    assert small_segments(5, first, second, cost, scale=0.1, least=2).tolist() == [0, 0, 1, 1, 1]
    looks, points = np.zeros((5, 1)), np.zeros((5, 3))
    tree = merge_tree(segment, first, second, cost, points, looks, NOTHING_SEEN, PLAIN)
    assert tree.height.tolist() == [0.5, 0.8]
    assert cut(tree, 0.6).tolist() == [0, 0, 1]
    assert cut(tree, 0.4).tolist() == [0, 1, 2]
    looks[:2] = 2.0  # The first pair looks different: ‖2‖² / 2 on top, and the last pair merges first.
    tree = merge_tree(segment, first, second, cost, points, looks, NOTHING_SEEN, PLAIN)
    assert cut(tree, 0.9).tolist() == [0, 1, 1]
    assert (np.diff(tree.height) >= 0).all()
    # Segments of a quarter of the full size pay half.
    tree = merge_tree(segment, first, second, cost, points, looks * 0, NOTHING_SEEN, PLAIN._replace(full=8.0))
    assert tree.height.tolist()[0] == pytest.approx(0.25)


def test_what_jumps_parts_more_the_less_it_touches():
    # A chain of three segments of two points each; what is between them costs 0.4 for each of two pairs.
    segment, first, second = np.repeat([0, 1, 2], 2), np.array([0, 1, 2, 3]), np.array([2, 3, 4, 5])
    looks, points = np.zeros((6, 1)), np.zeros((6, 3))
    # Views show 20 pairs of pixels that touch where space has 4 pairs of points: 30 that jump are 6.
    seen = Outlines(np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([10, 0, 10]), np.array([30, 50, 0]))
    tree = merge_tree(segment, first, second, np.full(4, 0.4), points, looks, seen, PLAIN._replace(bend=2.0, jump=3.0))
    assert sorted([tree.first[0], tree.second[0]]) == [1, 2]
    # 0 and 2 do not touch, but 2 brings along what jumps between them: 10 of 50, and 6 of 30, on 2 pairs.
    share = 16 / (2 / 3 + 16)
    assert tree.height.tolist() == pytest.approx([0.8, 0.8 + 3 * share**4])


def test_a_plane_is_flat_and_a_ball_is_not():
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(4000, 3)) * 5
    plane = ball * [1, 1, 0.05]
    moments = [
        np.einsum("ni,nj->ij", *[np.concatenate([np.ones((len(p), 1)), p + 7], axis=1)] * 2) for p in (ball, plane)
    ]
    found = flatness(np.stack(moments))
    assert found[0] == pytest.approx(np.exp(-(25 - 1) / (25 * 0.4**2)), rel=0.7)
    assert found[1] == 1.0


def test_outlines_are_counted_where_they_are_seen():
    origin, rays = looking_down((0.0, 0.0), side=64)
    rays = rays[28:36, 28:36]
    grid = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 8, axis=0)
    near = np.where(grid == 1, 2.0, 4.0)
    know = np.ones_like(grid, bool)
    views = [SeenView(origin, rays, distance, know, np.zeros((8, 8, 3))) for distance in (near, near * 0 + 4.0)]
    seen = outlines(views, [grid, grid], cell=0.1)
    # In every row three pairs of pixels, three apart, lie in both.
    assert [part.tolist() for part in seen] == [[0], [1], [24], [24]]
    hidden = [view._replace(known=know & (np.arange(8) != 4)) for view in views]
    assert outlines(hidden, [grid, grid], cell=0.1).jumping.tolist() == [16]
    assert len(outlines(views, [grid * 0, grid - 1], cell=0.1).first) == 0


def test_a_ball_of_two_colours_is_one_thing_and_a_rug_is_not_the_floor():
    middle, radius = np.array([-0.7, 0.0, 1.0]), 1.0
    views, truth = [], []
    for x in (-1.6, -0.8, 0.0, 0.8, 1.6):
        for y in (-1.2, 0.0, 1.2):
            origin, rays = looking_down((x, y), side=64)
            floor = -origin[2] / rays[..., 2]
            along = (rays * (middle - origin)).sum(-1)
            inside = radius**2 - np.square(middle - origin).sum() + along**2
            ball = inside > 0
            distances = np.where(ball, along - np.sqrt(np.maximum(inside, 0)), floor)
            points = origin + rays * distances[..., None]
            rug = ~ball & (abs(points[..., 0] - 1.2) < 0.5) & (abs(points[..., 1]) < 0.7)
            colours = np.where((rug | ball & (points[..., 0] < middle[0]))[..., None], RED, GREY)
            views.append(SeenView(origin, rays, distances, np.ones_like(ball), colours))
            truth.append(np.where(ball, 1, np.where(rug, 2, 0)))

    def overlaps(config: PartitionConfig) -> list[float]:
        found, grids = partition(views, config)
        level = found.levels[6]
        shown, expected = (np.concatenate([part.ravel() for part in parts]) for parts in (grids, truth))
        chosen = [level[shown] == np.bincount(level[shown[expected == value]]).argmax() for value in (0, 1, 2)]
        pairs = [(which, expected == value) for value, which in enumerate(chosen)]
        return [(which & true).sum() / (which | true).sum() for which, true in pairs]

    floor_found, ball_found, rug_found = overlaps(PartitionConfig())
    assert min(floor_found, ball_found) > 0.95
    assert rug_found > 0.75
    assert overlaps(PartitionConfig(body_share=1.0))[1] < 0.7  # two halves


def test_held_out_views_get_the_same_leaves():
    views, _ = scene()
    found, grids = partition(views, PartitionConfig())
    assert (leaves_of(views[3], found) == grids[3]).mean() > 0.95
    nothing = views[3]._replace(known=np.zeros_like(views[3].known))
    assert (leaves_of(nothing, found) == -1).all()
    with pytest.raises(ValueError, match="no surface"):
        partition([nothing] * 3, PartitionConfig())


def test_a_palettes_pixels_are_those_of_the_nearest_cell():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    store = PaletteStore([torch.tensor([[0, 1], [1, -1]])[..., None]], table, [(4, 6)])
    rows, cols = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    pixels = torch.stack([torch.zeros_like(rows), rows, cols], dim=-1).view(-1, 3)
    expected = torch.tensor([0, 0, 0, 1, 1, 1] * 2 + [1, 1, 1, -1, -1, -1] * 2)
    assert torch.equal(store.sample(pixels), torch.cat([table, torch.zeros(1, 2)])[expected])
    assert torch.equal(store.resident("cpu").sample(pixels), store.sample(pixels))
    assert (store.dim, len(store), store.sizes) == (2, 1, [(4, 6)])


@dataclass
class Lenient(SurfacesConfig):
    """For a field that knows next to nothing."""

    agreeing: int = 1
    least: int = 2
    cell: float = 1.0


def surfaces_config(data: Path, output_dir: Path, steps: int = 8):
    config = tiny_config(data, output_dir, steps)
    # By its own name, which config.yml may hold.
    config.pipeline.datamanager.extractor = SurfacesConfig(**vars(Lenient()))
    return config


def weights(pipeline: JacobiNeRFPipeline) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipeline.state_dict().items()}


@pytest.mark.slow
def test_a_resumed_run_equals_a_straight_one(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("jacobinerf_ns.features.surfaces.OPAQUE", 0.0)  # Four steps make no solid thing.
    data = tiny_capture(tmp_path / "room")
    straight = start(surfaces_config(data, tmp_path / "straight"))
    straight.train()
    cut_off = surfaces_config(data, tmp_path / "first", steps=SHAPING_START + 2)
    killed = start(cut_off)
    assert killed.pipeline.datamanager.feature_store is None
    killed.train()
    resumed_config = surfaces_config(data, tmp_path / "second", steps=8 - (SHAPING_START + 2))
    resumed_config.load_dir = killed.checkpoint_dir
    resumed = start(resumed_config)

    def blind(*_args):
        raise AssertionError("the field was looked at again")

    assert resumed.pipeline.datamanager.sight is not None
    resumed.pipeline.datamanager.sight.look = blind
    resumed.train()
    expected, found = weights(straight.pipeline), weights(resumed.pipeline)
    assert expected.keys() == found.keys()
    assert any(name.startswith("surfaces.") for name in found)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    store, held_out = (straight.pipeline.datamanager.teacher_store(split) for split in ("train", "eval"))
    assert (len(store), len(held_out), store.dim) == (4, 2, held_out.dim)
    sheet = tmp_path / "segments.png"
    command = Features(load_config=straight.base_dir / "config.yml", extractor=SurfacesConfig(), preview=sheet)
    command.extractor = straight.config.pipeline.datamanager.extractor
    assert torch.equal(command.main().sample(torch.zeros(1, 3).long()), store.sample(torch.zeros(1, 3).long()))
    assert sheet.exists()


@pytest.mark.slow
def test_a_teacher_is_pooled_over_surfaces_when_shaping_begins(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("jacobinerf_ns.features.surfaces.OPAQUE", 0.0)
    config = tiny_config(tiny_capture(tmp_path / "room"), tmp_path, steps=SHAPING_START + 1)
    config.pipeline.datamanager.with_surfaces = True
    monkeypatch.setattr("jacobinerf_ns.datamanager.SurfacesConfig", Lenient)
    trainer = start(config)
    data = trainer.pipeline.datamanager
    raw = data.feature_store
    trainer.train()
    found = trainer.pipeline.surfaces.found()
    assert raw is not None
    assert isinstance(data.feature_store, PaletteStore)
    assert len(found) == PartitionConfig.trees
    assert torch.equal(data.feature_store.table[:-1], torch.cat(pooled_tables(found, raw)))
    assert data.teacher_store("eval").dim == raw.dim


def found_in_the_boxes() -> Surfaces:
    """What a teacher would keep of the boxes."""
    views, _ = scene()
    found, grids = partition(views, PartitionConfig(levels=(0.05, 0.15, 0.3)))
    numbers = [torch.from_numpy(grid) for grid in grids]
    return Surfaces(
        torch.from_numpy(found.points),
        torch.from_numpy(found.leaves).int(),
        torch.from_numpy(found.levels).int(),
        torch.tensor(found.cell),
        torch.eye(found.levels.shape[1], 5),
        torch.tensor([grid.shape for grid in grids]),
        torch.cat([grid.flatten() for grid in numbers]).int(),
        torch.from_numpy(np.stack([found.tree.first, found.tree.second], axis=1)).int(),
        torch.from_numpy(found.tree.height),
        torch.from_numpy(found.facing).float(),
    )


def test_lies_tell_which_way_a_segment_faces_from_where_to_where_it_reaches_and_how_large_it_is():
    down = 1 / np.sqrt(2)
    normals = np.array([[0.0, 0, 1], [0, 0, -1], [1, 0, 0], [0, down, -down]])
    assert np.allclose(surfaces.facing(normals), [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.5]])
    # A floor of 3,000 points, a wall of 3,000 from there to the ceiling and a picture of 30 half way up it.
    heights = [np.zeros(3000), np.linspace(0, 2, 3000), np.linspace(0.9, 1.1, 30)]
    points = np.stack([np.zeros(6030), np.zeros(6030), np.concatenate(heights)], axis=1)
    segment = np.repeat([0, 1, 2], [3000, 3000, 30])
    faces = surfaces.facing(normals[[0, 2, 2]])[segment]
    shuffled = np.random.default_rng(0).permutation(6030)
    lies = surfaces.lies(points[shuffled], segment[shuffled], faces[shuffled])
    assert np.allclose(np.linalg.norm(lies, axis=1), 1)
    share = np.log(3000 / 30) / np.log(6030 / 30)
    high = np.quantile(points[:, 2], surfaces.HIGHEST)
    reaches = [(0, 0, share), (0.1 / high, 1.9 / high, share), (0.91 / high, 1.09 / high, 0)]  # lowest, highest, size
    for place, faced in enumerate(([1, 0, 0], [0, 0, 1], [0, 0, 1])):
        told = [surfaces.harmonics(np.array([x]))[0] for x in reaches[place]]
        assert np.allclose(lies[place], np.concatenate([faced, *told]) / 2, atol=0.02)
    flat = surfaces.lies(np.zeros((4, 3)), np.zeros(4, dtype=int), np.ones((4, 3)))
    assert np.isfinite(flat).all()


def test_harmonics_are_alike_as_far_as_their_numbers_are_near():
    x = np.linspace(0, 1, 11)
    alike = surfaces.harmonics(x) @ surfaces.harmonics(x).T
    assert np.allclose(np.diag(alike), 1)
    assert np.allclose(alike[0, 4], 0, atol=1e-9)
    assert (np.diff(alike[0, :6]) < 0).all()
    assert (alike[0, 5:] < 1e-9).all()
    assert np.allclose(alike[0, :5], alike[5, 5:10])


def test_a_few_places_find_the_same_nearest_points_as_many():
    rng = np.random.default_rng(0)
    points, places = rng.normal(size=(500, 3)), 1.5 * rng.normal(size=(200, 3))
    many = surfaces.nearest(points, places, 0.4)
    assert (many == -1).any()
    assert (many >= 0).any()
    few = np.concatenate([surfaces.nearest(points, places[start : start + 20], 0.4) for start in range(0, 200, 20)])
    assert np.array_equal(many, few)
    assert surfaces.nearest(points, places[:0], 0.4).tolist() == []


def test_what_faces_the_same_way_is_alike_and_runs_of_before_say_nothing_of_it():
    found = found_in_the_boxes()
    config = SurfacesConfig(dimensions=512, look_share=0.0, lie_share=1.0)
    table = feature_tables([found], config)[0]
    alike = (table @ table.T).numpy()
    points, leaves = found.points.numpy(), found.leaves.long().numpy()
    up = found.facing[:, 0].numpy() > 0.9
    high = np.array([points[leaves == leaf][:, 2].mean() > 0.6 for leaf in range(len(up))])
    tops = np.flatnonzero(up & high)
    left, right = tops[points[np.searchsorted(leaves, tops, sorter=leaves.argsort()), 0].argsort()][[0, -1]]
    floor = np.flatnonzero(up & ~high)[0]
    assert alike[left, right] > alike[left, floor]
    before = found._replace(facing=torch.zeros_like(found.facing))
    told, rest = feature_tables([before], SurfacesConfig(look_share=0.15, lie_share=0.4))[0], 0.15 / 0.6
    assert torch.allclose(told, feature_tables([before], SurfacesConfig(look_share=rest, lie_share=0.0))[0], atol=1e-6)
    (nothing,) = feature_tables([before], config)
    assert not nothing.any()


def test_cosines_fall_by_a_step_for_each_level_that_parts_two_leaves():
    found = found_in_the_boxes()
    table = feature_tables([found], SurfacesConfig(dimensions=4096, look_share=0.0, lie_share=0.0))[0]
    together = (found.levels[:, :, None] == found.levels[:, None, :]).float().mean(0)
    assert torch.allclose(table @ table.T, together, atol=0.06)
    once, again = (feature_tables([found], SurfacesConfig())[0] for _ in range(2))
    assert torch.allclose(once.norm(dim=-1), torch.ones(len(table)))
    assert torch.equal(once, again)


def test_shares_are_what_they_say_of_however_many_trees():
    found = found_in_the_boxes()
    config = SurfacesConfig(dimensions=4096, look_share=0.2, lie_share=0.3)
    (alone,) = feature_tables([found], config)
    mean = torch.stack(feature_tables([found] * 4, config)).mean(0)
    assert torch.allclose(mean @ mean.T, alone @ alone.T, atol=0.06)
    assert torch.allclose(mean.norm(dim=-1), torch.ones(len(mean)), atol=0.05)


def heights_in(state: dict[str, torch.Tensor]) -> list[float]:
    """Heights of the only tree that a checkpoint holds."""
    (found,) = surfaces_in(state)
    return found.partition.tree.height.tolist()


def test_what_was_found_is_read_back_and_what_is_damaged_is_not(tmp_path: Path):
    found, path = found_in_the_boxes(), tmp_path / "found.safetensors"
    other = Surfaces(*(tensor + 1 for tensor in found))
    assert read_surfaces(path) == ()
    write_surfaces(path, [found, other])
    back = read_surfaces(path)
    assert len(back) == 2
    for mine, theirs in zip(back, (found, other), strict=True):
        assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))
    path.write_bytes(path.read_bytes()[:-100])
    assert read_surfaces(path) == ()
    state = {f"surfaces.{name}": tensor for name, tensor in found._asdict().items()}
    assert surfaces_in({"_model.x": torch.zeros(1)}) == ()
    assert heights_in(state) == found.heights.tolist() != []
    del state["surfaces.merges"], state["surfaces.heights"]  # as before trees were kept
    assert heights_in(state) == []
    faced = state.pop("surfaces.facing")
    assert not surfaces_in(state)[0].facing.any()
    state["surfaces.lies"] = torch.cat([faced, torch.ones(len(faced), 2)], dim=-1)  # as heights were kept with it
    assert torch.equal(surfaces_in(state)[0].facing, found.facing)
    del state["surfaces.cell"]
    with pytest.raises(UserError, match="use an earlier checkpoint"):
        surfaces_in(state)


def test_a_scene_is_taken_apart_as_all_views_see_it_and_then_as_some_do():
    views, truth = scene(noise=0.01)
    config = PartitionConfig(trees=3, view_share=0.5)
    parted = list(partitions(views, config))
    again = list(partitions(views, config))
    assert len(parted) == 3
    whole, grids = partition(views, config)
    assert np.array_equal(parted[0][0].points, whole.points)
    assert all(np.array_equal(*pair) for pair in zip(parted[0][1], grids, strict=True))
    for (found, seen), (twice, _) in zip(parted, again, strict=True):
        assert np.array_equal(found.points, twice.points)
        assert [grid.shape for grid in seen] == [which.shape for which in truth]
        assert all((grid >= 0).all() for grid in seen)
    assert len(parted[1][0].points) < len(whole.points)


def test_features_of_several_trees_are_their_mean(tmp_path: Path):
    found = found_in_the_boxes()
    other = found._replace(numbers=found.numbers.flip(0))

    def blind(_rays):
        raise AssertionError("views that were looked at are looked at again")

    sight = Sight(look=blind, weights=list)
    config, sizes = SurfacesConfig(), [(48, 48)] * len(found.grids)
    store = surface_features(sight, [found, other], config, None, sizes)
    pixels = torch.tensor([[0, 3, 5], [2, 40, 7]])
    expected = [
        table[tree.grids[image][row, col].long()]
        for image, row, col in pixels.tolist()
        for tree, table in zip((found, other), feature_tables([found, other], config), strict=True)
    ]
    assert torch.allclose(store.sample(pixels), torch.stack(expected).view(2, 2, -1).mean(1))


def test_a_teachers_noise_is_averaged_over_segments():
    found = found_in_the_boxes()
    clean = torch.nn.functional.one_hot(found.levels[1].long()).float()
    noise = torch.Generator().manual_seed(0)

    class Noisy(PaletteStore):
        def sample(self, indices):
            right = super().sample(indices)
            return right + torch.randn(right.shape, generator=noise)

    noisy = Noisy([grid[..., None] for grid in found.grids], clean, [(48, 48)] * len(found.grids))
    many = _sizes(found)[None].mul(found.levels[1][:, None] == found.levels[1][None]).sum(1) > 400
    assert torch.allclose(pooled_tables([found], noisy)[0][many], clean[many], atol=0.25)


def test_many_views_are_looked_at_more_coarsely():
    frames = [Frame(i, Path("x.png"), (1920, 1080)) for i in range(10)]
    assert side_for(frames, SurfacesConfig(side=160)) == 160
    assert side_for(frames, SurfacesConfig(side=160, rays=36_000)) == 80


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": (0.3, 0.2)},
        {"levels": ()},
        {"look_share": 2.0},
        {"look_share": -0.1},
        {"look_share": 0.6, "lie_share": 0.5},
        {"side": 1},
        {"trees": 0},
        {"view_share": 0.0},
        {"plane_share": 0.0},
        {"body_share": 1.5},
        {"jump_weight": -1.0},
    ],
)
def test_bad_settings_are_refused_before_training(wrong):
    with pytest.raises(UserError, match="surfaces:"):
        SurfacesConfig(**wrong).check()
    with pytest.raises(UserError, match="--load-config"):
        SurfacesConfig().setup()
