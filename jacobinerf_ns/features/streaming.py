"""Images that are read while a GPU is at work on others, and copies to and from it that nobody waits for.

Without CUDA everything here is the plain thing.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Read = TypeVar("Read")

READERS = 4
"""Threads that read images: a GPU takes a few milliseconds for one, and decoding a photo takes tens."""


def read_ahead(read: Callable[[Item], Read], chunks: Sequence[Sequence[Item]]) -> Iterator[list[Read]]:
    """Yield what was read of each chunk, in order, while threads read the next one.

    An error of `read` is raised when the turn of its chunk has come.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="images") as pool:
        waiting: list[Future[Read]] = []
        for chunk in chunks:
            waiting, ready = [pool.submit(read, item) for item in chunk], waiting
            if ready:
                yield [future.result() for future in ready]
        if waiting:
            yield [future.result() for future in waiting]


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the host where a device can fetch them by itself."""
    return values if device.type in ("cpu", "mps") else values.pin_memory()


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the host on a device; nothing waits for the copy to a GPU."""
    return pinned(values, device).to(device, non_blocking=True)


class HostCopy:
    """A tensor on its way to the host."""

    def __init__(self, values: Tensor) -> None:
        """Begin to copy, after all that its GPU was told to do before."""
        self._values, self._done = values if values.is_cuda else values.cpu(), None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    def wait(self) -> Tensor:
        """Return the tensor once it is there."""
        if self._done is not None:
            self._done.synchronize()
        return self._values
