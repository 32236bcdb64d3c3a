"""The part of the panel that makes files, in the background: masks of all photos, and the selected label in 3D."""

from pathlib import Path

import viser

from jacobinerf_ns.annotations.schema import Annotations
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.panel import texts
from jacobinerf_ns.panel.desk import Desk
from jacobinerf_ns.panel.job import Job

MASKS, PARTS = "propagated", "parts"
"""Folders of the results, beside the run's config.yml."""
MANIFEST = "propagation.json"
"""In which `jacobinerf propagate` lists its files."""


class FileSection:
    """Starts `jacobinerf propagate` and `jacobinerf export`, one at a time, and shows how far they are."""

    def __init__(self, desk: Desk, server: viser.ViserServer, run: Path, more: viser.GuiFolderHandle) -> None:
        """`run` is the folder of the run's config.yml; in `more` is all but the masks."""
        self._desk, self._run, gui = desk, run, server.gui
        self._job: Job | None = None
        self._name, self._folder = "", run
        hint = "Label maps of all photos, as files."
        self._masks = gui.add_button("Save masks", icon=viser.Icon.PHOTO_DOWN, hint=hint)
        self._bar = gui.add_progress_bar(0.0, visible=False)
        self._cancel = gui.add_button("Cancel", visible=False, hint="What is finished stays.")
        self._state = gui.add_markdown("", visible=False)
        with more:
            hint = "The selected label as points and mesh."
            self._part = gui.add_button("Export part", icon=viser.Icon.CUBE, hint=hint)
        self._masks.on_click(lambda _: desk.do(self.save_masks))
        self._part.on_click(lambda _: desk.do(self.export))
        self._cancel.on_click(lambda _: desk.do(self.cancel))

    def refresh(self, annotations: Annotations) -> None:
        """Offers what can be made, and says why the rest cannot."""
        problem = self._problem(annotations)
        self._masks.disabled = problem is not None or not annotations.seeds
        self._part.disabled = problem is not None or not self._desk.has_seeds(annotations)
        # What came of the last work stays to be read, until there is something else to say.
        if self._job is None and (problem is not None or self._state.content.startswith("*")):
            self._set_state(f"*{problem}*" if problem and annotations.seeds else "")

    def save_masks(self) -> None:
        """Start writing label maps of all photos."""
        folder = self._run / MASKS
        arguments = ["propagate", "--load-config", str(self._run / "config.yml"), "--output-dir", str(folder)]
        self._start("Masks of all photos", folder, [*arguments, "--overwrite", "--overlays"], folder / MANIFEST)

    def export(self) -> None:
        """Start writing the selected label's points and mesh."""
        label = self._desk.need_label()
        folder = self._run / PARTS / f"{label.id}"
        arguments = ["export", "--load-config", str(self._run / "config.yml"), "--output-dir", str(folder)]
        # One word: a name may begin with a dash.
        arguments += [f"--label={label.name}", "--mesh", "--overwrite"]
        self._start(f"Part {texts.plain(label.name)}", folder, arguments)

    def cancel(self) -> None:
        """End what is being made."""
        if self._job is not None:
            self._job.cancel()

    def look(self) -> None:
        """Show how far the work is, and what came of it."""
        job = self._job
        if job is None:
            return
        if job.running:
            share = job.progress
            self._bar.value = 100.0 * (share or 0.0)
            if share is not None:
                self._set_state(f"{self._name}: {100 * share:.0f} %")
            return
        self._job = None
        self._bar.visible = self._cancel.visible = False
        done = f"{self._name}: done, in `{self._folder}`"
        stopped = f"{self._name}: cancelled; what was finished is in `{self._folder}`"
        result = stopped if job.cancelled else f"{self._name}: {texts.plain(job.error)}" if job.error else done
        self._set_state(result)
        self._desk.say(result)
        self.refresh(self._desk.annotations)

    def _start(self, name: str, folder: Path, arguments: list[str], manifest: Path | None = None) -> None:
        problem = self._problem(self._desk.annotations)
        if problem is not None:
            raise UserError(problem)
        self._name, self._folder = name, folder
        self._job = Job(arguments, manifest)
        self._bar.value, self._bar.animated = 0.0, True
        self._bar.visible = self._cancel.visible = True
        self._set_state(f"{name}: starting …")
        where = " On the CPU, which takes longer: too little of the GPU is free." if self._job.on_cpu else ""
        self._desk.say(f"{name}: at work in the background, from the run's last checkpoint.{where}")
        self.refresh(self._desk.annotations)

    def _problem(self, annotations: Annotations) -> str | None:
        """Why nothing can be made now."""
        if self._job is not None:
            return "One thing at a time: wait for it, or cancel it."
        if not any((self._run / "nerfstudio_models").glob("step-*.ckpt")):
            return "No checkpoint is saved yet: training saves one every few hundred steps."
        if not annotations.seeds:
            return "Click on a thing first: there is nothing to write yet."
        return None

    def _set_state(self, content: str) -> None:
        if self._state.content != content:
            self._state.content = content
        self._state.visible = bool(content)
