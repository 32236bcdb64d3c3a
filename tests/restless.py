"""People who do one thing after the other in the panel while the field is being trained, and what they leave behind."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from browser import Browser, Tab
from panel_user import User, user_of
from trained_room import HEIGHT, WIDTH, Room
from viewer_process import ViewerProcess

from jacobinerf_ns.annotations.schema import Seed
from jacobinerf_ns.annotations.store import read_annotations
from jacobinerf_ns.demo.capture import write_capture

OPTIONS = {
    "max-num-iterations": 100_000,
    "steps-per-save": 100_000,
    "pipeline.datamanager.train-num-rays-per-batch": 192,
    "pipeline.model.num-nerf-samples-per-ray": 16,
    "pipeline.model.eval-num-rays-per-chunk": 4096,
    "pipeline.model.shaping-start-step": 20,
    "viewer.num-rays-per-chunk": 4096,
    "vis": "viewer",
}
TEACHER = ["oracle", "--noise", "0", "--patch-size", "2", "--per-instance", "True"]


class Reader(threading.Thread):
    """Reads the annotation file all the time, as another program may."""

    def __init__(self, file: Path) -> None:
        super().__init__(daemon=True)
        self._file, self.enough = file, threading.Event()
        self.versions: set[bytes] = set()
        self.seeds: set[Seed] = set()
        """All that were ever there."""
        self.problems: list[str] = []

    def run(self) -> None:
        while not self.enough.wait(0.002):
            try:
                content = self._file.read_bytes()
                if content not in self.versions:
                    self.versions.add(content)
                    self.seeds.update(read_annotations(self._file).seeds)
            except FileNotFoundError:
                continue
            except Exception as error:
                self.problems.append(repr(error))


class Restless:
    """Somebody who does one thing after the other, and never waits for a frame."""

    def __init__(self, tab: Tab, seed: int, more: Sequence[str] = ()) -> None:
        """`more` are buttons that are pressed too."""
        self._tab, self._dice, self._more = tab, random.Random(seed), more
        self.done: Counter[str] = Counter()
        self.too_late: list[str] = []
        """What was gone or greyed out before the mouse was there."""

    def act(self) -> None:
        """Does one thing."""
        from playwright.sync_api import Error

        actions: list[Callable[[], None]] = [self.click, self.click, self.click, self.slide, self.slide, self.press]
        action = self._dice.choice([*actions, self.choose, self.history, self.name, self.edit, self.drag])
        try:
            action()
            self.done[action.__name__] += 1
        except (Error, AssertionError) as error:
            self.too_late.append(f"{action.__name__}: {str(error)[:200]}")

    def click(self) -> None:
        """Into the scene; where no click is awaited, presses a button that awaits one before."""
        if self._tab.pointer is None:
            self._press(self._dice.choice(("Click", "Click", "Not this", "Box")))
        elif self._tab.pointer == "click":
            self._tab.page.mouse.click(*self._place())
        else:
            self.drag()

    def drag(self) -> None:
        """The camera, or a box."""
        mouse = self._tab.page.mouse
        mouse.move(*self._place())
        mouse.down()
        mouse.move(*self._place(), steps=3)
        mouse.up()

    def slide(self) -> None:
        label = self._dice.choice(("Threshold", "Opacity", "Void below", "Strength"))
        self._tab.set_number(label, round(self._dice.uniform(0.01, 0.99), 2))

    def press(self) -> None:
        names = ("Stop", "Propagate", "Add label", "Delete label", "Save masks", "Smaller", "Larger", "Hide Train Cams")
        self._press(self._dice.choice((*names, *self._more)))

    def choose(self) -> None:
        label = self._dice.choice(("Show", "Responses", "Label", "Output type"))
        self._tab.choose(label, self._dice.choice(list(self._tab.gui(label)["options"])))

    def history(self) -> None:
        self._tab.press("Seeds", self._dice.choice(("Undo", "Undo", "Redo", "Clear")))

    def name(self) -> None:
        if not self._tab.gui("Name")["disabled"]:
            self._tab.fill("Name", f"thing {self._dice.randrange(1000)}")

    def edit(self) -> None:
        self._tab.press("Edit", self._dice.choice(("Recolour", "Remove", "Extract", "None")), folder="Edit")

    def _press(self, label: str) -> None:
        element = self._tab.gui(label)
        if element["visible"] and not element["disabled"]:
            self._tab.press(label)

    def _place(self) -> tuple[float, float]:
        box = self._tab.canvas()
        x, y = self._dice.uniform(0.02, 0.98), self._dice.uniform(0.02, 0.98)
        return box["x"] + x * box["width"], box["y"] + y * box["height"]


@contextmanager
def viewer_of_a_training(folder: Path, **options: object) -> Iterator[tuple[Room, ViewerProcess]]:
    """The viewer of a training that goes on and on; `options` are further ones of `ns-train`."""
    capture = write_capture(folder / "room", num_views=12, width=WIDTH, height=HEIGHT)
    command = ["ns-train", "jacobinerf-lite", "--data", capture, "--output-dir", folder / "out", "--timestamp", "run"]
    command += [word for name, value in {**OPTIONS, **options}.items() for word in (f"--{name}", value)]
    with ViewerProcess(command, folder, after=TEACHER) as viewer:
        yield Room(capture, folder / "out/room/jacobinerf-lite/run/config.yml"), viewer


@contextmanager
def user_of_a_training(folder: Path, chromium: Browser) -> Iterator[User]:
    """Somebody who has opened its page."""
    with viewer_of_a_training(folder) as (room, viewer), user_of(room, room.config, viewer, chromium) as found:
        yield found
