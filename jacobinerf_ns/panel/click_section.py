"""The part of the panel that everything begins with: what a click means, and taking it back."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import viser
import viser.transforms as vtf
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.rays import world_box, world_click
from jacobinerf_ns.annotations.schema import Annotations, Seed, SpaceBox, SpaceClick
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.labels.views import ViewReport
from jacobinerf_ns.panel import texts
from jacobinerf_ns.panel.controls import add_button_group
from jacobinerf_ns.panel.desk import Desk

Pointer = Literal["click", "rect-select"]


class ClickSection:
    """Arms the pointer, turns clicks into seeds, and says what they met."""

    def __init__(self, desk: Desk, server: viser.ViserServer, more: viser.GuiFolderHandle) -> None:
        """`more` is the folder of what not everybody needs."""
        self._desk, self._server = desk, server
        self._awaited: Seed | None = None
        """A click whose surface is not known yet."""
        self._last_pointer: tuple[Pointer, bool] | None = None
        gui = server.gui
        self.label = gui.add_dropdown("Label", [texts.NO_LABEL], hint="Gets the clicks, and is what is outlined.")
        self._buttons = [
            gui.add_button("Click", icon=viser.Icon.HAND_CLICK, hint="Then click on the thing in the view."),
            gui.add_button("Not this", icon=viser.Icon.CIRCLE_MINUS, hint="Then click on what is not of the label."),
        ]
        self._stop = gui.add_button("Stop", color="red", visible=False, hint="Moves the camera again.")
        with more:
            box = gui.add_button("Box", icon=viser.Icon.MARQUEE_2, hint="Then draw a rectangle on the thing.")
            hint = "Await one click after the other, until Stop."
            self._sticky = gui.add_checkbox("Keep clicking", False, hint=hint)
        self._buttons.append(box)
        self._buttons[0].on_click(lambda _: desk.do(lambda: self.arm("click", False)))
        self._buttons[1].on_click(lambda _: desk.do(lambda: self.arm("click", True)))
        self._buttons[2].on_click(lambda _: desk.do(lambda: self.arm("rect-select", False)))
        self._stop.on_click(lambda _: desk.do(self.disarm))
        desk.on_user_update(self.label, lambda: self.choose(self.label.value))

    def add_history(self) -> None:
        """Add the row of buttons that take clicks back."""
        history = add_button_group(self._server.gui, "Seeds", ("Undo", "Redo", "Clear"))
        actions = {"Undo": self.undo, "Redo": self.redo, "Clear": self.clear}
        history.on_click(lambda event: self._desk.do(actions[event.target.value]))

    def refresh(self, annotations: Annotations) -> None:
        """Show the labels there are, and the one that is selected."""
        names = [label.name for label in annotations.labels]
        names += [texts.NEW_LABEL if names else texts.NO_LABEL]
        label = self._desk.selected(annotations)
        wanted = names[0] if label is None else label.name
        if list(self.label.options) != names:
            # It may have lost the value that it had; then the first is it.
            self.label.options = names
            self._desk.put(self.label, wanted)
        self._desk.set_quietly(self.label, wanted)

    def choose(self, name: str) -> None:
        """Select the label of a name, or make a new one."""
        if name == texts.NEW_LABEL:
            self._desk.add_label()
        elif name != texts.NO_LABEL:
            self._desk.change(lambda now: changes.select(now, changes.label_named(now, name).id), remember=False)
            self._desk.say(f"**{texts.plain(name)}** gets the clicks now.")

    def arm(self, pointer: Pointer, negative: bool) -> None:
        """Awaits a click or a rectangle.

        Raises:
            UserError: *not this* before there is anything to take it from.
        """
        if negative and not self._desk.has_seeds():
            raise UserError("**Not this** takes away from a label: press **Click** and click on the thing first")
        self._last_pointer = (pointer, negative)
        handler = self._click_handler(negative) if pointer == "click" else self._box_handler(negative)
        self._server.scene.on_pointer_event(pointer)(handler)
        # Nerfstudio or another plugin may take the pointer, and then it is not ours any more.
        self._server.scene.on_pointer_callback_removed(self._show_idle)
        self._show_armed()
        where = "on the thing" if not negative else "on what is *not* of the label"
        self._desk.say(f"Click {where}." if pointer == "click" else "Draw a rectangle on the thing.")

    def disarm(self) -> None:
        """Give the pointer back to the camera."""
        self._last_pointer = None
        self._server.scene.remove_pointer_callback()
        self._show_idle()
        self._desk.say("Stopped: the camera moves again.")

    def add(self, make: Callable[[int], Seed]) -> None:
        """Add a seed to the selected label, or to a new one; `make` gets the label's id."""

        def change(now: Annotations) -> Annotations:
            now, label = self._desk.selected_or_new(now)
            return changes.add_seed(now, make(label.id))

        self._awaited = self._desk.change(change).seeds[-1]
        self._desk.say("clicked: looking …")
        self._desk.show_labels()
        if not self._sticky.value and self._last_pointer is not None:
            self._last_pointer = None
            self._server.scene.remove_pointer_callback()
            self._show_idle()

    @property
    def waits(self) -> bool:
        """Whether it is not known yet what the last click met."""
        return self._awaited is not None

    def looked(self, annotations: Annotations, report: ViewReport) -> None:
        """Says what the last click met; one that met nothing is taken out again."""
        seed = self._awaited
        snapshot = report.snapshot
        marks = [] if snapshot is None or seed is None else snapshot.marks
        mark = next((mark for mark in marks if mark.seed == seed), None)
        if seed is None or snapshot is None or mark is None:
            return
        self._awaited = None
        if not mark.hit:
            self._desk.change(lambda now: changes.discard_seed(now, seed), remember=False)
            self._desk.say("clicked: no surface there. Nothing was added: click on something solid.")
            return
        label = next((label for label in annotations.labels if label.id == seed.label), None)
        if label is None:  # deleted while its frame was rendered
            return
        count = len(annotations.seeds_of(label.id))
        ids = [shown.id for shown in snapshot.labels]
        sizes = len(snapshot.levels(ids.index(label.id)).levels)
        self._desk.say(texts.answer(label.name, report.shares.get(label.id, 0.0), count, sizes))

    def undo(self) -> None:
        """Take the last change back."""
        self._desk.say("Undone." if self._desk.replay("undo") else "There is nothing to undo.")

    def redo(self) -> None:
        """Make the change again that was undone last."""
        self._desk.say("Done again." if self._desk.replay("redo") else "There is nothing to redo.")

    def clear(self) -> None:
        """Take all seeds of the selected label away.

        Raises:
            UserError: there are none.
        """
        label = self._desk.need_label()
        if not self._desk.annotations.seeds_of(label.id):
            raise UserError(f"**{texts.plain(label.name)}** has no seeds to clear")
        self._desk.change(lambda now: changes.remove_seeds(now, label.id))
        self._desk.say(f"All seeds of **{texts.plain(label.name)}** are gone. **Undo** brings them back.")

    def _click_handler(self, negative: bool) -> Callable[[viser.ScenePointerEvent], None]:
        def clicked(event: viser.ScenePointerEvent) -> None:
            origin, direction = event.ray_origin, event.ray_direction
            assert origin is not None
            assert direction is not None
            scene = [part / VISER_NERFSTUDIO_SCALE_RATIO for part in origin]

            def make(label: int) -> SpaceClick:
                return world_click(self._desk.world, scene, direction, label, negative)

            self._desk.do(lambda: self.add(make))

        return clicked

    def _box_handler(self, negative: bool) -> Callable[[viser.ScenePointerEvent], None]:
        def drawn(event: viser.ScenePointerEvent) -> None:
            camera = event.client.camera
            position = (np.asarray(camera.position) / VISER_NERFSTUDIO_SCALE_RATIO).tolist()
            rotation, fov, aspect = vtf.SO3(camera.wxyz).as_matrix(), float(camera.fov), float(camera.aspect)
            first, second = event.screen_pos[0], event.screen_pos[1]

            def make(label: int) -> SpaceBox:
                bounds = (first, second)
                return world_box(self._desk.world, position, rotation, fov, aspect, bounds, label, negative)

            self._desk.do(lambda: self.add(make))

        return drawn

    def _show_armed(self) -> None:
        self._stop.visible = True
        for button in self._buttons:
            button.visible = False
        # A click on the picture of a training camera would move the view there.
        self._desk.viewer.set_camera_visibility(False)

    def _show_idle(self) -> None:
        self._stop.visible = False
        for button in self._buttons:
            button.visible = True
        if self._desk.viewer.hide_images.visible:
            self._desk.viewer.set_camera_visibility(True)
