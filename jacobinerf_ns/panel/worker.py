"""One thread that does what the panel is asked for, in order: callbacks of a viewer come from many, and must return."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

IDLE_SECONDS = 0.5
"""How often the worker looks around when nothing is asked of it."""


class _Task(NamedTuple):
    due: float
    """Earliest start, by the monotonic clock."""
    run: Callable[[], object]


class Worker:
    """Runs tasks one after the other; an error ends its task, never the worker."""

    def __init__(self, failed: Callable[[Exception], None], idle: Callable[[], None]) -> None:
        """`failed` is told of errors; `idle` is called every `IDLE_SECONDS` or so, however much there is to do."""
        self._failed, self._idle = failed, idle
        self._waiting: dict[Hashable, _Task] = {}
        self._wake = threading.Condition()
        self._running, self._looks = False, 0.0

    def start(self) -> None:
        """Start the thread; it ends with the program."""
        self._running = True
        threading.Thread(target=self._loop, name="jacobinerf panel", daemon=True).start()

    def stop(self) -> None:
        """End the thread after its present task."""
        self._running = False

    def post(self, run: Callable[[], object], key: Hashable = None, delay: float = 0.0) -> None:
        """Add a task, and returns at once.

        Args:
            run: the task.
            key: of tasks with the same key that wait, only the newest is run: a slider's last value counts.
            delay: seconds to wait for a newer one; a task without delay makes those before it due.
        """
        with self._wake:
            key = object() if key is None else key
            due = time.monotonic() + delay
            if delay == 0.0:
                self._waiting = {other: _Task(min(task.due, due), task.run) for other, task in self._waiting.items()}
            self._waiting.pop(key, None)
            self._waiting[key] = _Task(due, run)
            self._wake.notify()

    def waits(self, key: Hashable) -> bool:
        """Whether a task of that key has not begun yet."""
        with self._wake:
            return key in self._waiting

    def _loop(self) -> None:
        while self._running:
            task = self._next()
            try:
                (self._idle if task is None else task.run)()
            except Exception as error:
                self._failed(error)

    def _next(self) -> _Task | None:
        """Return the first task that is due; None when it is time to look around."""
        with self._wake:
            while True:
                now = time.monotonic()
                if now >= self._looks:
                    # Before any task: frames that come fast, each with its report, would leave no time for it.
                    self._looks = now + IDLE_SECONDS
                    return None
                ready = next((key for key, task in self._waiting.items() if task.due <= now), None)
                if ready is not None:
                    return self._waiting.pop(ready)
                soonest = min((task.due for task in self._waiting.values()), default=self._looks)
                self._wake.wait(max(0.0, min(soonest, self._looks) - now))
