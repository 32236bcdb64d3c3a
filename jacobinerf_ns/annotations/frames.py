"""The capture's own world frame, in which clicks in space are kept, and the scene frame that a run trains in."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class WorldFrame(NamedTuple):
    """Where a dataparser has put the world: scene = scale · (R x + t).

    `transform` [R | t] and `scale` are `dataparser_transform` and `dataparser_scale` of nerfstudio's
    `DataparserOutputs`. They change with orientation, centring and scale settings; the world does not. It is the frame
    of the camera poses in `transforms.json`, or, where that file says with `applied_transform` what `ns-process-data`
    had done to them, the frame before that (COLMAP's).
    """

    transform: Float[Tensor, "3 4"]
    scale: float

    def points_to_world(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Return x = R⁻¹ (scene / scale − t), in the dtype and on the device of `points`."""
        rotation, shift = self._parts(points)
        return torch.linalg.solve(rotation, (points.double() / self.scale - shift).T).T.to(points)

    def points_to_scene(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Return scene = scale · (R x + t), in the dtype and on the device of `points`."""
        rotation, shift = self._parts(points)
        return (self.scale * (points.double() @ rotation.T + shift)).to(points)

    def directions_to_world(self, directions: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Return R⁻¹ d, made unit length."""
        rotation, _ = self._parts(directions)
        return F.normalize(torch.linalg.solve(rotation, directions.double().T).T, dim=-1).to(directions)

    def directions_to_scene(self, directions: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Return R d, made unit length."""
        rotation, _ = self._parts(directions)
        return F.normalize(directions.double() @ rotation.T, dim=-1).to(directions)

    def _parts(self, like: Tensor) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3"]]:
        """Return R and t in float64: capture coordinates can be large (a survey's metres), and clicks are few."""
        transform = self.transform.to(like.device, torch.float64)
        return transform[:, :3], transform[:, 3]
