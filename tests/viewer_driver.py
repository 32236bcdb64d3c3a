"""nerfstudio's own `ns-viewer` or `ns-train`, with a second door for tests: JSON lines on stdin, answers on stdout.

    python viewer_driver.py ns-viewer --load-config … --viewer.websocket-port …

Everything that the program itself prints goes to stderr, so that stdout holds answers only. A command is an object with
`do`, the name of a function of `Commands`, and its arguments; the answer is `{"ok": …}` or `{"error": traceback}`.
"""

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import numpy as np

POSE_TOLERANCE = 1e-4
CAMERA_TIMEOUT = 20.0


class Commands:
    """What a test may ask the viewer of this process."""

    def __init__(self) -> None:
        self.viewer: Any = None
        """nerfstudio's `Viewer`, once it exists."""
        self._click: Any = None
        self._own_levels: Any = None
        self._clicks: dict[str, Any] = {"taken": 0, "refused": 0, "added": []}

    def _client(self, client: int | None) -> Any:
        clients = self.viewer.viser_server.get_clients()
        return clients[max(clients) if client is None else client]

    def ready(self) -> bool:
        """Whether the viewer and its scene are there."""
        return self.viewer is not None and self.viewer.ready and hasattr(self.viewer, "train_state")

    def clients(self) -> list[int]:
        """Ids of the tabs that are connected, in the order in which they came."""
        return sorted(self.viewer.viser_server.get_clients())

    def camera(self, client: int | None = None) -> dict[str, Any]:
        """The camera that a tab is looking through, in nerfstudio's frame and in viser's; the newest tab for None."""
        handle = self._client(client)
        state = self.viewer.get_camera_state(handle)
        return {
            "wxyz": handle.camera.wxyz.tolist(),
            "position": handle.camera.position.tolist(),
            "fov": float(handle.camera.fov),
            "aspect": float(handle.camera.aspect),
            "camera_to_world": state.c2w.tolist(),
        }

    def look(self, camera_to_world: list, fov: float | None = None, client: int | None = None) -> dict[str, Any]:
        """Puts a tab's camera at a pose (3x4 or 4x4, nerfstudio's frame, OpenGL axes), and waits until it is there.

        `fov` is the vertical field of view in radians. viser's `position` setter drags the point that is looked at
        along, and the page's own messages may come in between, so this tries until page and server agree.
        """
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
        from viser import transforms

        pose = np.asarray(camera_to_world, dtype=float)[:3, :4]
        rotation = transforms.SO3.from_matrix(pose[:, :3]) @ transforms.SO3.from_x_radians(np.pi)
        wanted = np.concatenate([rotation.as_matrix(), pose[:, 3:] * VISER_NERFSTUDIO_SCALE_RATIO], axis=1)
        handle = self._client(client)
        arrived, end = threading.Event(), time.monotonic() + CAMERA_TIMEOUT

        def there(camera: Any) -> None:
            found = np.concatenate([transforms.SO3(camera.wxyz).as_matrix(), camera.position[:, None]], axis=1)
            if np.abs(found - wanted).max() < POSE_TOLERANCE and (fov is None or abs(camera.fov - fov) < 1e-4):
                arrived.set()

        handle.camera.on_update(there)
        try:
            while not arrived.is_set():
                if time.monotonic() > end:
                    raise TimeoutError(f"the camera is at {handle.camera.position}, not at {wanted[:, 3]}")
                with handle.atomic():
                    if fov is not None:
                        handle.camera.fov = fov
                    # In the opposite order the page would pass through a pose that looks at itself.
                    handle.camera.position = wanted[:, 3]
                    handle.camera.wxyz = rotation.wxyz
                arrived.wait(1.0)
        finally:
            handle.camera._state.camera_cb.remove(there)
        return self.camera(handle.client_id)

    def training_camera(self, index: int, split: str = "train") -> dict[str, Any]:
        """Pose (3x4) and vertical field of view (radians) of a photograph, and its file's name, for `look`."""
        data = self.viewer.pipeline.datamanager
        dataset = data.train_dataset if split == "train" else data.eval_dataset
        camera = dataset.cameras[index]
        fov = 2 * np.arctan(float(camera.height) / 2 / float(camera.fy))
        return {
            "camera_to_world": camera.camera_to_worlds.tolist(),
            "fov": float(fov),
            "size": [int(camera.height), int(camera.width)],
            "name": Path(dataset.image_filenames[index]).name,
        }

    def max_res(self, value: int) -> int:
        """Sets nerfstudio's `Max res`: the longer side of a still frame, pixels. Takes values its slider does not."""
        self.viewer.control_panel._max_res.value = value
        self.viewer._trigger_rerender()
        return value

    def arm(self) -> None:
        """Waits for a click in the scene, as a plugin's button does."""
        from nerfstudio.viewer.viewer_elements import ViewerControl

        control = ViewerControl()
        control._setup(self.viewer)
        self._click = None
        control.register_pointer_cb("click", lambda click: setattr(self, "_click", click))

    def clicked(self) -> dict[str, Any] | None:
        """Ray of the last click after `arm`, in nerfstudio's frame."""
        return self._click and {"origin": list(self._click.origin), "direction": list(self._click.direction)}

    def disarm(self) -> None:
        """No longer waits for clicks."""
        self.viewer.viser_server.scene.remove_pointer_callback()

    def queried(self) -> int:
        """Rays that the field was asked for to draw frames, in all tabs, ever."""
        return self.viewer.pipeline.panel.screen.queried

    def points_of_parts(self, count: int) -> None:
        """Lets parts that the panel exports have so many points; as many as a user gets would take a minute."""
        from jacobinerf_ns.panel import file_section
        from jacobinerf_ns.panel.job import Job

        def start(arguments: list[str], manifest: Path | None = None) -> Job:
            return Job([*arguments, *(["--num-points", str(count)] if arguments[0] == "export" else [])], manifest)

        file_section.Job = start  # pyright: ignore[reportAttributeAccessIssue]

    def count_clicks(self) -> None:
        """From now on, counts clicks and rectangles that reach the panel, and what becomes of them."""
        from jacobinerf_ns.errors import UserError
        from jacobinerf_ns.panel.click_section import ClickSection

        counts, add = self._clicks, ClickSection.add

        def counted(make_handler: Any) -> Any:
            def make(section: Any, *arguments: Any) -> Any:
                handler = make_handler(section, *arguments)

                def taken(event: Any) -> None:
                    counts["taken"] += 1
                    handler(event)

                return taken

            return make

        def adding(section: Any, make: Any) -> None:
            made: list[Any] = []

            def noted(label: int) -> Any:
                made[:] = [make(label)]
                return made[0]

            try:
                add(section, noted)
            except UserError:
                counts["refused"] += 1
                raise
            counts["added"].append(made[0].model_dump_json())

        ClickSection._click_handler = counted(ClickSection._click_handler)
        ClickSection._box_handler = counted(ClickSection._box_handler)
        ClickSection.add = adding  # pyright: ignore[reportAttributeAccessIssue]

    def clicks(self) -> dict[str, Any]:
        """How many were `taken` since then, how many `refused` in the status line; and the seeds that were `added`."""
        return self._clicks

    def resident(self) -> int:
        """Memory that this process takes, in bytes, with what Python and libc hold in reserve: what a user sees."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def levels(self, thresholds: list[float] | None) -> None:
        """Lets labels be taken at these thresholds, from part to whole, the second being theirs; None: as they are."""
        from jacobinerf_ns.core.plateaus import Plateaus
        from jacobinerf_ns.labels.snapshot import LabelSnapshot

        self._own_levels = self._own_levels or LabelSnapshot.levels
        own, given = self._own_levels, thresholds
        found = own if given is None else lambda *_: Plateaus(tuple(given), natural=1)
        LabelSnapshot.levels = found  # pyright: ignore[reportAttributeAccessIssue]

    def fail_once(self) -> None:
        """Makes the model fail the next time that it is asked for anything."""
        model = self.viewer.pipeline.model

        def fail(*_: Any) -> None:
            del model.trace
            raise RuntimeError("asked to fail")

        model.trace = fail

    def far_plane(self, distance: float) -> float:
        """Lets rays end there (scene units), and returns where they ended before: what is beyond is not hit."""
        collider = self.viewer.pipeline.model.collider
        before, collider.far_plane = collider.far_plane, distance
        # Not a thing that changes while people look: kept views know nothing of it.
        self.viewer.pipeline.model.loads += 1
        return before

    def train_cameras_shown(self) -> bool:
        """Whether the pictures of the training cameras are drawn; a click on one moves the view there."""
        return any(handle.visible for handle in self.viewer.camera_handles.values())

    def step(self) -> int:
        """Training step of the weights."""
        return int(self.viewer.step)

    def threads(self) -> list[str]:
        """Names of the threads that are alive; a `RenderStateMachine` that died shows no frame any more."""
        return [f"{type(thread).__name__} {thread.name}" for thread in threading.enumerate()]

    def drawing(self, client: int | None = None) -> bool:
        """Whether the thread that draws for a tab is alive: an exception while it draws ends it, without a word."""
        return self.viewer.render_statemachines[self._client(client).client_id].is_alive()

    def render(self, path: str, client: int | None = None) -> dict[str, Any]:
        """All outputs of the model for just the camera and size of a tab's still frame, as an .npz file."""
        import torch
        from nerfstudio.viewer.utils import get_camera

        handle, panel, model = self._client(client), self.viewer.control_panel, self.viewer.get_model()
        state = self.viewer.get_camera_state(handle)
        height, width = panel.max_res, int(panel.max_res * state.aspect)
        if width > panel.max_res:
            width, height = panel.max_res, int(panel.max_res / state.aspect)
        camera = get_camera(state, height, width).to(model.device)
        with self.viewer.train_lock, torch.no_grad():
            was_training = model.training
            model.eval()
            try:
                box = panel.crop_obb if panel.crop_viewport else None
                outputs = model.get_outputs_for_camera(camera, obb_box=box)
            finally:
                model.train(was_training)
        arrays = {name: value.cpu().numpy() for name, value in outputs.items() if hasattr(value, "cpu")}
        np.savez(path, **arrays)
        return {"size": [height, width], "names": sorted(arrays), **self.camera(handle.client_id)}


def answer(commands: Commands, line: str) -> dict[str, Any]:
    """Runs one command."""
    try:
        given = json.loads(line)
        return {"ok": getattr(commands, given.pop("do"))(**given)}
    except Exception:
        return {"error": traceback.format_exc()}


def listen(commands: Commands, answers: TextIO) -> None:
    """Answers commands until stdin is closed; then the process ends, so that no viewer outlives its test."""
    for line in sys.stdin:
        answers.write(json.dumps(answer(commands, line)) + "\n")
        answers.flush()
    os._exit(0)


def keep_viewer(commands: Commands) -> None:
    """Makes `commands` know the viewer as soon as nerfstudio builds it."""
    from nerfstudio.viewer.viewer import Viewer

    build = Viewer.__init__

    def built(self: Viewer, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        commands.viewer = self

    Viewer.__init__ = built


def main() -> None:
    """Starts the program that the first argument names."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "ns-train":
        from nerfstudio.scripts.train import entrypoint
    else:
        from nerfstudio.scripts.viewer.run_viewer import entrypoint
    commands = Commands()
    keep_viewer(commands)
    threading.Thread(target=listen, args=(commands, answers), daemon=True, name="commands").start()
    entrypoint()


if __name__ == "__main__":
    main()
