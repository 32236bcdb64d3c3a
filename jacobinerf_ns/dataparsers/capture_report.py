"""What a capture holds, what is odd about it, and what to do: everything is read that a training would read.

Letters: cameras are camera-to-world [views 3 4] in the scene frame, OpenGL axes (x right, y up, z back). A photo's
sharpness is the variance of its Laplacian over the variance of its brightness: without a unit, and compared within a
capture only. How far the scene is is not known before training; it is taken to be some way within 0.5 to 2 times the
reach of the cameras.
"""

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from PIL import Image

from jacobinerf_ns.dataparsers.image_checks import check_depths, check_training_files
from jacobinerf_ns.dataparsers.label_folders import add_label_maps
from jacobinerf_ns.errors import UserError, visible
from jacobinerf_ns.files.index_maps import VOID_ID, read_label_map
from jacobinerf_ns.files.outside import open_picture, read_array
from jacobinerf_ns.progress import track

FEW = 12
"""Training photos below which a field rarely holds together."""
BLURRED = 0.25
"""Share of the capture's median sharpness below which a photo is called blurred."""
DARK, BRIGHT = 0.03, 0.97
"""Mean brightness (0..1) outside of which a photo shows next to nothing."""
_DEPTHS = (0.5, 1.0, 2.0)
"""Times the reach of the cameras: where the middle of a photo is taken to lie."""
_LARGEST_SIDE = 1024
"""Pixels to which photos are shrunk before their sharpness is taken."""


@dataclass
class Line:
    """A line of the table."""

    what: str
    found: str
    odd: list[str] = field(default_factory=list)
    """What is odd about it, and what to do."""


@dataclass
class Seen:
    """What all pictures of a capture were found to hold."""

    sharpness: list[float] = field(default_factory=list)
    brightness: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    """Share (0..1) of each mask that is trained on."""
    depth: list[tuple[float, float, float]] = field(default_factory=list)
    """Share (0..1) of each depth map that has a value, and its smallest and largest, metres."""
    classes: dict[int, int] = field(default_factory=dict)
    """Photos by class id."""
    labelled: list[float] = field(default_factory=list)
    """Share (0..1) of each label map that has a class."""
    instances: int = 0
    """Maps of instances that were read."""


def report(parser: DataParser, label_dir: Path | None = None) -> list[Line]:
    """Read a capture as a training does, and return the lines of the table.

    Args:
        parser: set up for the capture, with the options of the training.
        label_dir: label maps that the training is given beside the capture.

    Raises:
        UserError: training would refuse the capture.
    """
    said = StringIO()
    with redirect_stdout(said):
        train, held_out = parser.get_dataparser_outputs("train"), parser.get_dataparser_outputs("val")
        if label_dir is not None:
            add_label_maps(label_dir, (train, held_out))
    # nerfstudio's own lines begin with a time or with blanks, ours with what they say.
    lines = [line for line in said.getvalue().splitlines() if line.startswith(("warning: ", "dropped ", "depth "))]
    seen = read_pictures(train)
    read_pictures(held_out)
    return [
        _frames(train, held_out, [visible(line.removeprefix("warning: ")) for line in lines]),
        _sizes(train.cameras),
        _lenses(train.cameras),
        _photos(train.image_filenames, seen),
        _coverage(train.image_filenames, train.cameras),
        _scale(train),
        _masks(train, seen),
        _depth_maps(train, seen),
        _labels(train, seen),
    ]


def read_pictures(outputs: DataparserOutputs) -> Seen:
    """Read all photos, masks, depth maps and label maps of a split.

    Raises:
        UserError: one cannot be read, or is not of its photo's size.
    """
    seen = Seen()
    check_training_files(outputs.image_filenames, outputs.mask_filenames or [])
    heights, widths = outputs.cameras.height.flatten().tolist(), outputs.cameras.width.flatten().tolist()
    metadata, count = outputs.metadata, len(outputs.image_filenames)
    depths, unit = metadata.get("depth_filenames") or [], metadata.get("depth_unit_scale_factor", 1e-3)
    if depths and all(path.suffix != ".npy" for path in depths):
        check_depths(depths)
    originals = metadata.get("original_sizes") or [None] * count
    for i, path in enumerate(track(outputs.image_filenames, "Reading the capture", total=count, transient=True)):
        size = (heights[i], widths[i])
        grey = _grey(path, size)
        seen.sharpness.append(sharpness(grey))
        seen.brightness.append(float(grey.mean()))
        if outputs.mask_filenames:
            seen.kept.append(_kept(outputs.mask_filenames[i], size))
        if depths:
            seen.depth.append(_depth_range(depths[i], unit))
        semantics, instances = metadata.get("semantics_filenames"), metadata.get("instances_filenames")
        if semantics:
            ids, counts = np.unique(read_label_map(semantics[i], size, originals[i]).numpy(), return_counts=True)
            for number in ids.tolist():
                seen.classes[number] = seen.classes.get(number, 0) + 1
            seen.labelled.append(float(counts[ids != VOID_ID].sum() / counts.sum()))
        if instances:
            read_label_map(instances[i], size, originals[i])
            seen.instances += 1
    return seen


def sharpness(grey: Float[np.ndarray, "height width"]) -> float:
    """Return the variance of the Laplacian over that of the brightness; 0 of a picture of one colour.

    Pech-Pacheco et al. 2000 take the first alone, which low contrast makes small in a sharp photo too.
    """
    inner = grey[1:-1, 1:-1]
    if inner.size == 0 or grey.var() == 0:
        return 0.0
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(laplacian.var() / grey.var())


def seen_by_others(
    cameras: Float[np.ndarray, "views 3 4"], half_angles: Float[np.ndarray, "views 2"]
) -> Int[np.ndarray, " views"]:
    """Return how many other cameras see what a camera looks at: its middle, at any of the depths tried.

    Args:
        cameras: camera-to-world.
        half_angles: tangents of half the field of view, across and upright.
    """
    centres, axes = cameras[:, :, 3], -cameras[:, :, 2]
    reach = float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()) or 1.0
    seen: Bool[np.ndarray, "views views"] = np.zeros((len(cameras), len(cameras)), dtype=bool)
    for depth in _DEPTHS:
        points = centres + depth * reach * axes
        local = np.einsum("jab,ija->ijb", cameras[:, :, :3], points[:, None] - centres[None])
        ahead = -local[..., 2]
        inside = (np.abs(local[..., :2]) <= half_angles[None] * ahead[..., None]).all(axis=-1)
        seen |= inside & (ahead > 0)
    np.fill_diagonal(seen, False)
    return seen.sum(axis=1)


def _grey(path: Path, size: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    with open_picture(path, f"image {path}", "replace it") as picture:
        if (picture.height, picture.width) != size:
            raise UserError(
                f"image {path} is {picture.width}x{picture.height} pixels (width x height), its camera "
                f"{size[1]}x{size[0]}: correct one of them"
            )
        grey = picture.convert("L")
    grey.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float64) / 255


def _kept(path: Path, size: tuple[int, int]) -> float:
    with open_picture(path, f"mask {path}", "replace it") as picture:
        values = np.asarray(picture)
    if values.shape != size:
        raise UserError(
            f"mask {path} is {values.shape[1]}x{values.shape[0]} pixels (width x height), its image {size[1]}x{size[0]}"
        )
    return float((values != 0).mean())


def _depth_range(path: Path, unit: float) -> tuple[float, float, float]:
    if path.suffix == ".npy":
        values = read_array(path)
    else:
        with open_picture(path, f"depth map {path}", "replace it") as picture:
            values = np.asarray(picture)
    known = values[np.isfinite(values) & (values > 0)] * unit
    return (known.size / max(values.size, 1), float(known.min()), float(known.max())) if known.size else (0.0, 0.0, 0.0)


def _frames(train: DataparserOutputs, held_out: DataparserOutputs, odd: list[str]) -> Line:
    count = len(train.image_filenames)
    if count < FEW:
        odd = [*odd, f"{count} photos to train on are few: take {FEW} or more, with large overlaps"]
    return Line("photos", f"{count} to train on, {len(held_out.image_filenames)} held out", odd)


def _sizes(cameras: Cameras) -> Line:
    sizes = list(zip(cameras.width.flatten().tolist(), cameras.height.flatten().tolist(), strict=True))
    listed = ", ".join(f"{width}x{height}" for width, height in sorted(set(sizes))[:4])
    odd = []
    if len(set(sizes)) > 1:
        odd.append(f"{len(set(sizes))} sizes: training reads such a capture more slowly")
    if max(max(size) for size in sizes) > 1600:
        odd.append("sides of more than 1600 pixels take memory and time: --downscale-factor 2 or more")
    return Line("size", f"{listed} pixels (width x height)", odd)


def _lenses(cameras: Cameras) -> Line:
    fx, width = cameras.fx.flatten().numpy(), cameras.width.flatten().numpy()
    angles = np.degrees(2 * np.arctan(width / (2 * fx)))
    kinds = [CameraType(number).name.lower() for number in sorted(set(cameras.camera_type.flatten().tolist()))]
    bent = cameras.distortion_params is not None and bool((cameras.distortion_params != 0).any())
    odd = []
    if angles.max() > 150 or angles.min() < 10:
        odd.append("a field of view that few cameras have: are fl_x and w those of these photos?")
    off = np.abs(cameras.cx.flatten().numpy() / width - 0.5).max()
    if off > 0.25:
        odd.append("a principal point far off the middle: are cx and w those of these photos?")
    spread = f"{angles.min():.0f}" if np.ptp(angles) < 1 else f"{angles.min():.0f} to {angles.max():.0f}"
    lenses = len(set(zip(fx.tolist(), width.tolist(), strict=True)))
    lens = "1 lens" if lenses == 1 else f"{lenses} lenses"
    return Line("cameras", f"{lens}, {', '.join(kinds)}, {spread} degrees across{', distorted' if bent else ''}", odd)


def _photos(paths: Sequence[Path], seen: Seen) -> Line:
    values, light = np.array(seen.sharpness), np.array(seen.brightness)
    typical = float(np.median(values))
    odd = _named(paths, values < BLURRED * typical, "much less sharp than the others: leave them out")
    odd += _named(paths, (light < DARK) | (light > BRIGHT), "next to black or white: leave them out")
    return Line("sharpness", f"median {typical:.2g}, least {values.min():.2g}", odd)


def _coverage(paths: Sequence[Path], cameras: Cameras) -> Line:
    across = cameras.width.flatten() / (2 * cameras.fx.flatten())
    upright = cameras.height.flatten() / (2 * cameras.fy.flatten())
    angles = np.stack([across.numpy(), upright.numpy()], axis=1).astype(np.float64)
    counts = seen_by_others(cameras.camera_to_worlds.numpy().astype(np.float64), angles)
    odd = _named(paths, counts < 2, "looking at what fewer than 2 others see: take more photos of it")
    return Line("coverage", f"the middle of a photo is seen by {int(np.median(counts))} others (median)", odd)


def _scale(train: DataparserOutputs) -> Line:
    centres = train.cameras.camera_to_worlds[:, :, 3].numpy() / train.dataparser_scale
    extent = np.ptp(centres, axis=0)
    odd = []
    if extent.max() == 0:
        odd.append("all cameras are at one place: depth cannot be told, take photos from several")
    found = f"cameras spread over {extent.max():.3g} of the capture's units, scaled by {train.dataparser_scale:.3g}"
    return Line("scale", found, odd)


def _masks(train: DataparserOutputs, seen: Seen) -> Line:
    if not seen.kept:
        return Line("masks", "none")
    kept = np.array(seen.kept)
    odd = _named(train.mask_filenames or [], kept < 0.01, "leaving next to nothing to train on: 0 is left out, not 255")
    return Line("masks", f"{kept.mean():.0%} of the pixels are trained on", odd)


def _depth_maps(train: DataparserOutputs, seen: Seen) -> Line:
    if not seen.depth:
        return Line("depth", "none")
    shares, nearest, furthest = np.array(seen.depth).T
    full = shares > 0
    odd = _named(train.metadata["depth_filenames"], ~full, "without any depth: export them again")
    if not full.any():
        return Line("depth", "no value", odd)
    found = f"{shares.mean():.0%} of the pixels, {nearest[full].min():.2g} to {furthest[full].max():.2g} m"
    return Line("depth", found, odd)


def _labels(train: DataparserOutputs, seen: Seen) -> Line:
    if not seen.labelled:
        return Line("labels", f"{seen.instances} maps of instances" if seen.instances else "none")
    names: dict[int, Any] = train.metadata.get("classes") or {}
    present = sorted(number for number in seen.classes if number != VOID_ID)
    odd = []
    strange = [number for number in present if names and number not in names]
    if strange:
        odd.append(f"class {strange[0]} has no name in classes.json: add it there")
    if not present:
        odd.append("no pixel has a class: are these the right maps?")
    share = float(np.mean(seen.labelled))
    instances = f", {seen.instances} maps of instances" if seen.instances else ""
    return Line("labels", f"{len(present)} classes on {share:.0%} of the pixels{instances}", odd)


def _named(paths: Sequence[Path], chosen: np.ndarray, what: str) -> list[str]:
    names = [visible(path.name) for path, one in zip(paths, chosen, strict=True) if one]
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{', '.join(names[:3])}{more}: {what}"]
