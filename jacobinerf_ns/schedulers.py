"""Learning-rate schedule whose state is plain floats."""

from dataclasses import dataclass, field

from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class DecaySchedulerConfig(SchedulerConfig):
    """Exponential decay from the optimiser's learning rate to `lr_final`.

    nerfstudio's own yields numpy floats, which end up in checkpoints and make torch >= 2.6 refuse to load them.
    """

    _target: type = field(default_factory=lambda: DecayScheduler)
    """Class to build."""
    lr_final: float = 1e-4
    """Learning rate that is reached at `max_steps` and kept from there on."""
    max_steps: int = 200000
    """Steps of the decay."""


class DecayScheduler(Scheduler):
    """Builds torch's `LambdaLR` for a `DecaySchedulerConfig`."""

    config: DecaySchedulerConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        """Schedule of one parameter group."""
        ratio, steps = self.config.lr_final / lr_init, self.config.max_steps
        return LambdaLR(optimizer, lambda step: float(ratio ** min(step / steps, 1.0)))
