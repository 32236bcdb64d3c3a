"""Seeds as pixels and as rays."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from test_annotations import IMAGE, click, every_kind, two_labels

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.frames import WorldFrame
from jacobinerf_ns.annotations.rasterise import rasterise, spread, to_camera
from jacobinerf_ns.annotations.rays import SeedRays, seed_rays, world_box, world_click
from jacobinerf_ns.annotations.schema import Annotations, Box, Click, Label, Mask, Scribble, SpaceClick
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.names import find_image, image_name

FILES = [Path(f"/data/images/{number:04d}.png") for number in range(5)]
WORLD = WorldFrame(torch.eye(4)[:3], 1.0)


def some_cameras(width: int = 24, height: int = 18, count: int = 5, distortion: bool = True) -> Cameras:
    poses = torch.eye(4)[:3].repeat(count, 1, 1)
    poses[:, 0, 3] = torch.arange(count).float()
    return Cameras(
        camera_to_worlds=poses,
        fx=20.0 * width / 24,
        fy=21.0 * width / 24,
        cx=width / 2,
        cy=height / 2,
        width=width,
        height=height,
        distortion_params=torch.tensor([0.1, 0.01, 0, 0, 0.001, 0]) if distortion else None,
    )


def labelled(*seeds) -> Annotations:
    return Annotations(
        labels=tuple(Label(id=number, name=f"label {number}", colour=(0, 0, 0)) for number in (1, 7, 3)), seeds=seeds
    )


def write_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def covered(seed, folder: Path = Path()) -> set[tuple[int, int]]:
    """(x, y) of the pixels of a seed."""
    mask = rasterise(seed, folder)
    assert mask.shape == (seed.height, seed.width)
    return {(int(x), int(y)) for y, x in np.argwhere(mask)}


def test_clicks_and_boxes_by_hand():
    assert covered(click(1, 23, 17)) == {(23, 17)}
    box = Box(label=1, corner=(3, 9), opposite=(2, 7), **IMAGE)
    assert covered(box) == {(x, y) for x in (2, 3) for y in (7, 8, 9)}


def test_thin_scribbles_by_hand():
    line = Scribble(label=1, points=((1, 1), (4, 1), (4, 3)), **IMAGE)
    assert covered(line) == {(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (4, 3)}
    assert covered(Scribble(label=1, points=((5, 6),), **IMAGE)) == {(5, 6)}


@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize("points", [((0, 0), (9, 5), (20, 17)), ((23, 0), (23, 17)), ((12, 9),), ((6, 6), (6, 6))])
def test_wide_scribbles_are_all_pixels_near_the_line(radius: int, points):
    found = covered(Scribble(label=1, points=points, radius=radius, **IMAGE))
    steps = np.linspace(0, 1, 2001)[:, None]
    ends = points[1:] or points
    line = np.concatenate([np.array(a) * (1 - steps) + np.array(b) * steps for a, b in zip(points, ends, strict=False)])
    distance = {
        (x, y): np.sqrt(((line - (x, y)) ** 2).sum(axis=1).min())
        for x in range(IMAGE["width"])
        for y in range(IMAGE["height"])
    }
    assert {pixel for pixel, value in distance.items() if value <= radius - 1e-3} <= found
    assert found <= {pixel for pixel, value in distance.items() if value <= radius + 1e-3}


def test_long_strokes_are_the_same_drawn_in_pieces():
    size = {"image": "a.png", "width": 300, "height": 200}
    start, end, radius = (10, 190), (290, 5), 6
    found = rasterise(Scribble(label=1, points=(start, end), radius=radius, **size), Path())
    y, x = np.mgrid[:200, :300]
    along = np.subtract(end, start)
    share = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / (along @ along), 0, 1)
    distance = np.hypot(x - start[0] - share * along[0], y - start[1] - share * along[1])
    assert ((distance <= radius) == found)[np.abs(distance - radius) > 1e-6].all()


def test_masks(tmp_path: Path):
    values = np.zeros((18, 24))
    values[2:4, 5:8] = 3
    values[17, 23] = 4
    write_mask(tmp_path / "masks" / "a.png", values)
    mask = Mask(label=1, file="masks/a.png", value=3, **IMAGE)
    assert covered(mask, tmp_path) == {(x, y) for x in (5, 6, 7) for y in (2, 3)}
    with pytest.raises(UserError, match=r"a\.png has no pixel of value 5: found 0, 3, 4"):
        rasterise(mask.model_copy(update={"value": 5}), tmp_path)
    with pytest.raises(UserError, match=r"mask .*b\.png of a seed in 0003\.png is missing"):
        rasterise(mask.model_copy(update={"file": "masks/b.png"}), tmp_path)
    write_mask(tmp_path / "masks" / "a.png", values.T)
    with pytest.raises(UserError, match=r"is 18x24 pixels .*, expected 24x18"):
        rasterise(mask, tmp_path)
    (tmp_path / "masks" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        rasterise(mask, tmp_path)


def test_spread_is_even_and_always_the_same():
    pixels = np.argwhere(np.ones((64, 64), dtype=bool))[:, ::-1]
    chosen = spread(pixels, 256)
    assert len({tuple(pixel) for pixel in chosen.tolist()}) == 256
    assert (spread(pixels, 256) == chosen).all()
    # One in each 4x4 block: in steps along rows, 16 of 64 columns would have them all.
    assert len(np.unique(chosen // 4, axis=0)) == 256
    assert (spread(pixels, 5000) == pixels).all()
    assert len(spread(pixels, 1)) == 1
    odd = spread(pixels[:1000], 77)
    assert len(np.unique(odd, axis=0)) == 77


@pytest.mark.parametrize(("size", "factor"), [((24, 18), 1), ((24, 18), 3), ((27, 19), 4), ((1001, 755), 7)])
def test_whole_factors_map_pixels_to_those_that_cover_them(size: tuple[int, int], factor: int):
    small = (size[0] // factor, size[1] // factor)
    pixels = np.argwhere(np.ones((min(size[1], 60), min(size[0], 60)), dtype=bool))[:, ::-1]
    expected = np.minimum(pixels // factor, np.array(small) - 1)
    assert (to_camera(pixels, size, small) == expected).all()
    inside = np.minimum(pixels, np.array(small) - 1)
    back = to_camera(inside, small, size)
    assert (back // factor == inside).all()
    assert (back % factor == factor // 2).all()


def test_other_sizes_map_centres():
    assert to_camera(np.array([[0, 0], [2, 1], [5, 3]]), (6, 4), (9, 6)).tolist() == [[0, 0], [3, 2], [8, 5]]
    # (299 + 0.5) / 300 * 200 = 199.67
    assert to_camera(np.array([[299, 0]]), (300, 150), (200, 100)).tolist() == [[199, 0]]


def test_another_aspect_ratio_is_refused():
    pixel = np.array([[0, 0]])
    for size, camera in [((1000, 500), (500, 250)), ((1000, 500), (640, 323)), ((100, 100), (202, 200))]:
        assert to_camera(pixel, size, camera).max() <= 1
    for size, camera in [((1000, 500), (500, 260)), ((24, 18), (18, 24)), ((24, 18), (24, 19)), ((8, 6), (24, 24))]:
        with pytest.raises(UserError, match="another aspect ratio"):
            to_camera(pixel, size, camera)


def test_images_are_found_by_as_much_of_their_path_as_needed():
    files = [Path(f"/data/{eye}/{name}.jpg") for eye in ("left", "right") for name in ("a", "b")]
    files.append(Path("/data/left/c.d.png"))
    assert find_image("left/a.jpg", files) == 0
    assert find_image("/data/right/a.jpg", files) == 2
    assert find_image("right\\b", files) == 3
    assert find_image("c.d.png", files) == find_image("c.d", files) == find_image("./left/c.d", files) == 4
    with pytest.raises(UserError, match=r"'a\.jpg' is ambiguous: found /data/left/a\.jpg and /data/right/a\.jpg"):
        find_image("a.jpg", files)
    with pytest.raises(UserError, match="'b' is ambiguous"):
        find_image("b", files)
    with pytest.raises(UserError, match=r"no image 'middle/a\.jpg'"):
        find_image("middle/a.jpg", files)
    assert [image_name(files, index) for index in range(5)] == [
        "left/a.jpg",
        "left/b.jpg",
        "right/a.jpg",
        "right/b.jpg",
        "c.d.png",
    ]
    assert all(find_image(image_name(files, index), files) == index for index in range(5))


def test_smaller_copies_count_as_their_image():
    assert find_image("images/1.jpg", [Path("/data/images_4/0.jpg"), Path("/data/images_4/1.jpg")]) == 1
    copies = [Path(f"/home/.cache/downscaled/data-x4-12ab/area-jpg/images/{number}.png") for number in range(2)]
    assert find_image("images/1.jpg", copies) == find_image("1.jpg", copies) == 1


def test_an_unknown_image_is_answered_with_the_closest_names():
    with pytest.raises(UserError, match=r"no image '003\.png' among the 5 training images: did you mean 0003\.png or"):
        find_image("003.png", FILES)
    with pytest.raises(UserError, match=r"did you mean 0000\.png or 0001\.png or 0002\.png"):
        find_image("kitchen", FILES)


def said(found: SeedRays, annotations: Annotations) -> tuple[list[int], list[bool]]:
    """Position of the label of each ray's seed, and whether the seed is positive."""
    positions = {label.id: position for position, label in enumerate(annotations.labels)}
    seeds = [annotations.seeds[place] for place in found.index.tolist()]
    return [positions[seed.label] for seed in seeds], [not seed.negative for seed in seeds]


def assert_same_rays(found, expected):
    for name in ("origins", "directions", "pixel_area", "camera_indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.metadata.keys() == expected.metadata.keys()


def test_rays_are_trainings_own():
    """Pixel (row, column) of training is generated at its centre, with the camera's distortion."""
    cameras = some_cameras()
    annotations = labelled(click(7, 4, 9), click(1, 23, 17, negative=True), Click(label=3, pixel=(0, 5), **IMAGE))
    found = seed_rays(annotations, Path(), cameras, FILES, WORLD)
    expected = cameras.generate_rays(
        camera_indices=torch.full((3, 1), 3), coords=torch.tensor([[9.5, 4.5], [17.5, 23.5], [5.5, 0.5]])
    )
    assert found.rays.shape == (3,)
    assert_same_rays(found.rays, expected)
    assert said(found, annotations) == ([1, 0, 2], [True, False, True])
    assert found.index.tolist() == [0, 1, 2]
    undistorted = seed_rays(annotations, Path(), some_cameras(distortion=False), FILES, WORLD).rays
    assert not torch.allclose(undistorted.directions, found.rays.directions, atol=1e-3)


def test_seeds_of_the_original_image_on_smaller_cameras():
    seed = Click(label=1, image="0001.png", width=96, height=72, pixel=(95, 40))
    found = seed_rays(labelled(seed), Path(), some_cameras(), FILES, WORLD).rays
    expected = some_cameras().generate_rays(camera_indices=torch.tensor([[1]]), coords=torch.tensor([[10.5, 23.5]]))
    assert_same_rays(found, expected)
    # A box of 8x8 pixels covers 2x2 of the camera: four rays, not sixty-four.
    box = Box(label=1, image="0001.png", width=96, height=72, corner=(8, 8), opposite=(15, 15))
    assert len(seed_rays(labelled(box), Path(), some_cameras(), FILES, WORLD).index) == 4
    wrong = Click(label=1, image="0001.png", width=96, height=96, pixel=(0, 0))
    with pytest.raises(UserError, match=r"click \(0, 0\) in 0001\.png: its pixels are counted in 96x96"):
        seed_rays(labelled(wrong), Path(), some_cameras(), FILES, WORLD)


def test_cameras_of_different_sizes():
    both = Cameras(
        camera_to_worlds=torch.eye(4)[:3].repeat(2, 1, 1),
        fx=20.0,
        fy=20.0,
        cx=torch.tensor([[12.0], [6.0]]),
        cy=torch.tensor([[9.0], [8.0]]),
        width=torch.tensor([[24], [12]]),
        height=torch.tensor([[18], [16]]),
    )
    seeds = [
        Click(label=1, image="0000.png", width=24, height=18, pixel=(23, 0)),
        Click(label=1, image="0001.png", width=12, height=16, pixel=(0, 15)),
    ]
    found = seed_rays(labelled(*seeds), Path(), both, FILES[:2], WORLD).rays
    expected = both.generate_rays(
        camera_indices=torch.tensor([[0], [1]]), coords=torch.tensor([[0.5, 23.5], [15.5, 0.5]])
    )
    assert_same_rays(found, expected)


def test_regions_are_spread_over_at_most_so_many_rays(tmp_path: Path):
    write_mask(tmp_path / "masks" / "a.png", np.full((18, 24), 3))
    annotations = every_kind()
    found = seed_rays(annotations, tmp_path, some_cameras(), FILES, WORLD, max_per_seed=20)
    assert found.index.bincount().tolist() == [1, 1, 20, 20, 20, 1]
    assert found.index.tolist() == sorted(found.index.tolist())
    labels, positive = said(found, annotations)
    assert labels == [0, 1] + [0] * 40 + [1] * 21
    assert positive == [True] * 22 + [False] * 20 + [True] * 21
    assert len(found.rays) == len(found.index) == 63
    full = seed_rays(annotations, tmp_path, some_cameras(), FILES, WORLD)
    assert full.index.bincount().tolist()[3:5] == [256, 256]


def test_clicks_in_space_are_rays_like_a_pixels():
    frame = WorldFrame(torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]]), 2.0)
    space = world_click(frame, (-4.0, 2.0, 8.0), (0.0, 3.0, 0.0), label=7, negative=True)
    assert space == SpaceClick(label=7, negative=True, origin=(1, 2, 3), direction=(1, 0, 0))
    cameras = some_cameras()
    annotations = labelled(click(1, 2, 3), space, click(1, 4, 5))
    found = seed_rays(annotations, Path(), cameras, FILES, frame)
    assert found.rays.origins[1].tolist() == [-4, 2, 8]
    assert found.rays.directions[1].tolist() == [0, 1, 0]
    assert found.rays.camera_indices is not None
    assert found.rays.camera_indices.flatten().tolist() == [3, 0, 3]
    assert found.rays.pixel_area[1].item() == pytest.approx(1 / (20 * 21), rel=0.1)
    assert said(found, annotations) == ([0, 1, 0], [True, False, True])
    assert found.index.tolist() == [0, 1, 2]
    # The other rays are not moved.
    alone = seed_rays(labelled(click(1, 2, 3), click(1, 4, 5)), Path(), cameras, FILES, frame)
    assert torch.equal(found.rays.origins[[0, 2]], alone.rays.origins)
    assert torch.equal(found.rays.directions[[0, 2]], alone.rays.directions)


def test_a_box_drawn_on_the_screen_is_a_grid_of_rays_through_it():
    frame = WorldFrame(torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]]), 2.0)
    turn = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    box = world_box(frame, (1.0, 2.0, 3.0), turn, math.pi / 2, 2.0, ((0.25, 0.5), (0.75, 1.0)), label=1)
    found = seed_rays(labelled(box), Path(), some_cameras(), FILES, frame).rays
    # 90 degrees tall and twice as wide: x from -1 to 1 and y from 0 to 1 at z = 1, cut into 8 by 8 cells.
    x, y = torch.meshgrid((torch.arange(8) - 3.5) / 4, (torch.arange(8) + 0.5) / 8, indexing="xy")
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1).double() @ torch.from_numpy(turn).T
    expected = torch.nn.functional.normalize(rays, dim=-1).float()
    assert torch.allclose(found.directions, expected, atol=1e-6)
    assert torch.allclose(found.origins, torch.tensor([1.0, 2.0, 3.0]).expand(64, 3), atol=1e-6)


def test_no_seeds_are_no_rays():
    found = seed_rays(changes.add_label(Annotations(), "chair")[0], Path(), some_cameras(), FILES, WORLD)
    assert (len(found.rays), found.weights.tolist(), found.index.tolist()) == (0, [], [])
    assert (found.weights.dtype, found.index.dtype) == (torch.float32, torch.long)


def test_an_unknown_image_stops_everything():
    with pytest.raises(UserError, match=r"no image '0003\.png' among the 2 training images"):
        seed_rays(two_labels(), Path(), some_cameras(count=2), FILES[:2], WORLD)
