"""Where a page that is opened begins: at a photo, looking at the scene. After that its camera is the user's alone."""

import numpy as np
import torch
import viser
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

from jacobinerf_ns.core.viewpoints import good_viewpoint

PAGE_START = 3.0
"""Of all coordinates of viser's own first camera, without signs: what a page that has just been loaded looks from."""
STEEP = 0.95
"""Cosine from which on a camera looks so much up or down that the scene's up says nothing of its own."""


class OpeningView:
    """A place in the scene, and what is looked at from there."""

    def __init__(self, cameras: Cameras) -> None:
        """`cameras` are those of the photos."""
        poses, focal = cameras.camera_to_worlds, torch.cat([cameras.fx, cameras.fy], dim=-1)
        tangents = torch.cat([cameras.width, cameras.height], dim=-1) / 2 / focal
        found = good_viewpoint(poses, tangents)
        pose = poses[found.view].numpy(force=True).astype(float)
        self._position = pose[:, 3] * VISER_NERFSTUDIO_SCALE_RATIO
        self._look_at = self._position - pose[:, 2] * found.distance * VISER_NERFSTUDIO_SCALE_RATIO
        self._up = pose[:, 1] if abs(pose[2, 2]) > STEEP else np.array([0.0, 0.0, 1.0])
        self._fov = float(2 * torch.atan(tangents[found.view, 1]))

    def use(self, server: viser.ViserServer) -> None:
        """Put all pages that are opened from now on there."""
        server.on_client_connect(self._put)

    def _put(self, client: viser.ClientHandle) -> None:
        camera = client.camera
        new = np.abs(camera.look_at).max() < 1e-3 and np.abs(np.abs(camera.position) - PAGE_START).max() < 1e-3
        if not new:
            # It was open before the viewer was, and its camera is where somebody has put it.
            return
        with client.atomic():
            camera.fov = self._fov
            camera.up_direction = self._up
            camera.position = self._position
            camera.look_at = self._look_at
