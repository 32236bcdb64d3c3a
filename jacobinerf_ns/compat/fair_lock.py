"""A lock that is given to those who wait for it in the order in which they came."""

from collections import deque
from threading import Lock
from types import TracebackType


class FairLock:
    """Takes the place of nerfstudio's lock between training and the viewer's tabs.

    `threading.Lock` may be taken again at once by the thread that has just released it: where two people look around,
    training waited for minutes. Here every tab gets one frame, and training one step, in turn.
    """

    def __init__(self) -> None:
        self._guard, self._held = Lock(), False
        self._gates: deque[Lock] = deque()
        """One for each thread that waits, locked until it is that thread's turn."""

    def acquire(self) -> None:
        """Wait for one's turn, and take the lock."""
        with self._guard:
            if not self._held:
                self._held = True
                return
            gate = Lock()
            gate.acquire()
            self._gates.append(gate)
        try:
            gate.acquire()
        except BaseException:  # Ctrl-C while waiting
            self._leave(gate)
            raise

    def release(self) -> None:
        """Hand the lock to the thread that has waited longest."""
        with self._guard:
            if self._gates:
                self._gates.popleft().release()
            else:
                self._held = False

    def _leave(self, gate: Lock) -> None:
        with self._guard:
            if gate in self._gates:
                self._gates.remove(gate)
                return
        self.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()
