"""Training in several processes (`--machine.num-devices N`) under nerfstudio's own launcher, also without a GPU.

The launcher stays nerfstudio's: free port, one process per device, Ctrl-C. Two things are put right. It chooses gloo
for the CPU, but its worker insists on as many GPUs as there are processes: on the CPU the worker below is started
instead. And bad input, which ends rank 0 with one line and exit code 2, ends the command in the same way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, cast
from unittest import mock

import torch
import torch.distributed as dist
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils import comms
from torch.multiprocessing import ProcessExitedException

from jacobinerf_ns.core import gathering
from jacobinerf_ns.errors import EXIT_CODE


def prepare_launcher(device_type: str) -> None:
    """Put both right in nerfstudio's training script, in this process; call it before the script launches others."""
    from nerfstudio.scripts import train  # not above: it imports all methods, and ours while they import this

    if device_type == "cpu":
        train._distributed_worker = _worker
    if not isinstance(train.launch, partial):
        train.launch = partial(_launch, train.launch)


def _launch(nerfstudios: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    try:
        nerfstudios(*args, **kwargs)
    except ProcessExitedException as error:
        if error.exit_code != EXIT_CODE:
            raise
        raise SystemExit(EXIT_CODE) from None


def _worker(
    local_rank: int,
    main_func: Callable[[int, int, TrainerConfig, int], None],
    world_size: int,
    num_devices_per_machine: int,
    machine_rank: int,
    dist_url: str,
    config: TrainerConfig,
    timeout: timedelta,
    device_type: str,
) -> None:
    """Do what a started process does; called with the arguments of nerfstudio's own worker."""
    assert device_type == "cpu", "nerfstudio's own worker is for GPUs"
    torch.set_num_threads(max(1, torch.get_num_threads() // num_devices_per_machine))
    rank = machine_rank * num_devices_per_machine + local_rank
    dist.init_process_group("gloo", init_method=dist_url, world_size=world_size, rank=rank, timeout=timeout)
    for first in range(0, world_size, num_devices_per_machine):
        group = dist.new_group(list(range(first, first + num_devices_per_machine)))
        if first <= rank < first + num_devices_per_machine:
            comms.LOCAL_PROCESS_GROUP = cast(Any, group)
    main_func(local_rank, world_size, config, rank)
    comms.synchronize()
    dist.destroy_process_group()


@contextmanager
def only_the_first_saves(outputs: DataparserOutputs) -> Iterator[None]:
    """Let one process write the dataparser's transform; nerfstudio's trainer lets each of them do it."""
    with mock.patch.object(outputs, "save_dataparser_transform") if gathering.rank() > 0 else nullcontext():
        yield
