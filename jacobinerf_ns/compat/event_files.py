"""tensorboard's event files: what cannot be written is raised in the thread that writes, and again in training."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_WRITER = "_AsyncWriterThread"
"""tensorboard's thread."""


@contextmanager
def told_once() -> Iterator[None]:
    """Keep the first of the two tracebacks of a full disk from being printed: the second is an error of training."""
    before = threading.excepthook

    def told(raised: threading.ExceptHookArgs) -> None:
        if not (type(raised.thread).__name__ == _WRITER and isinstance(raised.exc_value, OSError)):
            before(raised)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = before
