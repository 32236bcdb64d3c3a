"""The part of the panel that edits what is rendered: another colour, gone, or alone. Weights are never touched."""

import viser

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.schema import Annotations, Edit
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.panel import texts
from jacobinerf_ns.panel.controls import add_button_group
from jacobinerf_ns.panel.desk import Desk

KINDS = {"Recolour": "recolour", "Remove": "remove", "Extract": "extract"}
NONE = "None"


class EditSection:
    """Edits of the selected label; colour and strength change what is there at once."""

    def __init__(self, desk: Desk, server: viser.ViserServer) -> None:
        self._desk, gui = desk, server.gui
        default = Edit(kind="recolour", label=1)
        self._colour = gui.add_rgb("New colour", default.colour, hint="That recolouring pulls towards.")
        self._strength = gui.add_slider("Strength", 0.0, 1.0, 0.05, default.strength, hint="0 is no change.")
        self._kinds = add_button_group(gui, "Edit", (*KINDS, NONE))
        self._list = gui.add_markdown("")
        self._kinds.on_click(lambda event: desk.do(lambda: self.edit(event.target.value)))
        desk.on_user_update(self._colour, self.adjust)
        desk.on_user_update(self._strength, self.adjust)

    def refresh(self, annotations: Annotations) -> None:
        """Show the edits there are, and the selected label's colour and strength."""
        names = {label.id: texts.plain(label.name) for label in annotations.labels}
        lines = [f"- {edit.kind} **{names[edit.label]}**, strength {edit.strength:g}" for edit in annotations.edits]
        content = "\n".join(lines) or self._why_not(annotations)
        if self._list.content != content:
            self._list.content = content
        label = self._desk.selected(annotations)
        mine = [edit for edit in annotations.edits if label is not None and edit.label == label.id]
        if mine:
            self._desk.set_quietly(self._colour, mine[-1].colour)
            self._desk.set_quietly(self._strength, mine[-1].strength)

    def edit(self, choice: str) -> None:
        """Make an edit of the selected label, or take all of them away.

        Raises:
            UserError: it has no seeds.
        """
        label = self._desk.need_label()
        if choice == NONE:
            self._desk.change(lambda now: changes.remove_edits(now, label.id))
            self._desk.say(f"**{texts.plain(label.name)}** looks as it was photographed.")
            return
        if not self._desk.has_seeds():
            raise UserError(f"click on **{texts.plain(label.name)}** first: an edit changes what its clicks select")
        if choice != "Recolour":
            # A thing is gone or alone, whatever was left of a colour; the slider can still say otherwise.
            self._desk.put(self._strength, 1.0)
        self._desk.change(lambda now: changes.set_edit(now, self._made(KINDS[choice], label.id)))
        self._desk.show_output("edited")
        self._desk.say(f"{choice}: **{texts.plain(label.name)}**. **None** takes it back.")

    def adjust(self) -> None:
        """Give the selected label's edits the colour and strength that are set; without edits, nothing happens."""
        label = self._desk.selected(self._desk.annotations)
        if label is None:
            return

        def change(now: Annotations) -> Annotations:
            for edit in now.edits:
                if edit.label == label.id:
                    now = changes.set_edit(now, self._made(edit.kind, label.id))
            return now

        self._desk.change(change, remember=False)

    def _made(self, kind: str, label: int) -> Edit:
        red, green, blue = (int(part) for part in self._colour.value)
        return Edit.model_validate(
            {"kind": kind, "label": label, "colour": (red, green, blue), "strength": self._strength.value}
        )

    def _why_not(self, annotations: Annotations) -> str:
        if self._desk.has_seeds(annotations):
            return "*No edit yet. They change the picture, never the field.*"
        return "*Click on a thing first: an edit changes what its clicks select.*"
