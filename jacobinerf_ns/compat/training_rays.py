"""Rays of training batches as nerfstudio makes them, in a fraction of its operations.

A pixel looks in the same direction of its camera's frame in every step, however its lens bends light: nerfstudio is
asked once for each lens, and a step turns what it said into the world. On a CPU a step of few rays is half small
operations, of which generating rays (with lens distortion: undistorting) and samples that are broadcast over and over
are hundreds.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.model_components.ray_generators import RayGenerator
from nerfstudio.utils.tensor_dataclass import TensorDataclass
from torch import Tensor

TABLE_BYTES = 1 << 28
"""Largest table of pixels; a capture of which each photo has a lens of its own may need more."""
PIXELS_AT_ONCE = 1 << 18
"""Pixels that nerfstudio is asked for at a time: it takes some hundred bytes for each."""
_PIXEL_BYTES = 5 * 4
_CENTRAL = (CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value, CameraType.FISHEYE624.value)
"""Cameras whose rays all begin where the camera is, and whose directions know nothing of where it looks."""


Shaped = TypeVar("Shaped", bound=TensorDataclass)


def ray_generator(cameras: Cameras) -> RayGenerator:
    """Return what makes training rays of these cameras: from tables where that can be, else nerfstudio's own."""
    lenses, lens_of = _lenses(cameras)
    size = sum(int(cameras.height[place]) * int(cameras.width[place]) for place in lenses) * _PIXEL_BYTES
    central = all(int(kind) in _CENTRAL for kind in cameras.camera_type.unique())
    if not central or size > TABLE_BYTES or cameras.times is not None or cameras.metadata:
        return RayGenerator(cameras)
    return TabledRays(cameras, lenses, lens_of)


class TabledRays(RayGenerator):
    """nerfstudio's ray generator, whose directions in the camera's frame are looked up.

    The same rays but for rounding: directions are turned after they are normalised, and not before.
    """

    def __init__(self, cameras: Cameras, lenses: list[int], lens_of: Int[Tensor, "*cameras"]) -> None:
        super().__init__(cameras)
        tables = [_pixel_table(cameras, place) for place in lenses]
        starts = torch.tensor([0, *(len(table) for table in tables)])[:-1].cumsum(0)
        self.register_buffer("table", torch.cat(tables), persistent=False)
        self.register_buffer("starts", starts.to(cameras.device)[lens_of], persistent=False)
        self.register_buffer("widths", cameras.width[:, 0].clone(), persistent=False)

    table: Float[Tensor, "pixels 5"]
    """Direction in the camera's frame, its length before it was normalised, and the pixel's area, of each lens's
    pixels row by row."""
    starts: Int[Tensor, "*cameras"]
    """Where the pixels of each camera's lens begin in the table."""
    widths: Int[Tensor, "*cameras"]

    def forward(self, ray_indices: Int[Tensor, "rays 3"]) -> RayBundle:
        """Return rays of pixels (camera, row, col)."""
        camera, row, col = ray_indices.to(self.table.device).unbind(-1)
        directions, norms, areas = self.table[self.starts[camera] + row * self.widths[camera] + col].split(
            (3, 1, 1), dim=-1
        )
        poses = self.cameras.camera_to_worlds[camera]
        return TrainingRays(
            origins=poses[:, :, 3],
            directions=(directions[:, None, :] * poses[:, :, :3]).sum(-1),
            pixel_area=areas,
            camera_indices=camera[:, None],
            metadata={"directions_norm": norms},
        )


class TrainingRays(RayBundle):
    """A bundle of rays whose samples are made in the shape that they have, and not broadcast into it.

    The same samples as nerfstudio's, without its dozens of checks and views for each.
    """

    def get_ray_samples(
        self,
        bin_starts: Float[Tensor, "*bs samples 1"],
        bin_ends: Float[Tensor, "*bs samples 1"],
        spacing_starts: Float[Tensor, "*bs samples 1"] | None = None,
        spacing_ends: Float[Tensor, "*bs samples 1"] | None = None,
        spacing_to_euclidean_fn: Callable[..., Any] | None = None,
    ) -> RaySamples:
        """Return samples between these distances along the rays, with what belongs to a ray repeated."""
        shape = torch.Size((*self.shape, bin_starts.shape[-2]))

        def of_samples(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.expand(*shape, value.shape[-1])

        def of_rays(value: Tensor | None) -> Tensor | None:
            return None if value is None else of_samples(value[..., None, :])

        frustums = _in_shape(
            Frustums,
            shape,
            origins=of_rays(self.origins),
            directions=of_rays(self.directions),
            starts=of_samples(bin_starts),
            ends=of_samples(bin_ends),
            pixel_area=of_rays(self.pixel_area),
            offsets=None,
        )
        return _in_shape(
            RaySamples,
            shape,
            frustums=frustums,
            camera_indices=of_rays(self.camera_indices),
            deltas=of_samples(bin_ends - bin_starts),
            spacing_starts=of_samples(spacing_starts),
            spacing_ends=of_samples(spacing_ends),
            spacing_to_euclidean_fn=spacing_to_euclidean_fn,
            metadata={name: of_rays(value) for name, value in self.metadata.items()},
            times=of_rays(self.times),
        )


def _in_shape(kind: type[Shaped], shape: torch.Size, **entries: Any) -> Shaped:
    """Return a tensor dataclass of entries that have its shape already."""
    made = kind.__new__(kind)
    for name, value in {**entries, "_shape": shape}.items():
        object.__setattr__(made, name, value)
    return made


def _lenses(cameras: Cameras) -> tuple[list[int], Int[Tensor, "*cameras"]]:
    """Return a camera for each lens (intrinsics, distortion, size, kind), and which lens each camera has."""
    distortion = cameras.distortion_params
    parts = [cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.height, cameras.width, cameras.camera_type]
    parts += [] if distortion is None else [distortion]
    described = torch.cat([part.double() for part in parts], dim=-1)
    _, lens_of = described.unique(dim=0, return_inverse=True)
    first = [int((lens_of == lens).nonzero()[0]) for lens in range(int(lens_of.max()) + 1)]
    return first, lens_of


def _pixel_table(cameras: Cameras, place: int) -> Float[Tensor, "pixels 5"]:
    """Return what nerfstudio says of all pixels of a camera that stands in the origin and looks along −z."""
    camera = cameras[place : place + 1]
    camera.camera_to_worlds = torch.eye(4, device=cameras.device)[None, :3]
    parts = []
    for coords in camera.get_image_coords().reshape(-1, 2).split(PIXELS_AT_ONCE):
        rays = camera.generate_rays(camera_indices=0, coords=coords.to(cameras.device))
        parts.append(torch.cat([rays.directions, rays.metadata["directions_norm"], rays.pixel_area], dim=-1))
    return torch.cat(parts)
