"""The panel: joins its sections, the annotation store and the screen. It changes annotations; all else is elsewhere."""

import traceback
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl

from jacobinerf_ns.annotations.frames import WorldFrame
from jacobinerf_ns.annotations.store import ANNOTATIONS_NAME, AnnotationStore
from jacobinerf_ns.compat.leaving_clients import remember_clients
from jacobinerf_ns.compat.message_order import keep_messages_in_order
from jacobinerf_ns.compat.render_threads import replace_render_threads, use_render_threads
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.labels.keeper import LabelKeeper
from jacobinerf_ns.labels.views import KeptViews, Screen, ViewReport
from jacobinerf_ns.labels.words import Answer
from jacobinerf_ns.panel import texts
from jacobinerf_ns.panel.click_section import ClickSection
from jacobinerf_ns.panel.desk import Desk
from jacobinerf_ns.panel.edit_section import EditSection
from jacobinerf_ns.panel.file_section import FileSection
from jacobinerf_ns.panel.freed_memory import FreedMemory
from jacobinerf_ns.panel.label_section import LabelSection
from jacobinerf_ns.panel.marks import Marks
from jacobinerf_ns.panel.opening_view import OpeningView
from jacobinerf_ns.panel.renderer import SteadyRenderer
from jacobinerf_ns.panel.show_section import ShowSection
from jacobinerf_ns.panel.size_section import SizeSection
from jacobinerf_ns.panel.word_section import WordSection
from jacobinerf_ns.panel.worker import Worker
from jacobinerf_ns.progress import PlainConsole

CPU_TRAINING_RESOLUTION, CPU_RESOLUTION = 64, 264
"""Longer side of a viewer frame on a CPU, in pixels, at the start: while training, where a frame holds the training
lock, and without. At nerfstudio's 512 training would stand still for minutes after every move of the camera."""
FOLDERS = ("More clicks", "Show", "Labels", "Tune", "Edit", "Export", "Help")
"""What is folded away, below what everybody needs."""
LAST = 1e6
"""Order of the first folder: viser counts the controls from 0."""


class Host(Protocol):
    """What the panel needs of the pipeline among whose attributes the viewer finds it."""

    labels: LabelKeeper | None
    """Of the annotation file that is shown; None where the run names no file."""

    @property
    def device(self) -> torch.device:
        """Of the field."""
        ...

    @property
    def photo_cameras(self) -> Cameras:
        """Of the photos that the field learnt from, in the scene's frame."""
        ...

    @property
    def world(self) -> WorldFrame:
        """The capture's frame, which annotations are in, against the scene's."""
        ...

    @property
    def knows_words(self) -> bool:
        """Whether it can be asked in words."""
        ...

    def find_words(self, words: str, lock: AbstractContextManager[Any]) -> Answer:
        """Look for words in the photos, with a lock held while the field is asked."""
        ...

    def show_labels(self, path: Path) -> LabelKeeper:
        """Show the labels of an annotation file from now on."""
        ...


class Panel(ViewerControl):
    """The JacobiNeRF folder in nerfstudio's viewer. Inert until a viewer takes the pipeline up."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._problem: str | None = None

    def _setup(self, viewer: Viewer) -> None:
        """Build the panel; the viewer calls this at the end of its own construction."""
        super()._setup(viewer)
        run = Path(viewer.log_filename).absolute().parent
        self._store = self._own_store(run)
        self._report, self._framed = ViewReport(None, {}, 0), -1
        self._freed = FreedMemory()
        self.screen = Screen(KeptViews(device=self._host.device), self._is_shown, self._seen)
        self._worker = Worker(self._failed, self._idle)
        self._build(run)
        self._marks = Marks(self.viser_server)
        if self._host.device.type == "cpu":
            size = CPU_RESOLUTION if viewer.trainer is None else CPU_TRAINING_RESOLUTION
            viewer.control_panel._max_res.value = size
        self._renderer = partial(SteadyRenderer, screen=self.screen, failed=self._render_failed)
        use_render_threads(viewer, self._renderer)
        OpeningView(self._host.photo_cameras).use(self.viser_server)
        keep_messages_in_order()
        remember_clients(self.viser_server)
        self._take_over()
        self._refresh()
        self._worker.start()

    def _take_over(self) -> None:
        for renderer in replace_render_threads(self.viewer, self._renderer, SteadyRenderer):
            renderer.refresh()

    def _own_store(self, run: Path) -> AnnotationStore:
        keeper = self._host.labels
        if keeper is None:
            # Runs that are older than annotations do not name a file.
            keeper = self._host.show_labels(run / ANNOTATIONS_NAME)
        keeper.refuses = False
        return keeper.store

    def _build(self, run: Path) -> None:
        server, gui = self.viser_server, self.viser_server.gui
        # Right below the viewer's own state, above its tabs: where it is found.
        with gui.add_folder("JacobiNeRF", order=self.viewer.stats_markdown.order + 0.5):
            desk = self.desk = Desk(
                self.viewer, self._store, self._host.world, self._worker, self._refresh, self._ask_for_frames
            )
            more, show, labels, tune, edit, export, guide = (
                gui.add_folder(name, order=LAST + place, expand_by_default=False) for place, name in enumerate(FOLDERS)
            )
            # What everybody needs, in this order; the folders come last.
            self.clicks = ClickSection(desk, server, more)
            if self._host.knows_words:
                self.words = WordSection(desk, server, self._host.find_words, self._failed)
            self.sizes = SizeSection(desk, server)
            self.labels = LabelSection(desk, server, labels)
            self.show = ShowSection(desk, server, show, tune)
            self.files = FileSection(desk, server, run, export)
            self.clicks.add_history()
            with edit:
                self.edits = EditSection(desk, server)
            with guide:
                gui.add_markdown(texts.HELP)

    def _changed(self) -> None:
        self._refresh()
        self._ask_for_frames()

    def _ask_for_frames(self) -> None:
        # Before asking: what changes meanwhile is asked for again.
        self._framed = self._store.snapshot()[0]
        for renderer in list(self.viewer.render_statemachines.values()):
            if isinstance(renderer, SteadyRenderer):
                renderer.refresh()

    def _refresh(self) -> None:
        annotations = self._store.snapshot()[1]
        self.clicks.refresh(annotations)
        self.sizes.refresh(annotations, self._report.snapshot)
        self.show.refresh(annotations)
        self.labels.refresh(annotations, self._report)
        self.edits.refresh(annotations)
        self.files.refresh(annotations)

    def _is_shown(self, output: str) -> bool:
        controls = self.viewer.control_panel
        return output == controls.output_render or (controls.split and output == controls.split_output_render)

    def _seen(self, report: ViewReport) -> None:
        """Take note of a frame that was rendered, in the thread of a tab."""
        self._worker.post(partial(self._looked, report), key="report")

    def _looked(self, report: ViewReport) -> None:
        self._report = report
        self._marks.show(report.snapshot)
        self._say_problem()
        self.clicks.looked(self.desk.annotations, report)
        self._refresh()

    def _idle(self) -> None:
        self._take_over()
        self.files.look()
        if self._store.write_kept():
            self.desk.say(texts.saved_again(self._store.path))
        if self._store.snapshot()[0] != self._framed:
            # Another program changed the file; the panel may have shown it since, the screen has not.
            self._changed()
        elif self.clicks.waits:
            # A frame may get lost, in a tab that is closed or a thread that is interrupted; an answer must not.
            self._ask_for_frames()
        self._say_problem()
        self._freed.give_back(self._report)

    def _say_problem(self) -> None:
        keeper = self._host.labels
        problem = self._store.problem or (None if keeper is None else keeper.problem)
        if problem is not None and problem != self._problem:
            self.desk.say(f"⚠ {texts.plain(problem)}")
        # Once: what is said next should not be talked over.
        self._problem = problem

    def _failed(self, error: Exception) -> None:
        """Say what ended a task of the panel: users' own errors are said, ours are said and printed."""
        if isinstance(error, UserError):
            self.desk.say(f"⚠ {error}")
            return
        if isinstance(error, RuntimeError) and "after shutdown" in str(error):
            # The viewer was closed, as at the end of training; viser tells nobody.
            self._worker.stop()
            return
        self.desk.say(f"⚠ That did not work ({texts.plain(repr(error))}). What was saved is as it was.")
        PlainConsole().print("".join(traceback.format_exception(error)), highlight=False, soft_wrap=True)

    def _render_failed(self, error: Exception) -> None:
        self.desk.do(partial(self._failed, error))
