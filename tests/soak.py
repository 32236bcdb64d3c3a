"""The viewer for a long while: two tabs, random actions, a training that goes on; nothing is lost, raised or piled up.

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

import browser
from browser import Browser, Tab
from panel_user import User
from restless import Reader, Restless, user_of_a_training

MORE = ("Save masks", "Cancel", "Export part")
EVERY = 150
"""Actions after which one of the tabs is loaded anew."""
LOOK_SECONDS = 5.0
LOOKS_A_MINUTE = 12
PATIENCE = 8.0
"""Seconds for one thing to do: what a person waits for a control."""
MOST_GROWTH = 0.1
"""Of the memory's median over the last fifth of the time, over that of the second fifth: until then caches fill."""
MORE_THREADS = 4
MIB = 1 << 20


def main(minutes: float, actions: int) -> int:
    """Soak a viewer, and return the exit code."""
    missing = browser.missing()
    if missing:
        print(missing)
        return 1
    with (
        tempfile.TemporaryDirectory() as temporary,
        Browser() as chromium,
        user_of_a_training(Path(temporary), chromium, **{"steps-per-save": 300}) as user,
    ):
        other = chromium.open(user.viewer.url)
        return _judge(user, [user.tab, other], 60 * minutes, actions)


@dataclass
class Soaked:
    """What was seen meanwhile."""

    people: list[Restless]
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


def _judge(user: User, tabs: list[Tab], seconds: float, actions: int) -> int:
    user.viewer.ask("count_clicks")
    people = [Restless(tab, seed, MORE) for seed, tab in enumerate(tabs)]
    soaked = Soaked(people, Reader(user.file), len(user.viewer.ask("threads")))
    soaked.reader.start()
    _act(user, tabs, soaked, seconds, actions)
    tabs[0].page.wait_for_timeout(3_000)  # What was asked for last is done.
    soaked.reader.enough.set()
    soaked.reader.join()
    clicks, threads = user.viewer.ask("clicks"), user.viewer.ask("threads")
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
    written = {seed.model_dump_json() for seed in soaked.reader.seeds}
    failures: dict[str, Any] = {
        "actions that came too late": late if len(late) > done.total() // 10 else [],
        "clicks that were lost": [seed for seed in clicks["added"] if seed not in written],
        "clicks without an answer": clicks["taken"] - len(clicks["added"]) - clicks["refused"],
        "damaged annotation files": soaked.reader.problems,
        "tracebacks": user.viewer.tracebacks(),
        "errors in pages": [error for tab in tabs for error in tab.errors],
        "memory that grows": soaked.fifth(4) > (1 + MOST_GROWTH) * soaked.fifth(1),
        "threads that stay": threads if len(threads) > soaked.threads + MORE_THREADS else [],
        "training that stands still": _standing(soaked.steps),
        "tabs without pictures": [
            tab for tab in user.viewer.ask("clients") if not user.viewer.ask("drawing", client=tab)
        ],
    }
    for name, what in failures.items():
        if what:
            print(f"{name}: {what}")
    return 1 if any(failures.values()) else 0


def _act(user: User, tabs: list[Tab], soaked: Soaked, seconds: float, actions: int) -> None:
    """Do at least so many things for so long."""
    browser.TIMEOUT = PATIENCE
    for tab in tabs:
        tab.page.set_default_timeout(1_000 * PATIENCE)
    begin, turn, looked = time.monotonic(), 0, 0.0
    while turn < actions or soaked.seconds < seconds:
        soaked.people[turn % 2].act()
        turn += 1
        if turn % EVERY == 0:
            _reload(tabs[turn // EVERY % 2])
        soaked.seconds = time.monotonic() - begin
        if soaked.seconds - looked < LOOK_SECONDS and soaked.steps:
            continue
        looked = soaked.seconds
        soaked.resident.append(user.viewer.ask("resident"))
        soaked.steps.append(user.viewer.ask("step"))
        if len(soaked.steps) % LOOKS_A_MINUTE == 0:
            memory = soaked.resident[-1] / MIB
            print(f"  {looked:.0f} s: {turn} actions, {memory:.0f} MiB, step {soaked.steps[-1]}", flush=True)


def _standing(steps: list[int]) -> list[int]:
    """Steps at which training stood for a minute."""
    pairs = zip(steps, steps[LOOKS_A_MINUTE:], strict=False)
    return [step for step, later in pairs if later <= step]


def _reload(tab: Tab) -> None:
    browser.TIMEOUT = 90.0
    try:
        tab.reload()
    finally:
        browser.TIMEOUT = PATIENCE


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10, int(sys.argv[2]) if len(sys.argv) > 2 else 1_000))
