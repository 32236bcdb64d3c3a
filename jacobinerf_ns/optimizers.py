"""Adam in one pass over memory.

Gradients of hash tables are dense, so Adam reads and writes millions of numbers in every step: torch's fused kernel
goes over them once, its plain one ten times. Fused, it also undoes the scale of gradients without asking the GPU.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from torch.nn import Parameter


class FusedAdam(torch.optim.Adam):
    """torch's Adam, fused where torch has that for the parameters' device; states of either kind can be loaded."""

    def __init__(self, params: Iterable[Parameter], **options: Any) -> None:
        params = list(params)
        try:
            super().__init__(params, fused=True, **options)
        except RuntimeError:  # older versions of torch, and devices without such a kernel
            super().__init__(params, fused=False, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state, with our own kernel whichever the state was made with.

        Whether to fuse is saved like a learning rate: a run from before this class would go on unfused, and one that
        was moved from a GPU to a machine without such a kernel would not go on at all.
        """
        pairs = zip(state_dict["param_groups"], self.param_groups, strict=True)
        groups = [{**saved, "fused": own["fused"], "foreach": own["foreach"]} for saved, own in pairs]
        super().load_state_dict({**state_dict, "param_groups": groups})


@dataclass
class FusedAdamOptimizerConfig(AdamOptimizerConfig):
    """nerfstudio's Adam options, for an Adam that goes over memory once."""

    _target: type = FusedAdam
    """Class to build."""
