"""Nerfstudio's render thread of a browser tab, made steady: an unmoved view is rendered again from what is kept of it,
an error costs a frame and not the thread, and small frames are as small as the field is slow.
"""

import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from nerfstudio.viewer.utils import CameraState
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from torch import Tensor

from jacobinerf_ns.labels.views import BETWEEN_CHUNKS, SCREEN, Screen

FIRST_RATE = 10_000.0
"""Rays per second that a field is taken to render before it was timed."""
IDLE_SECONDS = 0.2
"""Time without anything to do after which a small frame is followed by a larger one."""
SMALLEST = 60
"""Pixels of the lower side of the smallest frame. With nerfstudio's 30 a thing of a tenth of the view is three pixels
high, and nobody sees where a moving camera goes; 60x80 rays take half a second on a slow CPU's 10,000 a second."""


class _Shown(NamedTuple):
    """What the last complete large frame depends on."""

    pose: Tensor
    rest: tuple
    """Lens, size and crop box."""
    version: Hashable
    """Of the weights."""

    def same_view(self, other: "_Shown") -> bool:
        """Whether both look at the same, whatever the weights are."""
        return self.rest == other.rest and torch.equal(self.pose, other.pose)


class SteadyRenderer(RenderStateMachine):
    """Renders the frames of one tab."""

    screen: Screen
    failed: Callable[[Exception], None]
    check_interrupt = None  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    """No tracer: frames are stopped between chunks, and no call of Python is slowed down by being watched.

    Nerfstudio's raises at whatever line comes next. When that lies within the release of a lock, the lock is never
    released: training and all tabs then wait for it for ever.
    """

    def __init__(self, *arguments: Any, screen: Screen, failed: Callable[[Exception], None]) -> None:
        """`screen` is shared by all tabs; `failed` is told of errors in rendering."""
        super().__init__(*arguments)
        self.screen, self.failed = screen, failed
        self._rate = FIRST_RATE
        self._shown: _Shown | None = None
        self._guard = threading.Lock()
        """What is asked for, the state, and whether to stop change together: other threads ask at any moment."""

    def run(self) -> None:
        """Run the thread: all that it renders is for the screen.

        Nerfstudio's own loop looks at what is asked for and forgets it a moment later: what came meanwhile was lost.
        """
        SCREEN.set(self.screen)
        BETWEEN_CHUNKS.set(self._stop_if_stale)
        while self.running:
            if not self.viewer.ready:
                time.sleep(IDLE_SECONDS)
                continue
            action = self._take()
            if action is not None:
                self._draw(action)

    def _take(self) -> RenderAction | None:
        """Wait for what is asked for, and take it; None where there is nothing to do."""
        self.render_trigger.wait(IDLE_SECONDS)
        with self._guard:
            self.render_trigger.clear()
            action = self._idle() if self.next_action is None else self.next_action
            self.next_action, self.interrupt_render_flag = None, False
            if self.state == "high" and action.action == "static":
                return None
            self.state = self.transitions[self.state][action.action]
            return action

    def _idle(self) -> RenderAction:
        """Return what to do where nothing is asked for: `static`, unless the screen does not show what there is."""
        state = self.viewer.get_camera_state(self.client)
        if self.state != "high":
            return RenderAction("static", state)
        if self._shown is None:
            return RenderAction("step", state)
        now, version = self._key(state), self._shown.version
        if not now.same_view(self._shown):
            # A movement can come before the one that it follows: viser hands each to a thread of its own.
            return RenderAction("move", state)
        # While it trains, nerfstudio says how often there is a frame of new weights.
        trains = self.viewer.trainer is not None and self.viewer.trainer.training_state == "training"
        stale = version is not None and version != now.version and not trains
        return RenderAction("step" if stale else "static", state)

    def _draw(self, action: RenderAction) -> None:
        try:
            outputs = self._render_img(action.camera_state)
        except IOChangeException:
            return
        self._send_output_to_viewer(outputs, static_render=action.action in ("static", "step"))

    def _stop_if_stale(self) -> None:
        """Raise in the middle of a large frame when the camera has moved on."""
        if self.interrupt_render_flag:
            self.interrupt_render_flag = False
            raise IOChangeException

    def action(self, action: RenderAction) -> None:
        """Take an action; one that does not move the camera of a finished view only renders it again, at full size.

        Nerfstudio would show a small frame first, and the large one half a second later.
        """
        with self._guard:
            if action.action in ("move", "rerender") and self.state == "high" and self._shown is not None:
                now = self._key(action.camera_state)
                if now.same_view(self._shown) and now.version == self._shown.version:
                    action = RenderAction("step", action.camera_state)
            super().action(action)

    def refresh(self) -> None:
        """Asks for a new frame of the tab's camera; nothing happens while the tab has none."""
        try:
            state = self.viewer.get_camera_state(self.client)
        except AssertionError:
            return
        self.action(RenderAction("move", state))

    def _render_img(self, camera_state: CameraState) -> Any:
        begun, large = self._key(camera_state), self.state == "high"
        start, before = time.monotonic(), self.screen.queried
        try:
            outputs = super()._render_img(camera_state)
        except IOChangeException:
            raise
        except Exception as error:
            self.failed(error)
            if large:
                self._shown = begun._replace(version=None)
            raise IOChangeException from error
        queried, seconds = self.screen.queried - before, time.monotonic() - start
        if queried >= outputs["rgb"][..., 0].numel():
            self._rate = queried / max(seconds, 1e-6)
        if large:
            self._shown = begun
        return outputs

    def _send_output_to_viewer(self, outputs: dict[str, Any], static_render: bool = True) -> None:
        """Send a frame; masks as black and white pictures, since nerfstudio has no colours for truth values."""
        shown = {
            name: value.float().expand(-1, -1, 3) if torch.is_tensor(value) and value.dtype == torch.bool else value
            for name, value in outputs.items()
        }
        try:
            super()._send_output_to_viewer(shown, static_render)
        except Exception as error:
            # Another tab may have chosen an output that this frame does not have yet, or this tab was closed.
            if self.running and self.viewer.control_panel.output_render in shown:
                self.failed(error)

    def _calculate_image_res(self, aspect_ratio: float) -> tuple[int, int]:
        """Height and width of the next frame. Nerfstudio's own measure of speed counts kept views as rendered ones."""
        if self.state == "high":
            return super()._calculate_image_res(aspect_ratio)
        largest = self.viewer.control_panel.max_res
        height = math.sqrt(self._rate / self.target_fps / aspect_ratio)
        smallest = math.ceil(SMALLEST / min(1.0, aspect_ratio))
        height = int(min(max(round(height, -1), smallest), largest))
        width = int(height * aspect_ratio)
        return (height, width) if width <= largest else (max(1, int(largest / aspect_ratio)), largest)

    def _key(self, camera_state: CameraState) -> _Shown:
        controls = self.viewer.control_panel
        crop = None
        if controls.crop_viewport:
            box = controls.crop_obb
            crop = (*box.R.flatten().tolist(), *box.T.tolist(), *box.S.tolist(), controls.background_color)
        lens = (camera_state.fov, camera_state.aspect, camera_state.camera_type, camera_state.time)
        return _Shown(camera_state.c2w, (*lens, controls.max_res, crop), self.viewer.pipeline.model.weights_version)
