"""From annotations to rays: every seed as pixels of the training cameras, or as a ray into the scene."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from jacobinerf_ns.annotations.frames import WorldFrame
from jacobinerf_ns.annotations.rasterise import describe, rasterise, spread, to_camera
from jacobinerf_ns.annotations.schema import Annotations, InImage, Seed, SpaceBox, SpaceClick
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.names import find_image

BOX_SIDE = 8
"""Rays along each side of a box in space."""


class SeedRays(NamedTuple):
    """One ray per seed pixel."""

    rays: RayBundle
    """Flat; those of pixels are exactly training's, before any pose correction of the camera optimiser."""
    labels: Int[Tensor, "seeds"]
    """Position of the label in `annotations.labels`."""
    positive: Bool[Tensor, "seeds"]
    """False: the pixel is not of the label."""
    weights: Float[Tensor, "seeds"]
    """Pixels of the camera that each stands for."""
    index: Int[Tensor, "seeds"]
    """Position of the seed in `annotations.seeds`."""


class _Pixels(NamedTuple):
    """Pixels of one training camera."""

    camera: int
    xy: Int[np.ndarray, "pixels 2"]
    weight: float = 1.0
    """Pixels that each stands for."""


def seed_rays(
    annotations: Annotations,
    folder: Path,
    cameras: Cameras,
    filenames: Sequence[Path],
    world: WorldFrame,
    max_per_seed: int = 256,
) -> SeedRays:
    """The rays of all seeds, in the order of the file.

    Args:
        annotations: what the user said.
        folder: folder of the annotation file, which mask files are relative to.
        cameras: of the training images; the result is on their device.
        filenames: of the training images, in the cameras' order.
        world: where the run's dataparser has put the capture's world.
        max_per_seed: pixels taken of a scribble, box or mask, evenly spread.

    Raises:
        UserError: an image is unknown, ambiguous or of another aspect ratio, or a mask file is not usable.
    """
    positions = {label.id: position for position, label in enumerate(annotations.labels)}
    pixels = [_pixels(seed, folder, cameras, filenames, max_per_seed) for seed in annotations.seeds]
    rays = _pixel_rays(pixels, cameras)
    counts = [len(part.xy) for part in pixels]
    _aim(rays, annotations.seeds, counts, world)
    seeds = [seed for seed, count in zip(annotations.seeds, counts, strict=True) for _ in range(count)]
    return SeedRays(
        rays,
        torch.tensor([positions[seed.label] for seed in seeds], dtype=torch.long, device=cameras.device),
        torch.tensor([not seed.negative for seed in seeds], dtype=torch.bool, device=cameras.device),
        torch.tensor([part.weight for part in pixels for _ in part.xy], dtype=torch.float32, device=cameras.device),
        torch.tensor([place for place, count in enumerate(counts) for _ in range(count)], dtype=torch.long).to(
            cameras.device
        ),
    )


def world_click(
    frame: WorldFrame,
    origin: Sequence[float] | Tensor,
    direction: Sequence[float] | Tensor,
    label: int,
    negative: bool = False,
) -> SpaceClick:
    """A click in the viewer as a seed.

    Args:
        frame: where the run's dataparser has put the world.
        origin: of the ray, in scene units.
        direction: of the ray, in the scene frame, of any length but zero.
        label: id of the label.
        negative: the thing hit is not of the label.
    """
    ray = torch.stack([torch.as_tensor(part, dtype=torch.float64).cpu() for part in (origin, direction)])
    x, y, z = frame.points_to_world(ray[:1])[0].tolist()
    i, j, k = frame.directions_to_world(ray[1:])[0].tolist()
    return SpaceClick(label=label, negative=negative, origin=(x, y, z), direction=(i, j, k))


def world_box(
    frame: WorldFrame,
    position: Sequence[float],
    rotation: Float[np.ndarray, "3 3"],
    fov: float,
    aspect: float,
    bounds: tuple[tuple[float, float], tuple[float, float]],
    label: int,
    negative: bool = False,
) -> SpaceBox:
    """A rectangle that was drawn on the viewer's screen as a seed.

    Args:
        frame: where the run's dataparser has put the world.
        position: of the camera, scene units.
        rotation: camera to scene; the camera looks along +z, y points down (OpenCV).
        fov: vertical, in radians.
        aspect: width of the screen over its height.
        bounds: two opposite corners (x, y) in 0..1 from the top left of the screen.
        label: id of the label.
        negative: what is in the rectangle is not of the label.
    """
    (left, top), (right, bottom) = bounds
    tall = math.tan(fov / 2)
    screen = np.array([(left, top), (right, top), (right, bottom), (left, bottom)]) * 2.0 - 1.0
    rays = np.concatenate([screen * (aspect * tall, tall), np.ones((4, 1))], axis=1) @ rotation.T
    lengths = np.linalg.norm(rays, axis=1, keepdims=True)
    corners = frame.directions_to_world(torch.from_numpy(rays)).numpy() * lengths
    origin = frame.points_to_world(torch.tensor([list(position)], dtype=torch.float64))[0]
    return SpaceBox.model_validate(
        {"label": label, "negative": negative, "origin": origin.tolist(), "corners": corners.tolist()}
    )


def _pixels(seed: Seed, folder: Path, cameras: Cameras, filenames: Sequence[Path], max_per_seed: int) -> _Pixels:
    """The pixels of a seed; for one in space the middle of the first image, whose pixel is a typical one."""
    if not isinstance(seed, InImage):
        width, height = _size(cameras, 0)
        return _Pixels(0, np.repeat([[width // 2, height // 2]], len(_space_directions(seed)), axis=0))
    camera = find_image(seed.image, filenames)
    width, height = _size(cameras, camera)
    xy = np.argwhere(rasterise(seed, folder))[:, ::-1]
    try:
        mapped = to_camera(xy, (seed.width, seed.height), (width, height))
    except UserError as error:
        raise UserError(f"{describe(seed)}: {error}") from error
    # Several pixels of a large image may fall into one of the camera's.
    covered = np.zeros((height, width), dtype=bool)
    covered[mapped[:, 1], mapped[:, 0]] = True
    chosen = spread(np.argwhere(covered)[:, ::-1], max_per_seed)
    return _Pixels(camera, chosen, covered.sum() / len(chosen))


def _size(cameras: Cameras, index: int) -> tuple[int, int]:
    return int(cameras.width[index]), int(cameras.height[index])


def _pixel_rays(pixels: Sequence[_Pixels], cameras: Cameras) -> RayBundle:
    """Rays through the centres of pixels, generated as training generates its own."""
    if not pixels:
        pixels = [_Pixels(0, np.empty((0, 2), dtype=np.int64))]
    rows_columns = torch.from_numpy(np.concatenate([part.xy for part in pixels])[:, ::-1].copy())
    indices = torch.cat([torch.full((len(part.xy), 1), part.camera) for part in pixels])
    coords = rows_columns.to(cameras.device, torch.float32) + 0.5
    return cameras.generate_rays(camera_indices=indices.to(cameras.device), coords=coords)


def _aim(rays: RayBundle, seeds: Sequence[Seed], counts: Sequence[int], world: WorldFrame) -> None:
    """Puts the rays of seeds in space where they belong; their pixel area and metadata stay those of a pixel."""
    starts = np.cumsum([0, *counts])
    aimed = [(start, seed) for start, seed in zip(starts, seeds, strict=False) if not isinstance(seed, InImage)]
    if not aimed:
        return
    towards = [_space_directions(seed) for _, seed in aimed]
    rows = torch.cat([torch.arange(len(part)) + start for (start, _), part in zip(aimed, towards, strict=True)])
    rows = rows.to(rays.origins.device)
    origins = torch.tensor(
        [seed.origin for (_, seed), part in zip(aimed, towards, strict=True) for _ in part], dtype=torch.float64
    )
    directions = torch.cat(towards)
    rays.origins = rays.origins.index_copy(0, rows, world.points_to_scene(origins).to(rays.origins))
    rays.directions = rays.directions.index_copy(0, rows, world.directions_to_scene(directions).to(rays.directions))


def _space_directions(seed: SpaceClick | SpaceBox) -> Float[Tensor, "rays 3"]:
    """Of a click its direction; of a box those through the middles of a grid over it. World frame."""
    if isinstance(seed, SpaceClick):
        return torch.tensor([seed.direction], dtype=torch.float64)
    first, second, third, fourth = (torch.tensor(corner, dtype=torch.float64) for corner in seed.corners)
    steps = (torch.arange(BOX_SIDE, dtype=torch.float64) + 0.5) / BOX_SIDE
    across, down = steps[None, :, None], steps[:, None, None]
    return torch.lerp(torch.lerp(first, second, across), torch.lerp(fourth, third, across), down).flatten(0, 1)
