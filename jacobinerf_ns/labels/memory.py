"""How much of a device's memory views may take."""

import torch

CHUNK_SHARE = 2
"""A chunk of rays takes at most one part in so many of what is free: labels and edits need room beside the field."""
FEWEST_RAYS = 256
"""Rays of the smallest chunk; with less memory than these take, nothing runs."""


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a GPU that this process can still have, its own reserve included; None where nobody counts them."""
    if device.type in ("cpu", "mps"):
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class ChunkSize:
    """Rays of one chunk: as many as are configured, and no more than a GPU has room for.

    It shrinks when memory gets scarce and never grows again: views are kept by chunks, and another size would render
    them anew.
    """

    def __init__(self) -> None:
        self._fits: int | None = None

    def rays(self, configured: int, bytes_per_ray: int, device: torch.device) -> int:
        """Return how many rays of that size are traced at a time on a device."""
        free = free_bytes(device)
        if free is None:
            return configured
        room = max(FEWEST_RAYS, free // CHUNK_SHARE // bytes_per_ray)
        if self._fits is None or room < min(self._fits, configured):
            self._fits = 1 << (room.bit_length() - 1)
        return min(configured, self._fits)
