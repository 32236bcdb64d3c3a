"""Whether a parser's cameras, depth and labels agree: between frames, and with the truth of a miniature.

Everything goes through the parser's outputs, so that poses, transform and scale are tested together.
"""

from typing import Any, NamedTuple

import numpy as np
from miniatures import Miniature
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from jacobinerf_ns.datamanager import list_frames
from jacobinerf_ns.files.index_maps import read_label_map


class Reprojection(NamedTuple):
    """How well the frames of a split agree, by the parser's outputs alone."""

    pixels: float
    """Distance that 99 % of co-visible pixels do not exceed: between a pixel and where the surface that the other frame
    has at its place is seen from the first one."""
    agreement: float
    """Share of co-visible pixels whose class is that of the pixel they land on."""
    inside: float
    """The same without pixels that land beside a border between classes, where rounding decides."""
    visible: float
    """Share of a frame's pixels that are co-visible with the other frame."""


def back_project(outputs: DataparserOutputs, index: int) -> np.ndarray:
    """[height width 3] points of the scene frame under the pixels of a depth map, which covers the camera's picture."""
    depth = np.array(Image.open(outputs.metadata["depth_filenames"][index])).astype(np.float64)
    depth *= outputs.metadata["depth_unit_scale_factor"] * outputs.dataparser_scale
    camera = _camera(outputs, index)
    x = (np.arange(depth.shape[1]) + 0.5) * camera["width"] / depth.shape[1]
    y = (np.arange(depth.shape[0]) + 0.5) * camera["height"] / depth.shape[0]
    x, y = np.meshgrid((x - camera["cx"]) / camera["fx"], (y - camera["cy"]) / camera["fy"])
    local = np.stack([x, -y, -np.ones_like(x)], axis=-1) * depth[..., None]
    return local @ camera["pose"][:, :3].T + camera["pose"][:, 3]


def project(outputs: DataparserOutputs, index: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel positions (x, y; centres are halves) of points of the scene frame in a frame, and their depth there."""
    camera = _camera(outputs, index)
    local = (points - camera["pose"][:, 3]) @ camera["pose"][:, :3]
    depth = -local[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        x = local[..., 0] / depth * camera["fx"] + camera["cx"]
        y = -local[..., 1] / depth * camera["fy"] + camera["cy"]
    return np.stack([x, y], axis=-1), depth


def to_files_world(outputs: DataparserOutputs, points: np.ndarray) -> np.ndarray:
    """Points of the scene frame in the frame that the files' poses are in."""
    transform = outputs.dataparser_transform.double().numpy()
    return (points / outputs.dataparser_scale - transform[:, 3]) @ transform[:, :3]


def class_maps(outputs: DataparserOutputs) -> list[np.ndarray]:
    """Class maps of a split as evaluation reads them: at the size of the training images."""
    frames = list_frames(outputs, outputs.cameras)
    return [read_label_map(f.semantics, f.size, f.original_size).numpy() for f in frames if f.semantics is not None]


def reproject(outputs: DataparserOutputs, pairs: list[tuple[int, int]]) -> Reprojection:
    """Carries every pixel of the first frame of each pair to the second one, and the surface found there back.

    A pixel is co-visible where it lands inside the other picture, on an unbroken surface, at the depth that this has.
    """
    maps = class_maps(outputs)
    off, agreeing, settled, total = [], [], [], 0
    for one, two in pairs:
        here = back_project(outputs, one)
        spots, depth = project(outputs, two, here)
        shape = here.shape[:2]
        camera = _camera(outputs, two)
        grid = spots * [shape[1] / camera["width"], shape[0] / camera["height"]]
        seen, smooth = _depth_at(outputs, two, grid)
        met = (depth > 0) & smooth & (np.abs(seen / depth - 1) < 0.02)
        centre = camera["pose"][:, 3]
        surface = centre + (here - centre) * (seen / depth)[..., None]
        off.append(np.linalg.norm(project(outputs, one, surface)[0] - project(outputs, one, here)[0], axis=-1)[met])
        landed = np.floor(grid[met]).astype(int)
        target = _pick(maps[two], shape)
        agreeing.append(_pick(maps[one], shape)[met] == target[landed[:, 1], landed[:, 0]])
        one_class = np.equal(maximum_filter(target, 3), minimum_filter(target, 3))
        settled.append(np.asarray(one_class)[landed[:, 1], landed[:, 0]])
        total += met.size
    distances, same, clear = np.concatenate(off), np.concatenate(agreeing), np.concatenate(settled)
    pixels = float(np.quantile(distances, 0.99))
    return Reprojection(pixels, float(same.mean()), float(same[clear].mean()), len(distances) / total)


def truth_errors(outputs: DataparserOutputs, miniature: Miniature, numbers: list[int]) -> tuple[float, float]:
    """Largest error of the parser's geometry against the tracer: metres in the files' world, and pixels.

    Pixels: where a back-projected pixel lands in the next frame of the split, against where the true surface point does
    by the files' own matrices. `numbers` are the miniature's numbers of the frames of the split.
    """
    metres, pixels = 0.0, 0.0
    for index, number in enumerate(numbers):
        points, truth = back_project(outputs, index), miniature.points[number]
        metres = max(metres, float(np.linalg.norm(to_files_world(outputs, points) - truth, axis=-1).max()))
        other = (index + 1) % len(numbers)
        pose = miniature.poses[numbers[other]]
        local = (truth - pose[:3, 3]) @ pose[:3, :3]
        ahead = local[..., 2] > 0.3
        expected = local[ahead] @ miniature.intrinsics.T
        expected = expected[:, :2] / expected[:, 2:] + 0.5
        pixels = max(pixels, float(np.linalg.norm(project(outputs, other, points)[0][ahead] - expected, axis=1).max()))
    return metres, pixels


def _depth_at(outputs: DataparserOutputs, index: int, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth at places (x, y) of a depth map, and whether the surface is unbroken there; 0 and False outside.

    Inverse depth is interpolated: it is linear on a plane.
    """
    depth = project(outputs, index, back_project(outputs, index))[1]
    height, width = depth.shape
    inside = np.asarray(np.isfinite(grid).all(axis=-1))
    place = np.where(inside[..., None], grid, 0.0).clip(-1, max(height, width) + 1) - 0.5
    x, y = np.floor(place).astype(int)[..., 0], np.floor(place).astype(int)[..., 1]
    inside &= (x >= 0) & (y >= 0) & (x < width - 1) & (y < height - 1)
    x, y = np.where(inside, x, 0), np.where(inside, y, 0)
    corners = np.stack([depth[y + dy, x + dx] for dy in (0, 1) for dx in (0, 1)])
    u, v = place[..., 0] - x, place[..., 1] - y
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v])
    inside &= corners.max(axis=0) / corners.min(axis=0) < 1.1
    return np.where(inside, 1 / np.where(inside, (weights / corners).sum(axis=0), 1), 0), inside


def _pick(ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Ids under the pixel centres of a map of another size."""
    rows = ((np.arange(shape[0]) + 0.5) * ids.shape[0] / shape[0]).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * ids.shape[1] / shape[1]).astype(int)
    return ids[rows[:, None], columns[None, :]]


def _camera(outputs: DataparserOutputs, index: int) -> dict[str, Any]:
    cameras = outputs.cameras
    numbers = {key: float(getattr(cameras, key)[index]) for key in ("fx", "fy", "cx", "cy", "width", "height")}
    return {**numbers, "pose": cameras.camera_to_worlds[index].double().numpy()}
