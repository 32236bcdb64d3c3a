"""Which code runs hash grids and networks: tiny-cuda-nn, our kernels in torch's layout, or nerfstudio's torch code.

Checkpoints know two layouts of parameters: tiny-cuda-nn's, and torch's, which `jit` and `torch` share.
"""

from typing import Literal

import torch
from nerfstudio.utils.external import TCNN_EXISTS
from nerfstudio.utils.rich_utils import CONSOLE

Implementation = Literal["auto", "jit", "torch", "tcnn"]
Chosen = Literal["jit", "torch", "tcnn"]


def chosen_implementation(wanted: Implementation, device: str | torch.device) -> Chosen:
    """Return what runs on a device: `auto` is tiny-cuda-nn on a GPU that has it, else `jit`, its stand-in."""
    if wanted in ("jit", "torch"):
        return wanted
    if TCNN_EXISTS and (wanted == "tcnn" or torch.device(device).type not in ("cpu", "mps")):
        return "tcnn"
    if wanted == "tcnn":
        CONSOLE.print("tiny-cuda-nn is not installed: hash grids run by our own kernels (implementation jit).")
    return "jit"
