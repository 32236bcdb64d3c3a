"""From annotations to rays: every seed as pixels of the training cameras, or as a ray into the scene."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from jacobinerf_ns.annotations import Annotations, InImage, Seed, SpaceClick
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.seed_pixels import describe, find_image, rasterise, spread, to_camera
from jacobinerf_ns.world import WorldFrame


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
    sources: tuple[str, ...]
    """Where each ray comes from, for messages."""


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
        tuple(describe(seed) for seed in seeds),
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


def _pixels(seed: Seed, folder: Path, cameras: Cameras, filenames: Sequence[Path], max_per_seed: int) -> _Pixels:
    """The pixels of a seed; for a click in space the middle of the first image, whose pixel is a typical one."""
    if not isinstance(seed, InImage):
        width, height = _size(cameras, 0)
        return _Pixels(0, np.array([[width // 2, height // 2]]))
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
    """Puts the rays of clicks in space where they belong; their pixel area and metadata stay those of a pixel."""
    starts = np.cumsum([0, *counts])
    aimed = [(int(start), seed) for start, seed in zip(starts, seeds, strict=False) if isinstance(seed, SpaceClick)]
    if not aimed:
        return
    rows = torch.tensor([row for row, _ in aimed], device=rays.origins.device)
    origins = torch.tensor([seed.origin for _, seed in aimed], dtype=torch.float64)
    directions = torch.tensor([seed.direction for _, seed in aimed], dtype=torch.float64)
    rays.origins = rays.origins.index_copy(0, rows, world.points_to_scene(origins).to(rays.origins))
    rays.directions = rays.directions.index_copy(0, rows, world.directions_to_scene(directions).to(rays.directions))
