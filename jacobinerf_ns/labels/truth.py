"""Ground truth of a capture: which class or instance each pixel shows."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Int
from torch import Tensor

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.files.index_maps import read_label_map

Truth = Literal["semantics", "instances"]


def read_truth(frames: Sequence[Frame], truth: Truth = "semantics") -> list[Int[Tensor, "height width"]]:
    """Return the label maps of frames, at the frames' size.

    Raises:
        UserError: a frame has none, or a file is damaged.
    """
    paths = [frame.semantics if truth == "semantics" else frame.instances for frame in frames]
    bare = [frame.path.name for frame, path in zip(frames, paths, strict=True) if path is None]
    if bare:
        raise UserError(
            f"no ground truth for {len(bare)} of {len(frames)} images (first: {bare[0]}): evaluation needs "
            f"{truth} maps, in the capture or in a folder given as label-dir"
        )
    known = [path for path in paths if path is not None]
    return [read_label_map(path, f.size, f.original_size) for path, f in zip(known, frames, strict=True)]
