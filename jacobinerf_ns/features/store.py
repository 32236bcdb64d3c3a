"""Teacher features of any pixels of an image set, read from the cache in every training step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Extractor, Frame, corners, pixel_positions
from jacobinerf_ns.features.cache import Filled, extract_all, read_grid
from jacobinerf_ns.features.pca import project_all

FREE_SHARE = 0.5
"""Share of a GPU's free memory that features may take at most: training has yet to allocate."""
_CHUNK = 16_384
"""Rays sampled at a time: bounds the scratch memory when whole images are asked for."""


class FeatureLookup(Protocol):
    """Features by pixel."""

    def sample(self, indices: Int[Tensor, "rays 3"]) -> Float[Tensor, "rays dim"]:
        """Return the features at pixels (image, row, col), float32."""
        ...


class PixelFeatures(FeatureLookup, Protocol):
    """Teacher features of a list of images, however they are kept."""

    sizes: list[tuple[int, int]]
    """(height, width) in pixels of the images that are indexed."""

    def __len__(self) -> int: ...

    @property
    def dim(self) -> int:
        """Size of a feature."""
        ...

    @property
    def value_bytes(self) -> int:
        """Memory that the features take."""
        ...

    def resident(self, device: torch.device | str) -> FeatureLookup:
        """Return the same features in the memory of a device."""
        ...


class FeatureStore:
    """Memory-mapped grids of a list of images, sampled together.

    Holds the maps open for its lifetime; the system keeps their pages only as long as it has memory to spare.
    """

    def __init__(self, filled: Filled, sizes: Sequence[tuple[int, int]]) -> None:
        """Open the files of `filled`; `sizes` are the (height, width) in pixels of the images to be indexed."""
        grids = [read_grid(path) for path in filled.paths]
        self.filled = filled
        self.sizes = list(sizes)
        self._dim: int = grids[0].values.shape[2]
        self._values = [grid.values.flatten(0, 1).numpy() for grid in grids]
        self._size = torch.tensor(self.sizes)
        self._shape = torch.tensor([grid.values.shape[:2] for grid in grids])
        self._origin = torch.tensor([grid.origin for grid in grids])
        self._step = torch.tensor([grid.step for grid in grids])

    def __len__(self) -> int:
        return len(self._values)

    @property
    def dim(self) -> int:
        """Size of a feature."""
        return self._dim

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.filled.paths[0].parent

    @property
    def num_bytes(self) -> int:
        """Disk space of the files."""
        return sum(path.stat().st_size for path in set(self.filled.paths))

    @property
    def value_bytes(self) -> int:
        """Memory of all values, in half precision."""
        return sum(values.nbytes for values in self._values)

    def resident(self, device: torch.device | str) -> "ResidentFeatures":
        """Return the same features in the memory of a device."""
        values = torch.empty(sum(map(len, self._values)), self.dim, dtype=torch.float16, device=device)
        for part, grid in zip(values.split([len(grid) for grid in self._values]), self._values, strict=True):
            part.copy_(torch.from_numpy(grid))
        return ResidentFeatures(values, self._size, self._shape, self._origin, self._step)

    def sample(self, indices: Int[Tensor, "rays 3"]) -> Float[Tensor, "rays dim"]:
        """Return the features at pixels (image, row, col), float32 on the CPU: bilinear between patch centres."""
        return torch.cat([self._sample_chunk(chunk) for chunk in indices.detach().cpu().split(_CHUNK)])

    def _sample_chunk(self, indices: Int[Tensor, "rays 3"]) -> Float[Tensor, "rays dim"]:
        """Sort rays by image, so that each map is read once; the arithmetic is done for all images together."""
        order = indices[:, 0].argsort()
        images, pixels = indices[order].split([1, 2], dim=1)
        images = images[:, 0]
        yx = pixel_positions(pixels, self._size[images])
        flat, weights = corners(yx, self._origin[images], self._step[images], self._shape[images])
        picked = np.empty((len(flat) * 4, self._dim), dtype=np.float16)
        start = 0
        present, counts = images.unique_consecutive(return_counts=True)
        for image, count in zip(present.tolist(), counts.tolist(), strict=True):
            rows = slice(start, start + 4 * count)
            np.take(self._values[image], flat.view(-1)[rows].numpy(), axis=0, out=picked[rows], mode="clip")
            start = rows.stop
        features = torch.bmm(weights[:, None], torch.from_numpy(picked).float().view(-1, 4, self._dim))[:, 0]
        return torch.empty_like(features).index_copy_(0, order, features)


class ResidentFeatures:
    """Grids of a list of images in the memory of one device, where pixels are looked up without the host."""

    def __init__(
        self,
        values: Float[Tensor, "patches dim"],
        size: Int[Tensor, "images 2"],
        shape: Int[Tensor, "images 2"],
        origin: Float[Tensor, "images 2"],
        step: Float[Tensor, "images 2"],
    ) -> None:
        """Take the patches of all images, one grid after the other, and what they are of.

        Args:
            values: features, whose device is the device.
            size: (height, width) in pixels of each image.
            shape: (rows, cols) of its grid.
            origin: centre of its first patch, (y, x) in 0..1.
            step: from one patch to the next, the same.
        """
        self._values = values
        counts = shape.prod(dim=1)
        facts = counts.cumsum(0) - counts, size, shape, origin, step
        self._first, self._size, self._shape, self._origin, self._step = (fact.to(values.device) for fact in facts)

    def sample(self, indices: Int[Tensor, "rays 3"]) -> Float[Tensor, "rays dim"]:
        """Return the features at pixels (image, row, col), float32 on the device, whatever autocast says."""
        indices = indices.to(self._values.device, non_blocking=True)
        images, pixels = indices[:, 0], indices[:, 1:]
        yx = pixel_positions(pixels, self._size[images])
        flat, weights = corners(yx, self._origin[images], self._step[images], self._shape[images])
        picked = self._values[flat + self._first[images][:, None]]
        return (picked.float() * weights[..., None]).sum(dim=1)


def fits_on(device: torch.device, num_bytes: int, budget: float) -> bool:
    """Return whether so many bytes may be kept on a GPU: within a budget (gigabytes), and within what is free."""
    if device.type in ("cpu", "mps") or num_bytes > budget * 1e9:
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return num_bytes <= FREE_SHARE * free


def open_store(
    extractor: Extractor,
    frames: Sequence[Frame],
    cache_dir: Path | None = None,
    feature_dim: int | None = None,
    center: bool = False,
) -> FeatureStore:
    """Return features of `frames` (image i of the store is `frames[i]`); make what the cache does not hold.

    Raises:
        UserError: features that cannot be had, are not finite, or differ in dimension between images.
    """
    filled = extract_all(extractor, frames, cache_dir)
    _check_dimensions(filled, frames)
    if feature_dim is not None or center:
        projected = project_all(filled.paths, feature_dim, center)
        filled = Filled(projected.paths, filled.made, filled.seconds + projected.seconds)
    return FeatureStore(filled, [frame.size for frame in frames])


def _check_dimensions(filled: Filled, frames: Sequence[Frame]) -> None:
    dims = [read_grid(path).values.shape[2] for path in filled.paths]
    for frame, dim in zip(frames, dims, strict=True):
        if dim != dims[0]:
            raise UserError(
                f"features of {frame.path.name} have {dim} dimensions, those of {frames[0].path.name} {dims[0]}: "
                "all images need the same number"
            )
