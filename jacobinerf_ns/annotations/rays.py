"""From annotations to rays: every seed as pixels of the training cameras, or as a ray into the scene."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from jacobinerf_ns.annotations.frames import WorldFrame
from jacobinerf_ns.annotations.rasterise import describe, rasterise, spread, to_camera
from jacobinerf_ns.annotations.schema import (
    Annotations,
    Box,
    Click,
    Mask,
    Scribble,
    SpaceBox,
    SpaceClick,
    drawn,
)
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.names import find_image

BOX_SIDE = 8
"""Rays along each side of a box in space."""


class SeedRays(NamedTuple):
    """The rays of seeds: one for each pixel, or for each direction of a seed in space."""

    rays: RayBundle
    """Flat; those of pixels are exactly training's, before any pose correction of the camera optimiser."""
    weights: Float[Tensor, "seeds"]
    """Pixels of the camera that each stands for; 1 for a ray in space."""
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
    """Return the rays of all seeds, in the order of the file.

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
    parts = [(place, part) for place, seed in enumerate(annotations.seeds) for part in drawn(seed)]
    in_image = [(place, part) for place, part in parts if not isinstance(part, SpaceClick | SpaceBox)]
    in_space = {place: part for place, part in parts if isinstance(part, SpaceClick | SpaceBox)}
    pixels = [_pixels(seed, folder, cameras, filenames, max_per_seed) for _, seed in in_image]
    directions = [_space_directions(seed) for seed in in_space.values()]
    rays = _pixel_rays(pixels, cameras)
    if in_space:
        rays = _joined(rays, _space_rays(list(in_space.values()), directions, cameras, world))
    counts = torch.tensor([*(len(part.xy) for part in pixels), *map(len, directions)], dtype=torch.long)
    weights = torch.tensor([*(part.weight for part in pixels), *(1.0 for _ in directions)], dtype=torch.float32)
    places = [*(place for place, _ in in_image), *in_space]
    index = torch.tensor(places, dtype=torch.long).repeat_interleave(counts)
    order = index.argsort(stable=True)
    return SeedRays(
        rays[order.to(cameras.device)],
        weights.repeat_interleave(counts)[order].to(cameras.device),
        index[order].to(cameras.device),
    )


def rays_through(cameras: Cameras, pixels: Int[Tensor, "rays 3"]) -> RayBundle:
    """Return flat rays through the centres of pixels (camera, row, column), generated as training generates its own."""
    where = pixels.to(cameras.device)
    return cameras.generate_rays(camera_indices=where[:, :1], coords=where[:, 1:].to(torch.float32) + 0.5)


def world_click(
    frame: WorldFrame,
    origin: Sequence[float] | Tensor,
    direction: Sequence[float] | Tensor,
    label: int,
    negative: bool = False,
) -> SpaceClick:
    """Return a click in the viewer as a seed.

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
    """Return a rectangle that was drawn on the viewer's screen as a seed.

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


def _pixels(
    seed: Click | Scribble | Box | Mask, folder: Path, cameras: Cameras, filenames: Sequence[Path], max_per_seed: int
) -> _Pixels:
    """Return the pixels of a training camera that a seed stands for."""
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
    if not pixels:
        pixels = [_Pixels(0, np.empty((0, 2), dtype=np.int64))]
    rows_columns = torch.from_numpy(np.concatenate([part.xy for part in pixels])[:, ::-1].copy())
    indices = torch.cat([torch.full((len(part.xy), 1), part.camera) for part in pixels])
    return rays_through(cameras, torch.cat([indices, rows_columns], dim=-1))


def _space_rays(
    seeds: Sequence[SpaceClick | SpaceBox],
    directions: Sequence[Float[Tensor, "rays 3"]],
    cameras: Cameras,
    world: WorldFrame,
) -> RayBundle:
    """Return the rays of seeds in space, as wide as that of a typical pixel: the middle one of the first image.

    nerfstudio looks appearance up by camera, so these have one too: the first.
    """
    counts = torch.tensor([len(part) for part in directions])
    origins = torch.tensor([seed.origin for seed in seeds], dtype=torch.float64).repeat_interleave(counts, dim=0)
    width, height = _size(cameras, 0)
    typical = _pixel_rays([_Pixels(0, np.array([[width // 2, height // 2]]))], cameras)
    rays = typical[torch.zeros(len(origins), dtype=torch.long, device=cameras.device)]
    return replace(
        rays,
        origins=world.points_to_scene(origins).to(rays.origins),
        directions=world.directions_to_scene(torch.cat(list(directions))).to(rays.directions),
    )


def _joined(first: RayBundle, second: RayBundle) -> RayBundle:
    """Return flat rays of the same cameras one after the other."""
    parts = {
        name: torch.cat([getattr(first, name), getattr(second, name)])
        for name in ("origins", "directions", "pixel_area", "camera_indices", "times")
        if getattr(first, name) is not None
    }
    metadata = {name: torch.cat([value, second.metadata[name]]) for name, value in first.metadata.items()}
    return RayBundle(**parts, metadata=metadata)


def _space_directions(seed: SpaceClick | SpaceBox) -> Float[Tensor, "rays 3"]:
    """Return a click's direction, or those through the middles of a grid over a box. World frame."""
    if isinstance(seed, SpaceClick):
        return torch.tensor([seed.direction], dtype=torch.float64)
    first, second, third, fourth = (torch.tensor(corner, dtype=torch.float64) for corner in seed.corners)
    steps = (torch.arange(BOX_SIDE, dtype=torch.float64) + 0.5) / BOX_SIDE
    across, down = steps[None, :, None], steps[:, None, None]
    return torch.lerp(torch.lerp(first, second, across), torch.lerp(fourth, third, across), down).flatten(0, 1)
