"""The part of the panel that chooses what the view shows, and from which response on a pixel belongs to a label."""

from dataclasses import replace
from typing import Any

import viser

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.schema import Annotations
from jacobinerf_ns.core.propagation import JNERF_PLUS
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.panel.desk import Desk

OUTPUTS = {
    "Colours": "rgb",
    "Selection": "selection_overlay",
    "Labels": "labels_overlay",
    "Resonance": "resonance",
    "Relevancy": "relevancy",
    "Edited": "edited",
}
"""What people choose from, and the model's output."""
OTHER = "Other output"
"""Chosen in nerfstudio's own list."""


class ShowSection:
    """Settings of how labels are shown; all but the output itself are saved with the annotations."""

    def __init__(
        self, desk: Desk, server: viser.ViserServer, show: viser.GuiFolderHandle, tune: viser.GuiFolderHandle
    ) -> None:
        """`show` is the folder of what the view shows, `tune` that of how labels are found."""
        self._desk, gui = desk, server.gui
        self._propagate = gui.add_button("Propagate", icon=viser.Icon.AFFILIATE, hint="Show all labels over the view.")
        with show:
            self.shown = gui.add_dropdown("Show", [*OUTPUTS, OTHER], hint="What the view shows.")
            self._opacity = gui.add_slider("Opacity", 0.0, 1.0, 0.05, 0.6, hint="Of the labels over the view.")
        with tune:
            self._threshold = gui.add_slider(
                "Threshold",
                -1.0,
                1.0,
                0.05,
                0.0,
                hint="0 is each label's own; below, selections grow, above, they shrink.",
            )
            self._void = gui.add_slider(
                "Void below", 0.0, 1.0, 0.05, 0.0, hint="Pixels of less confidence get no label; 0 labels every pixel."
            )
            self._connected = gui.add_checkbox(
                "In one piece", True, hint="Only what hangs together with the clicks; off: all that is alike."
            )
            self._space = gui.add_dropdown(
                "Responses", ["2D", "3D"], hint="Of rendered pixels, or of the samples in space, rendered."
            )
            self._refine = gui.add_checkbox(
                "Refine by the scene",
                False,
                hint="Clicks are moved to what the whole scene says is alike (J-NeRF+). Slower.",
            )
        desk.on_user_update(self.shown, self.show)
        self._propagate.on_click(lambda _: desk.do(self.propagate))
        desk.on_user_update(self._threshold, lambda: self.set(strictness=self._threshold.value))
        desk.on_user_update(self._void, lambda: self.set(void_below=self._void.value))
        desk.on_user_update(self._connected, lambda: self.set(connected=self._connected.value))
        desk.on_user_update(self._space, lambda: self.set(space=self._space.value.lower()))
        desk.on_user_update(self._refine, self.refine)
        desk.on_user_update(
            self._opacity, lambda: desk.change(lambda now: changes.set_view(now, opacity=self._opacity.value), False)
        )

    def refresh(self, annotations: Annotations) -> None:
        """Show the settings as they are saved."""
        config = annotations.view.propagation
        self._desk.set_quietly(self._threshold, config.strictness)
        self._desk.set_quietly(self._void, config.void_below)
        self._desk.set_quietly(self._connected, config.connected)
        self._desk.set_quietly(self._opacity, annotations.view.opacity)
        self._desk.set_quietly(self._space, config.space.upper())
        self._desk.set_quietly(self._refine, config.refine > 0)
        names = {output: name for name, output in OUTPUTS.items()}
        self._desk.set_quietly(self.shown, names.get(self._desk.output, OTHER))

    def set(self, **settings: Any) -> None:
        """Change settings of propagation."""

        def change(now: Annotations) -> Annotations:
            return changes.set_view(now, propagation=replace(now.view.propagation, **settings))

        self._desk.change(change, remember=False)

    def refine(self) -> None:
        """Turn J-NeRF+ on or off."""
        on = self._refine.value
        self.set(refine=JNERF_PLUS.refine if on else 0, smooth=JNERF_PLUS.smooth if on else 0.0)
        self._desk.say("Refining by the scene: the first time takes a moment." if on else "Clicks count as they are.")

    def show(self) -> None:
        """Show the output that was chosen."""
        if self.shown.value in OUTPUTS:
            self._desk.show_output(OUTPUTS[self.shown.value])

    def propagate(self) -> None:
        """Show all labels over the view.

        Raises:
            UserError: there is no seed.
        """
        if not self._desk.annotations.seeds:
            raise UserError("nothing to propagate yet: press **Click** and click on a thing first")
        self._desk.show_output("labels_overlay")
        self._desk.say("All labels, over the view. **Save masks** writes them as files, for all photos.")
