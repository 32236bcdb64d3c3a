"""The panel: joins its sections, the annotation store and the screen. It changes annotations; all else is elsewhere."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nerfstudio.viewer.viewer as nerfstudio_viewer
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerControl

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.frames import WorldFrame
from jacobinerf_ns.annotations.schema import Annotations, Label
from jacobinerf_ns.annotations.store import ANNOTATIONS_NAME, AnnotationStore
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.labels.views import KeptViews, Screen, ViewReport, kept_bytes
from jacobinerf_ns.panel import texts
from jacobinerf_ns.panel.click_section import ClickSection
from jacobinerf_ns.panel.edit_section import EditSection
from jacobinerf_ns.panel.file_section import FileSection
from jacobinerf_ns.panel.label_section import LabelSection
from jacobinerf_ns.panel.marks import Marks
from jacobinerf_ns.panel.renderer import SteadyRenderer
from jacobinerf_ns.panel.show_section import ShowSection
from jacobinerf_ns.panel.worker import Worker

if TYPE_CHECKING:
    from jacobinerf_ns.pipeline import JacobiNeRFPipeline

CPU_TRAINING_RESOLUTION, CPU_RESOLUTION = 64, 264
"""Longer side of a viewer frame on a CPU, in pixels, at the start: while training, where a frame holds the training
lock, and without. At nerfstudio's 512 training would stand still for minutes after every move of the camera."""
NEW_VOID = 0.5
"""`void_below` of annotations that begin in the panel: with one label and 0, that label would cover the whole view."""
LABEL_OUTPUTS = ("resonance", "selection_overlay", "labels_overlay", "edited")
"""Outputs on which a click shows at once what it does: the view stays with them."""


class Panel(ViewerControl):
    """The JacobiNeRF folder in nerfstudio's viewer. Inert until a viewer takes the pipeline up."""

    def __init__(self, pipeline: JacobiNeRFPipeline) -> None:
        self._pipeline = pipeline
        self._problem: str | None = None

    def _setup(self, viewer: nerfstudio_viewer.Viewer) -> None:
        """Called by the viewer at the end of its own construction."""
        super()._setup(viewer)
        run = Path(viewer.log_filename).absolute().parent
        self._store = self._own_store(run)
        self._report, self._revision = ViewReport(None, {}, 0), -1
        self.screen = Screen(KeptViews(kept_bytes(self._pipeline.device)), self._is_shown, self._seen)
        self._worker = Worker(self._failed, self._idle)
        self._build(run)
        self._marks = Marks(self.viser_server)
        if self._pipeline.device.type == "cpu":
            size = CPU_RESOLUTION if viewer.trainer is None else CPU_TRAINING_RESOLUTION
            viewer.control_panel._max_res.value = size
        self._renderer = partial(SteadyRenderer, screen=self.screen, failed=self._render_failed)
        # The viewer makes a render thread for each tab by this name, and offers no other way to make them its own.
        nerfstudio_viewer.RenderStateMachine = self._renderer  # pyright: ignore[reportAttributeAccessIssue]
        self._take_over()
        self._refresh()
        self._worker.start()

    def _take_over(self) -> None:
        """Gives tabs that came before the panel was built, as those of an earlier viewer do, our render thread."""
        renderers = self.viewer.render_statemachines
        for number, renderer in list(renderers.items()):
            if renderer.is_alive() and not isinstance(renderer, SteadyRenderer):
                renderer.running = False
                ratio = nerfstudio_viewer.VISER_NERFSTUDIO_SCALE_RATIO
                ours = renderers[number] = self._renderer(self.viewer, ratio, renderer.client)
                ours.start()
                ours.refresh()

    def _own_store(self, run: Path) -> AnnotationStore:
        keeper = self._pipeline.labels
        if keeper is None:
            # Runs that are older than annotations do not name a file.
            keeper = self._pipeline.show_labels(run / ANNOTATIONS_NAME)
        assert isinstance(keeper.store, AnnotationStore), "only commands of ours fix the annotations"
        return keeper.store

    def _build(self, run: Path) -> None:
        server, gui = self.viser_server, self.viser_server.gui
        # Right below the viewer's own state, above its tabs: where it is found.
        with gui.add_folder("JacobiNeRF", order=self.viewer.stats_markdown.order + 0.5):
            self._status = gui.add_markdown(texts.NOTHING_YET)
            self.clicks = ClickSection(self, server)
            self.show = ShowSection(self, server, self.viewer.control_panel)
            with gui.add_folder("Labels"):
                self.labels = LabelSection(self, server)
            with gui.add_folder("Edit", expand_by_default=False):
                self.edits = EditSection(self, server)
            with gui.add_folder("Save", expand_by_default=False):
                self.files = FileSection(self, server, run)
            with gui.add_folder("Help", expand_by_default=False):
                gui.add_markdown(texts.HELP)

    @property
    def annotations(self) -> Annotations:
        """As they are now."""
        return self._store.snapshot()[1]

    @property
    def world(self) -> WorldFrame:
        """The capture's frame, which annotations are in, against the scene's."""
        return self._pipeline.world

    @staticmethod
    def selected(annotations: Annotations) -> Label | None:
        """The label that gets the clicks; none where there is no label."""
        if annotations.view.selected is not None:
            return annotations.label(annotations.view.selected)
        return annotations.labels[0] if annotations.labels else None

    def need_label(self) -> Label:
        """The selected label. Errors: `UserError`, there is none."""
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
        """The annotations with one more label, which is selected; its name is the first `object N` that is free."""
        names = {label.name for label in annotations.labels}
        number = next(n for n in range(1, len(names) + 2) if f"object {n}" not in names)
        if not annotations.labels:
            config = annotations.view.propagation
            if config == type(config)():
                annotations = changes.set_view(annotations, propagation=type(config)(void_below=NEW_VOID))
        annotations, label = changes.add_label(annotations, f"object {number}")
        return changes.select(annotations, label.id)

    def selected_or_new(self, annotations: Annotations) -> tuple[Annotations, Label]:
        """The annotations and the label that a click belongs to, made where there is none."""
        if not annotations.labels:
            annotations = self.with_new_label(annotations)
        label = self.selected(annotations)
        assert label is not None
        return annotations, label

    def do(self, task: Callable[[], None]) -> None:
        """Runs a task in the panel's thread; its `UserError` is shown in the status line."""
        self._worker.post(task)

    def on_user_update(self, handle: Any, task: Callable[[], None], delay: float = 0.0) -> None:
        """Runs a task when a user changes a control, not when the panel sets it; of several, the last one."""

        def updated(event: Any) -> None:
            if event.client is not None:
                self._worker.post(task, key=id(handle), delay=delay)

        handle.on_update(updated)

    def set_quietly(self, handle: Any, value: Any) -> None:
        """Sets a control, unless a user is just changing it."""
        if handle.value != value and not self._worker.waits(id(handle)):
            handle.value = value

    def change(self, new: Callable[[Annotations], Annotations], remember: bool = True) -> None:
        """Changes the annotations, saves them, and shows it. Errors: `UserError`; nothing is changed then."""
        self._store.change(new, remember=remember)
        self._changed()

    def replay(self, way: Literal["undo", "redo"]) -> bool:
        """Takes a change back, or makes it again; False where there is none."""
        moved = self._store.undo() if way == "undo" else self._store.redo()
        self._changed()
        return moved

    def say(self, text: str) -> None:
        """Shows a line of markdown at the top of the panel."""
        if self._status.content != text:
            self._status.content = text

    def show_output(self, output: str) -> None:
        """Shows an output of the model."""
        self.show.switch_to(output)

    def show_labels(self) -> None:
        """Shows the heat map, if the view does not show labels already."""
        if self.viewer.control_panel.output_render not in LABEL_OUTPUTS:
            self.show_output("resonance")

    def _changed(self) -> None:
        self._refresh()
        self._ask_for_frames()

    def _ask_for_frames(self) -> None:
        for renderer in list(self.viewer.render_statemachines.values()):
            if isinstance(renderer, SteadyRenderer):
                renderer.refresh()

    def _refresh(self) -> None:
        self._revision, annotations = self._store.snapshot()
        self.clicks.refresh(annotations)
        self.show.refresh(annotations)
        self.labels.refresh(annotations, self._report)
        self.edits.refresh(annotations)
        self.files.refresh(annotations)

    def _is_shown(self, output: str) -> bool:
        controls = self.viewer.control_panel
        return output == controls.output_render or (controls.split and output == controls.split_output_render)

    def _seen(self, report: ViewReport) -> None:
        """A frame was rendered, in the thread of a tab."""
        self._worker.post(partial(self._looked, report), key="report")

    def _looked(self, report: ViewReport) -> None:
        self._report = report
        self._marks.show(report.snapshot)
        annotations = self.annotations
        self._say_problem()
        self.clicks.looked(annotations, report)
        self._refresh()

    def _idle(self) -> None:
        self._take_over()
        self.files.look()
        revision, _ = self._store.snapshot()
        if revision != self._revision:
            # Another program changed the file.
            self._changed()
        elif self.clicks.waits:
            # A frame may get lost, in a tab that is closed or a thread that is interrupted; an answer must not.
            self._ask_for_frames()
        self._say_problem()

    def _say_problem(self) -> None:
        keeper = self._pipeline.labels
        problem = self._store.problem or (None if keeper is None else keeper.problem)
        if problem is not None and problem != self._problem:
            self.say(f"⚠ {texts.plain(problem)}")
        # Once: what is said next should not be talked over.
        self._problem = problem

    def _failed(self, error: Exception) -> None:
        """A task of the panel ended in an error: users' own are said, ours are said and printed."""
        if isinstance(error, UserError):
            self.say(f"⚠ {error}")
            return
        if isinstance(error, RuntimeError) and "after shutdown" in str(error):
            # The viewer was closed, as at the end of training; viser tells nobody.
            self._worker.stop()
            return
        self.say(f"⚠ That did not work ({texts.plain(repr(error))}). What was saved is as it was.")
        CONSOLE.print("".join(traceback.format_exception(error)), markup=False, highlight=False, soft_wrap=True)

    def _render_failed(self, error: Exception) -> None:
        self.do(partial(self._failed, error))
