"""The part of the panel that makes a selection smaller or larger: from a part of the thing to the whole, and back."""

import viser

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.schema import Annotations, Label
from jacobinerf_ns.core.plateaus import Plateaus
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.panel.desk import Desk


class SizeSection:
    """Steps through the levels that the selected label can be taken at; the last frame's snapshot knows them."""

    def __init__(self, desk: Desk, server: viser.ViserServer) -> None:
        self._desk, gui = desk, server.gui
        self._snapshot: LabelSnapshot | None = None
        self._smaller = gui.add_button("Smaller", icon=viser.Icon.MINUS, hint="Less of it: a part of the thing.")
        self._larger = gui.add_button("Larger", icon=viser.Icon.PLUS, hint="More of it: the thing as a whole.")
        self._smaller.on_click(lambda _: desk.do(lambda: self.step(-1)))
        self._larger.on_click(lambda _: desk.do(lambda: self.step(1)))

    def refresh(self, annotations: Annotations, snapshot: LabelSnapshot | None) -> None:
        """Offer the steps that there are, by the snapshot of the last frame."""
        self._snapshot = snapshot
        label = self._desk.selected(annotations)
        levels = None if label is None or not self._desk.has_seeds(annotations) else self._levels(label)
        for button, steps in ((self._smaller, -1), (self._larger, 1)):
            button.disabled = levels is None or label is None or levels.grown(label.grow, steps) is None

    def step(self, steps: int) -> None:
        """Take the selected label so many levels larger.

        Raises:
            UserError: there is no such level.
        """
        label = self._desk.need_label()
        levels, way = self._levels(label), "larger" if steps > 0 else "smaller"
        grow = None if levels is None else levels.grown(label.grow, steps)
        if levels is None or grow is None:
            raise UserError(f"nothing {way} is known: click on what is missing, or **Not this** on what is wrong")
        self._desk.change(lambda now: changes.set_grow(now, label.id, grow))
        self._desk.show_labels()
        self._desk.say(f"{way}: {levels.used(grow) + 1} of {len(levels.levels)}")

    def _levels(self, label: Label) -> Plateaus | None:
        """Levels of a label, where the last frame had it."""
        labels = () if self._snapshot is None else self._snapshot.labels
        position = next((place for place, other in enumerate(labels) if other.id == label.id), None)
        return None if self._snapshot is None or position is None else self._snapshot.levels(position)
