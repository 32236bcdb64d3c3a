"""A person at the panel: one tab of a viewer of the trained room, and what they do and see there."""

import fcntl
import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from browser import Browser, Tab
from jaxtyping import Bool, UInt8
from trained_room import HEIGHT, WIDTH, ObjectView, Room, trained_room
from viewer_process import ViewerProcess

Picture = UInt8[np.ndarray, "height width 3"]


def shared_room(folder: Path) -> Room:
    """The trained room, made once for all workers of pytest-xdist: `folder` is one worker's, in a common one."""
    common = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    kept = common / "trained_room.pickle"
    with (common / "trained_room.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_bytes(pickle.dumps(trained_room(common / "trained_room")))
    return pickle.loads(kept.read_bytes())


def iou(found: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "height width"]) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / (found | truth).sum())


class User:
    """Frames are as large as the room's photographs: pixel for pixel, unless `see` asks for more."""

    def __init__(self, room: Room, config: Path, viewer: ViewerProcess, tab: Tab) -> None:
        """`config` is the config.yml of the run that is viewed."""
        self.room, self.viewer, self.tab = room, viewer, tab
        self.run = config.parent
        self.file = self.run / "annotations.json"
        self.size = (HEIGHT, WIDTH)

    def see(self, height: int, width: int) -> None:
        """Still frames of this size, from now on."""
        self.size = (height, width)
        self.tab.fit_canvas(height, width)
        self.viewer.ask("max_res", value=width)

    def saved(self) -> dict[str, Any]:
        """The annotation file."""
        return json.loads(self.file.read_text())

    def wait_until_saved(self, holds: Callable[[dict[str, Any]], Any], timeout: float = 20.0) -> dict[str, Any]:
        """Waits until the file says something, and returns it."""
        self.tab.wait_until(lambda: self.file.exists() and holds(self.saved()), "the file", timeout)
        return self.saved()

    def begin_anew(self) -> None:
        """Takes the annotations away, as another program may, and shows colours."""
        self.tab.page.mouse.move(1, 1)
        if self.tab.pointer is not None:
            self.tab.press("Stop")
        self.file.unlink(missing_ok=True)
        self.tab.wait_for_markdown("No label yet")
        if self.tab.gui("Output type")["value"] != "rgb":
            self.tab.choose("Output type", "rgb")

    def look_at(self, view: int) -> None:
        """Puts the camera where a training photograph was taken."""
        camera = self.viewer.ask("training_camera", index=view)
        self.look_from(camera["camera_to_world"], camera["fov"])

    def look_from(self, camera_to_world: list, fov: float | None = None) -> None:
        """Puts the camera somewhere, and waits for the still frame."""
        before, camera = self.tab.frames_seen, self.viewer.ask("camera")
        self.viewer.ask("look", camera_to_world=camera_to_world, fov=fov)
        moved = np.abs(np.subtract(camera["camera_to_world"], np.array(camera_to_world)[:3])).max() > 1e-4
        if moved:
            self.tab.wait_for_frame(after=before, min_size=self.size)
        self.tab.wait_until(lambda: self.tab.heard.frame_size() == self.size, "a frame of that size")

    def click_on(self, thing: ObjectView, button: str = "Click") -> str:
        """Presses `Click`, clicks on a thing in its view, and returns what the status line answers."""
        return self.click_at(*thing.pixel, button=button)

    def click_at(self, row: float, col: float, button: str = "Click") -> str:
        """The same at a pixel of the room's photographs."""
        self.arm(button)
        self.click_pixel(row, col)
        return self.tab.wait_for_markdown("clicked:", timeout=20) and self.answer()

    def arm(self, button: str = "Click") -> None:
        """Presses one of the buttons that wait for the pointer."""
        self.tab.press(button)
        kind = "rect-select" if button == "Box" else "click"
        self.tab.wait_until(lambda: self.tab.pointer == kind, "the pointer", 20)
        self.tab.wait_until(lambda: self.status().startswith(("Click ", "Draw ")), "what to do next", 20)

    def click_pixel(self, row: float, col: float) -> None:
        """Clicks at a pixel of the room's photographs, whatever the size of the last frame is."""
        self.tab.click_pixel(row, col, (HEIGHT, WIDTH))

    def status(self) -> str:
        """The line at the top of the panel."""
        texts = [element for element in self.tab.elements(folder="JacobiNeRF") if "markdown" in element]
        return texts[0]["markdown"]

    def answer(self) -> str:
        """What the status line says when it is known what a click met."""

        def known() -> str:
            text = self.status()
            return text if text.startswith("clicked:") and "looking" not in text else ""

        return self.tab.wait_until(known, "an answer", 30)

    def wait_for_status(self, containing: str, timeout: float = 30.0) -> str:
        """Waits for words in the status line."""
        self.tab.wait_until(
            lambda: containing in self.status(), f"the status {containing!r}, {self.status()!r}", timeout
        )
        return self.status()

    def numbers(self, output: str) -> np.ndarray:
        """An output of the model for just this view, as it is."""
        path = self.run / "rendered.npz"
        self.viewer.ask("render", path=str(path))
        with np.load(path) as outputs:
            return outputs[output]

    def rendered(self, output: str) -> np.ndarray:
        """An output of the model for just this view, rendered apart from the screen; 0..255 [height width 3]."""
        found = self.numbers(output)
        assert found.shape[:2] == self.size
        return (np.repeat(found, 3 // found.shape[-1], -1).astype(np.float32) * 255).astype(np.uint8)

    def wait_until_shown(self, output: str) -> Picture:
        """Waits until the screen shows a colour or mask output as the model renders it now, pixel for pixel."""
        wanted = self.rendered(output)

        def shown() -> bool:
            return self.tab.heard.frame_size() == self.size and np.array_equal(self.tab.frame(), wanted)

        self.tab.wait_until(shown, f"{output} on the screen", 30)
        return wanted

    def show_mask(self, output: str = "selection") -> Bool[np.ndarray, "height width"]:
        """Chooses a mask in nerfstudio's own list of outputs, and returns what is on the screen."""
        self.tab.choose("Output type", output)
        return self.wait_until_shown(output)[..., 0] > 127

    def is_heat_map_of(self, thing: ObjectView) -> bool:
        """Whether the screen shows Turbo's red, which answers, on a thing, and mostly blue elsewhere.

        The last frame may still be a small one.
        """
        frame = self.tab.frame().astype(int)
        if frame.shape[:2] != self.size:
            return False
        red = frame[..., 0] > frame[..., 2]
        return bool(red[thing.mask].mean() > 0.8 and red[~thing.mask].mean() < 0.5)

    def marks(self) -> list[tuple[str, tuple[int, int, int]]]:
        """Shape (sphere, cube) and colour of the marks in the scene."""
        found = [node for name, node in self.tab.heard.nodes.items() if name.startswith("/jacobinerf/seed_")]
        return sorted(("cube" if node["flat_shading"] else "sphere", _colour(node["color"])) for node in found)

    def wait_for_marks(self, *shapes: str) -> None:
        """Waits until the marks in the scene are these, whatever their colour."""
        wanted = sorted(shapes)
        self.tab.wait_until(lambda: [shape for shape, _ in self.marks()] == wanted, f"{wanted}: {self.marks()}", 20)


def _colour(value: int) -> tuple[int, int, int]:
    return value >> 16 & 255, value >> 8 & 255, value & 255


@contextmanager
def user_of(room: Room, config: Path, viewer: ViewerProcess, chromium: Browser) -> Iterator[User]:
    """A person who has opened the page."""
    tab = chromium.open(viewer.url)
    user = User(room, config, viewer, tab)
    user.see(HEIGHT, WIDTH)
    yield user
    tab.close()
