"""What all sections of the panel share: the annotations, the selected label, the panel's thread and its status line.

Sections know this, and nothing of each other or of the panel that puts them together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import viser
from nerfstudio.viewer.viewer import Viewer

from jacobinerf_ns.annotations import changes
from jacobinerf_ns.annotations.frames import WorldFrame
from jacobinerf_ns.annotations.schema import Annotations, Label
from jacobinerf_ns.annotations.store import AnnotationStore
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.panel import texts
from jacobinerf_ns.panel.worker import Worker

NEW_VOID = 0.5
"""`void_below` of annotations that begin in the panel: with one label and 0, that label would cover the whole view."""
LABEL_OUTPUTS = ("resonance", "selection_overlay", "labels_overlay", "edited")
"""Outputs on which a click shows at once what it does: the view stays with them."""


class Desk:
    """The annotations of a run as the panel works on them."""

    def __init__(
        self,
        viewer: Viewer,
        store: AnnotationStore,
        world: WorldFrame,
        worker: Worker,
        refresh: Callable[[], None],
        ask_for_frames: Callable[[], None],
    ) -> None:
        """`refresh` makes all sections show what is, `ask_for_frames` all tabs; called in the thread of a change."""
        self.viewer, self.world = viewer, world
        self._store, self._worker = store, worker
        self._refresh, self._ask_for_frames = refresh, ask_for_frames
        self._known: dict[int, Any] = {}
        """By control: the value that the panel gave it or took from it last. Another is a user's, on its way here."""
        self._status = viewer.viser_server.gui.add_markdown(texts.NOTHING_YET)

    @property
    def annotations(self) -> Annotations:
        """As they are now."""
        return self._store.snapshot()[1]

    @staticmethod
    def selected(annotations: Annotations) -> Label | None:
        """Return the label that gets the clicks; none where there is no label."""
        if annotations.view.selected is not None:
            return annotations.label(annotations.view.selected)
        return annotations.labels[0] if annotations.labels else None

    def need_label(self) -> Label:
        """Return the selected label.

        Raises:
            UserError: there is none.
        """
        label = self.selected(self.annotations)
        if label is None:
            raise UserError("there is no label yet: press **Click** and click on a thing, or **Add label**")
        return label

    def has_seeds(self, annotations: Annotations | None = None) -> bool:
        """Whether the selected label has seeds that say what it is."""
        annotations = self.annotations if annotations is None else annotations
        label = self.selected(annotations)
        return label is not None and any(not seed.negative for seed in annotations.seeds_of(label.id))

    def with_new_label(self, annotations: Annotations) -> Annotations:
        """Return the annotations with one more label, selected, and called by the first free `object N`."""
        names = {label.name for label in annotations.labels}
        number = next(n for n in range(1, len(names) + 2) if f"object {n}" not in names)
        if not annotations.labels:
            config = annotations.view.propagation
            if config == type(config)():
                annotations = changes.set_view(annotations, propagation=type(config)(void_below=NEW_VOID))
        annotations, label = changes.add_label(annotations, f"object {number}")
        return changes.select(annotations, label.id)

    def add_label(self) -> None:
        """Add a label, and select it."""
        self.change(self.with_new_label)
        self.say(f"**{texts.plain(self.need_label().name)}** is there: click on what it stands for.")

    def selected_or_new(self, annotations: Annotations) -> tuple[Annotations, Label]:
        """Return the annotations and the label that a click belongs to, made where there is none."""
        if not annotations.labels:
            annotations = self.with_new_label(annotations)
        label = self.selected(annotations)
        assert label is not None
        return annotations, label

    def do(self, task: Callable[[], object]) -> None:
        """Run a task in the panel's thread; its `UserError` is shown in the status line."""
        self._worker.post(task)

    def on_user_update(self, handle: Any, task: Callable[[], object], delay: float = 0.0) -> None:
        """Run a task when a user changes a control, not when the panel sets it; of several, the last one."""
        self._known[id(handle)] = handle.value

        def taken() -> None:
            self._known[id(handle)] = handle.value
            task()

        def updated(event: Any) -> None:
            if event.client is not None:
                self._worker.post(taken, key=id(handle), delay=delay)

        handle.on_update(updated)

    def put(self, handle: Any, value: Any) -> None:
        """Set a control, in the panel's thread."""
        self._known[id(handle)] = value
        if handle.value != value:
            handle.value = value

    def set_quietly(self, handle: Any, value: Any) -> None:
        """Set a control, unless a user is just changing it.

        viser changes the value first and says so a moment later: until then it is told by its being unknown here.
        """
        if handle.value == self._known[id(handle)] and not self._worker.waits(id(handle)):
            self.put(handle, value)

    def change(self, new: Callable[[Annotations], Annotations], remember: bool = True) -> Annotations:
        """Change the annotations, save them, and show it.

        Returns:
            The annotations as they are now.

        Raises:
            UserError: the change cannot be made; then nothing is changed.
        """
        changed = self._store.change(new, remember=remember)
        self._show_all()
        return changed

    def replay(self, way: Literal["undo", "redo"]) -> bool:
        """Take a change back, or make it again; False where there is none."""
        moved = self._store.undo() if way == "undo" else self._store.redo()
        self._show_all()
        return moved

    def say(self, text: str) -> None:
        """Show a line of markdown at the top of the panel; below it, as long as it is so, that labels are not saved."""
        if self._store.unsaved and self._store.problem is not None:
            warning = f"⚠ {texts.plain(self._store.problem)}"
            text = text if warning in text else f"{text}\n\n{warning}"
        if self._status.content != text:
            self._status.content = text

    @property
    def output(self) -> str:
        """The output of the model that is shown, as nerfstudio names it."""
        return self.viewer.control_panel.output_render

    def show_output(self, output: str) -> None:
        """Show an output of the model, once there has been a frame."""
        listed = self.viewer.control_panel._output_render
        handle = listed.gui_handle
        if isinstance(handle, viser.GuiDropdownHandle) and output in handle.options and handle.value != output:
            listed.value = output
            self._refresh()

    def show_labels(self) -> None:
        """Show what is selected, if the view does not show labels already."""
        if self.output not in LABEL_OUTPUTS:
            self.show_output("selection_overlay")

    def _show_all(self) -> None:
        self._refresh()
        self._ask_for_frames()
