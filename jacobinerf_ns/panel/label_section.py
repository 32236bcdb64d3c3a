"""The part of the panel with the labels: a table of them, and the selected one's name and colour."""

import viser

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.schema import Annotations
from jacobinerf_ns.labels.views import ViewReport
from jacobinerf_ns.panel import texts
from jacobinerf_ns.panel.desk import Desk

TYPING_SECONDS = 0.5
"""A name counts when nothing was typed for so long."""


class LabelSection:
    """Adds, renames, recolours and deletes labels."""

    def __init__(self, desk: Desk, server: viser.ViserServer, more: viser.GuiFolderHandle) -> None:
        """`more` is the folder of all but the name."""
        self._desk, gui = desk, server.gui
        self._name = gui.add_text("Name", "", hint="Of the selected label.")
        with more:
            self._table = gui.add_markdown("")
            self._colour = gui.add_rgb("Colour", (127, 127, 127), hint="Of the selected label, in overlays and marks.")
            self._add = gui.add_button("Add label", icon=viser.Icon.PLUS, hint="The next click belongs to it.")
            self._delete = gui.add_button(
                "Delete label", icon=viser.Icon.TRASH, hint="With its seeds and edits; Undo helps."
            )
        desk.on_user_update(self._name, self.rename, delay=TYPING_SECONDS)
        desk.on_user_update(self._colour, self.recolour)
        self._add.on_click(lambda _: desk.do(desk.add_label))
        self._delete.on_click(lambda _: desk.do(self.delete))

    def refresh(self, annotations: Annotations, report: ViewReport) -> None:
        """Show the labels as they are."""
        label = self._desk.selected(annotations)
        content = texts.table(annotations, report.shares, None if label is None else label.id)
        if self._table.content != content:
            self._table.content = content
        for control in (self._name, self._colour, self._delete):
            control.disabled = label is None
        if label is not None:
            self._desk.set_quietly(self._name, label.name)
            self._desk.set_quietly(self._colour, label.colour)

    def rename(self) -> None:
        """Give the selected label the name that was typed.

        Raises:
            UserError: one that is empty or taken.
        """
        label, name = self._desk.need_label(), self._name.value.strip()
        if name != label.name:
            self._desk.change(lambda now: changes.rename_label(now, label.id, name))
            self._desk.say(f"The label is called **{texts.plain(name)}** now.")

    def recolour(self) -> None:
        """Give the selected label the colour that was picked."""
        label = self._desk.need_label()
        red, green, blue = (int(part) for part in self._colour.value)
        self._desk.change(lambda now: changes.recolour_label(now, label.id, (red, green, blue)), remember=False)

    def delete(self) -> None:
        """Take the selected label away."""
        label = self._desk.need_label()
        self._desk.change(lambda now: changes.remove_label(now, label.id))
        self._desk.say(f"**{texts.plain(label.name)}** is gone, with its seeds and edits. **Undo** brings it back.")
