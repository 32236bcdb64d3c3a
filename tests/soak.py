"""The viewer for a long while: two clients, random actions and a training; nothing is lost, raised or piled up.

`make soak` takes ten minutes and at least 1,000 actions; `python tests/soak.py 2 150` two minutes and 150. Each click
that the panel takes has to be in the annotation file, or refused in the status line. Prints what was seen, and ends
with 1 where something failed.
"""

import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restless import Reader, Restless, viewer_of_a_training
from viewer_process import ViewerProcess
from viser_client import Client

MORE = ("Save masks", "Cancel", "Export part")
EVERY = 150
"""Actions after which one of the tabs is loaded anew."""
LOOK_SECONDS = 5.0
LOOKS_A_MINUTE = 12
REST = 5.0
"""Seconds at the end, for what was asked for last."""
PHOTOS = 4
MOST_GROWTH = 0.1
"""Of the memory's median over the last fifth of the time, over that of the second fifth: until then caches fill."""
MOST_THREADS = 48
"""viser has a pool of up to 32."""
MIB = 1 << 20


def main(minutes: float, actions: int) -> int:
    """Soak a viewer, and return the exit code."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        viewer_of_a_training(Path(temporary), **{"steps-per-save": 300}) as (room, viewer),
    ):
        poses = [viewer.ask("training_camera", index=index)["camera_to_world"] for index in range(PHOTOS)]
        viewer.ask("count_clicks")
        people = [Visitor(Client(viewer.port, poses[seed]), seed, poses) for seed in range(2)]
        return _judge(viewer, room.config.with_name("annotations.json"), people, 60 * minutes, actions)


class Visitor(Restless):
    """Somebody restless who has no browser."""

    def __init__(self, client: Client, seed: int, poses: list[list]) -> None:
        """`poses` are where they look from."""
        super().__init__(client, seed, MORE)
        self.client, self._poses = client, poses

    def click(self) -> None:
        """As with a browser."""
        if self._tab.pointer is None:
            self._press(self._dice.choice(("Click", "Click", "Not this", "Box")))
        elif self._tab.pointer == "click":
            self.client.click(self._dice.random(), self._dice.random())
        else:
            self.client.draw(*(self._dice.random() for _ in range(4)))

    def drag(self) -> None:
        """The camera, to another photo."""
        self.client.look(self._dice.choice(self._poses))


@dataclass
class Soaked:
    """What was seen meanwhile."""

    people: list[Visitor]
    reader: Reader
    threads: int
    """At the start."""
    seconds: float = 0.0
    resident: list[float] = field(default_factory=list)
    """Memory of the viewer's process, in bytes, every `LOOK_SECONDS`."""
    steps: list[int] = field(default_factory=list)
    """Of the training, at the same times."""

    def fifth(self, number: int) -> float:
        """Median memory (MiB) of a fifth of the time."""
        size = max(len(self.resident) // 5, 1)
        return statistics.median(self.resident[number * size :][:size] or self.resident) / MIB


def _judge(viewer: ViewerProcess, file: Path, people: list[Visitor], seconds: float, actions: int) -> int:
    tabs = [person.client for person in people]
    soaked = Soaked(people, Reader(file), len(viewer.ask("threads")))
    soaked.reader.start()
    _act(viewer, soaked, seconds, actions)
    time.sleep(REST)  # What was asked for last is done.
    soaked.reader.enough.set()
    soaked.reader.join()
    clicks, threads = viewer.ask("clicks"), viewer.ask("threads")
    done = sum((person.done for person in people), Counter())
    late = [what for person in people for what in person.too_late]
    sent = sum(tab.sent["ScenePointerMessage"] for tab in tabs)
    print(f"{done.total()} actions in {soaked.seconds:.0f} s ({dict(done.most_common())}), {len(late)} came too late")
    print(f"{sent} clicks and rectangles sent, {clicks['taken']} taken, {len(clicks['added'])} added, ", end="")
    print(f"{clicks['refused']} refused; {len(soaked.reader.versions)} versions of the file")
    print(f"training: step {soaked.steps[0]} to {soaked.steps[-1]}; frames: {[tab.frames_seen for tab in tabs]}")
    print(f"memory (MiB): {soaked.resident[0] / MIB:.0f} at the start, in the fifths of the time ", end="")
    print(*(f"{soaked.fifth(number):.0f}" for number in range(5)), end="; ")
    print(f"at most {max(soaked.resident) / MIB:.0f}; threads: {soaked.threads}, then {len(threads)}")
    drawing = sum("SteadyRenderer" in name for name in threads)
    written = {seed.model_dump_json() for seed in soaked.reader.seeds}
    failures: dict[str, Any] = {
        "actions that came too late": late if len(late) > done.total() // 10 else [],
        "clicks that were lost": [seed for seed in clicks["added"] if seed not in written],
        "clicks without an answer": clicks["taken"] - len(clicks["added"]) - clicks["refused"],
        "damaged annotation files": soaked.reader.problems,
        "tracebacks": viewer.tracebacks(),
        "errors in pages": [error for tab in tabs for error in tab.errors],
        "memory that grows": soaked.fifth(4) > (1 + MOST_GROWTH) * soaked.fifth(1),
        "threads that stay": threads if drawing > len(tabs) or len(threads) > MOST_THREADS else [],
        "training that stands still": _standing(soaked.steps),
        "tabs without pictures": [tab for tab in viewer.ask("clients") if not viewer.ask("drawing", client=tab)],
    }
    for name, what in failures.items():
        if what:
            print(f"{name}: {what}")
    return 1 if any(failures.values()) else 0


def _act(viewer: ViewerProcess, soaked: Soaked, seconds: float, actions: int) -> None:
    """Do so many things, evenly in so much time."""
    begin, turn, looked = time.monotonic(), 0, 0.0
    while turn < actions or soaked.seconds < seconds:
        soaked.people[turn % 2].act()
        turn += 1
        if turn % EVERY == 0:
            soaked.people[turn // EVERY % 2].client.reload()
        time.sleep(max(0.0, turn * seconds / actions - (time.monotonic() - begin)))
        soaked.seconds = time.monotonic() - begin
        if soaked.seconds - looked < LOOK_SECONDS and soaked.steps:
            continue
        looked = soaked.seconds
        soaked.resident.append(viewer.ask("resident"))
        soaked.steps.append(viewer.ask("step"))
        if len(soaked.steps) % LOOKS_A_MINUTE == 0:
            memory = soaked.resident[-1] / MIB
            late = sum(len(person.too_late) for person in soaked.people)
            print(
                f"  {looked:.0f} s: {turn} actions ({late} too late), {memory:.0f} MiB, step {soaked.steps[-1]}",
                flush=True,
            )


def _standing(steps: list[int]) -> list[int]:
    """Steps at which training stood for a minute."""
    pairs = zip(steps, steps[LOOKS_A_MINUTE:], strict=False)
    return [step for step, later in pairs if later <= step]


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10, int(sys.argv[2]) if len(sys.argv) > 2 else 1_000))
