"""Features of which there are only a few: each pixel has the numbers of its features in one table, and their mean."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


class PaletteStore:
    """Features of a list of images, by numbers: nothing is mixed between pixels, so that outlines stay sharp."""

    def __init__(
        self,
        numbers: Sequence[Int[Tensor, "rows cols each"]],
        table: Float[Tensor, "entries dim"],
        sizes: Sequence[tuple[int, int]],
    ) -> None:
        """Take the parts.

        Args:
            numbers: of each image, a grid that tiles it, of as many rows of the table in each cell as there are
                features to be averaged; -1: no feature, which is zero.
            table: the features.
            sizes: (height, width) in pixels of the images to be indexed.
        """
        self.sizes = list(sizes)
        self.table = torch.cat([table.float(), table.new_zeros(1, table.shape[1]).float()])
        self.numbers = [grid.long() for grid in numbers]
        self._flat = torch.cat([grid.flatten(0, 1) for grid in self.numbers])
        self._shape = torch.tensor([grid.shape[:2] for grid in self.numbers])
        counts = self._shape.prod(dim=1)
        self._first = counts.cumsum(0) - counts
        self._size = torch.tensor(self.sizes)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def dim(self) -> int:
        """Size of a feature."""
        return self.table.shape[1]

    @property
    def value_bytes(self) -> int:
        """Memory of table and numbers."""
        return self.table.nbytes + self._flat.nbytes

    def resident(self, device: torch.device | str) -> "PaletteStore":
        """Return the same features in the memory of a device."""
        moved = PaletteStore(self.numbers, self.table[:-1], self.sizes)
        for name in ("table", "_flat", "_first", "_shape", "_size"):
            setattr(moved, name, getattr(moved, name).to(device))
        return moved

    def sample(self, indices: Int[Tensor, "rays 3"]) -> Float[Tensor, "rays dim"]:
        """Return the features at pixels (image, row, col), float32, where the store is: those of the nearest cell."""
        indices = indices.to(self._flat.device, non_blocking=True)
        images, pixels = indices[:, 0], indices[:, 1:]
        shape = self._shape[images]
        # A pixel's centre, in cells; whole numbers alone, so that every device finds the same cell.
        cells = (2 * pixels + 1) * shape // (2 * self._size[images])
        return self.table[self._flat[self._first[images] + cells[:, 0] * shape[:, 1] + cells[:, 1]]].mean(dim=1)
