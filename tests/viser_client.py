"""A client of a viewer that is no browser: what a page sends, without drawing; it costs next to nothing."""

import threading
import time
from typing import Any

import msgspec
import numpy as np
from browser import Tab
from conversation import Conversation
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

FOV, ASPECT = 0.9, 4 / 3
TIMEOUT = 60.0
SCALE = 10.0
"""Lengths of nerfstudio's scene in viser's."""


class Client(Tab):
    """One page: its websocket. What it asks for is sent at once, and nothing is waited for."""

    def __init__(self, port: int, pose: list) -> None:
        """`pose` is camera-to-world (3x4, nerfstudio's frame, OpenGL axes), as `training_camera` gives it."""
        self.heard = Conversation()
        self.errors: list[str] = []
        self._port, self._lock = port, threading.Lock()
        self._open(pose)

    def _open(self, pose: list) -> None:
        self._socket = connect(f"ws://localhost:{self._port}", max_size=None, compression=None)
        threading.Thread(target=self._listen, args=(self._socket,), daemon=True).start()
        self.look(pose)
        end = time.monotonic() + TIMEOUT
        while not (self.elements("Label") and self.frames_seen):
            assert time.monotonic() < end, "no panel, or no frame"
            time.sleep(0.05)

    def reload(self) -> None:
        """Another page instead of this one."""
        self.close()
        with self._lock:
            self.heard.forget()
        self._open(self._pose)

    def close(self) -> None:
        """Leaves, in the middle of whatever is drawn."""
        self._socket.close()

    def look(self, pose: list) -> None:
        """Puts the camera somewhere."""
        self._pose = pose
        found = np.array(pose, dtype=float)[:3, :4] * [1, -1, -1, SCALE]
        self._rotation, self._position = found[:, :3], found[:, 3]
        forward = self._position + self._rotation[:, 2]
        self.send(
            "ViewerCameraMessage",
            wxyz=_quaternion(self._rotation),
            position=self._position.tolist(),
            fov=FOV,
            aspect=ASPECT,
            look_at=forward.tolist(),
            up_direction=[0.0, 0.0, 1.0],
        )

    def click(self, x: float, y: float) -> None:
        """Clicks in the scene, in fractions of it from the upper left corner."""
        half = np.tan(FOV / 2)
        ray = self._rotation @ [(2 * x - 1) * half * ASPECT, (2 * y - 1) * half, 1.0]
        direction = (ray / np.linalg.norm(ray)).tolist()
        origin = self._position.tolist()
        kind: dict[str, Any] = {"event_type": "click", "ray_origin": origin, "ray_direction": direction}
        self.send("ScenePointerMessage", **kind, screen_pos=[[x, y]])

    def draw(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Draws a rectangle."""
        corners = [[min(x0, x1), min(y0, y1)], [max(x0, x1), max(y0, y1)]]
        kind: dict[str, Any] = {"event_type": "rect-select", "ray_origin": None, "ray_direction": None}
        self.send("ScenePointerMessage", **kind, screen_pos=corners)

    def elements(self, label: str | None = None, folder: str | None = None) -> list[dict[str, Any]]:
        """As of a page."""
        with self._lock:
            found = list(self.heard.elements.values())
            found = [element for element in found if label is None or element.get("label") == label]
            return [element for element in found if folder is None or self.heard.folder(element) == folder]

    def press(self, label: str, option: str | None = None, folder: str | None = None) -> None:
        """Presses a button, or an option of a button group."""
        self._set(self.gui(label, folder), True if option is None else option)

    def set_number(self, label: str, value: float, folder: str | None = None) -> None:
        """Moves a slider."""
        self._set(self.gui(label, folder), value)

    def choose(self, label: str, option: str, folder: str | None = None) -> None:
        """Chooses an option of a dropdown."""
        self._set(self.gui(label, folder), option)

    def fill(self, label: str, text: str, folder: str | None = None) -> None:
        """Puts a text into a text field."""
        self._set(self.gui(label, folder), text)

    def send(self, kind: str, **fields: Any) -> None:
        """Sends a message."""
        payload = msgspec.msgpack.encode({"type": kind, **fields})
        with self._lock:
            self.heard._sent(payload)
        self._socket.send(payload)

    def _set(self, element: dict[str, Any], value: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.send("GuiUpdateMessage", id=element["id"], updates={"value": value})

    def _listen(self, socket: Any) -> None:
        try:
            for payload in socket:
                with self._lock:
                    if socket is self._socket:
                        self.heard._received(payload)
        except ConnectionClosed:
            pass
        except Exception as error:
            self.errors.append(repr(error))


def _quaternion(rotation: np.ndarray) -> list[float]:
    from viser.transforms import SO3

    return SO3.from_matrix(rotation).wxyz.tolist()
