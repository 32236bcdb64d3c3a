"""The part of the panel that chooses what the view shows, and from which response on a pixel belongs to a label."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import viser
from nerfstudio.viewer.control_panel import ControlPanel

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.schema import Annotations
from jacobinerf_ns.core.propagation import JNERF_PLUS
from jacobinerf_ns.errors import UserError

if TYPE_CHECKING:
    from jacobinerf_ns.panel.panel import Panel

OUTPUTS = {
    "Colours": "rgb",
    "Resonance": "resonance",
    "Selection": "selection_overlay",
    "Labels": "labels_overlay",
    "Edited": "edited",
}
"""What people choose from, and the model's output."""
OTHER = "Other output"
"""Chosen in nerfstudio's own list."""


class ShowSection:
    """Settings of how labels are shown; all but the output itself are saved with the annotations."""

    def __init__(self, panel: Panel, server: viser.ViserServer, controls: ControlPanel) -> None:
        self._panel, self._controls, gui = panel, controls, server.gui
        self.shown = gui.add_dropdown("Show", [*OUTPUTS, OTHER], hint="What the view shows.")
        self._propagate = gui.add_button("Propagate", icon=viser.Icon.AFFILIATE, hint="Show all labels over the view.")
        self._threshold = gui.add_slider(
            "Threshold", 0.0, 1.0, 0.01, 0.7, hint="Response from which on a pixel belongs to a label."
        )
        self._opacity = gui.add_slider("Opacity", 0.0, 1.0, 0.05, 0.6, hint="Of the labels over the view.")
        self._void = gui.add_slider(
            "Void below", 0.0, 1.0, 0.05, 0.0, hint="Pixels of less confidence get no label; 0 labels every pixel."
        )
        self._space = gui.add_dropdown(
            "Responses", ["2D", "3D"], hint="Of rendered pixels, or of the samples in space, rendered."
        )
        self._refine = gui.add_checkbox(
            "Refine by the scene",
            False,
            hint="Clicks are moved to what the whole scene says is alike (J-NeRF+). Slower.",
        )
        panel.on_user_update(self.shown, self.show)
        self._propagate.on_click(lambda _: panel.do(self.propagate))
        panel.on_user_update(self._threshold, lambda: self.set(threshold=self._threshold.value))
        panel.on_user_update(self._void, lambda: self.set(void_below=self._void.value))
        panel.on_user_update(self._space, lambda: self.set(space=self._space.value.lower()))
        panel.on_user_update(self._refine, self.refine)
        panel.on_user_update(
            self._opacity, lambda: panel.change(lambda now: changes.set_view(now, opacity=self._opacity.value), False)
        )

    def refresh(self, annotations: Annotations) -> None:
        """Shows the settings as they are saved."""
        config = annotations.view.propagation
        self._panel.set_quietly(self._threshold, config.threshold)
        self._panel.set_quietly(self._void, config.void_below)
        self._panel.set_quietly(self._opacity, annotations.view.opacity)
        self._panel.set_quietly(self._space, config.space.upper())
        self._panel.set_quietly(self._refine, config.refine > 0)
        names = {output: name for name, output in OUTPUTS.items()}
        self._panel.set_quietly(self.shown, names.get(self._controls.output_render, OTHER))

    def set(self, **settings: Any) -> None:
        """Changes settings of propagation."""

        def change(now: Annotations) -> Annotations:
            return changes.set_view(now, propagation=replace(now.view.propagation, **settings))

        self._panel.change(change, remember=False)

    def refine(self) -> None:
        """Turns J-NeRF+ on or off."""
        on = self._refine.value
        self.set(refine=JNERF_PLUS.refine if on else 0, smooth=JNERF_PLUS.smooth if on else 0.0)
        self._panel.say("Refining by the scene: the first time takes a moment." if on else "Clicks count as they are.")

    def show(self) -> None:
        """Shows the output that was chosen."""
        if self.shown.value in OUTPUTS:
            self.switch_to(OUTPUTS[self.shown.value])

    def propagate(self) -> None:
        """Shows all labels over the view. Errors: `UserError`, there is no seed."""
        if not self._panel.annotations.seeds:
            raise UserError("nothing to propagate yet: press **Click** and click on a thing first")
        self.switch_to("labels_overlay")
        self._panel.say("All labels, over the view. **Save masks of all photos** writes them as files.")

    def switch_to(self, output: str) -> None:
        """Shows an output of the model, once there has been a frame."""
        list_of_outputs = self._controls._output_render
        handle = list_of_outputs.gui_handle
        if isinstance(handle, viser.GuiDropdownHandle) and output in handle.options and handle.value != output:
            list_of_outputs.value = output
            names = {value: name for name, value in OUTPUTS.items()}
            self._panel.set_quietly(self.shown, names[output])
