"""Two processes that train together on GPUs, by NCCL; both on one GPU where there is one."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException, spawn
from torch.nn.parallel import DistributedDataParallel

from jacobinerf_ns import shaping
from jacobinerf_ns.core import gathering

PROCESSES, ROWS = 2, 48


def loss_and_gradient(device: torch.device, rows: slice) -> dict[str, Tensor]:
    """Of shaping where the Jacobians are those of a linear layer, from some of the rows."""
    generator = torch.Generator().manual_seed(0)
    inputs, features = torch.rand(ROWS, 5, generator=generator), torch.rand(ROWS, 4, generator=generator) - 0.3
    layer = nn.Linear(5, 6, bias=False)
    nn.init.normal_(layer.weight, generator=generator)
    module: nn.Module = layer.to(device)
    if gathering.world_size() > 1:
        module = DistributedDataParallel(module)
    jacobians = gathering.gather_rows(module(inputs[rows].to(device)))
    teacher = gathering.gather_rows(features[rows].to(device))
    threshold = torch.tensor(shaping.THRESHOLD_START, device=device)
    terms, _ = shaping.shaping_terms(jacobians, teacher, threshold, shaping.ShapingConfig())
    (terms.mig + terms.norm).backward()
    assert layer.weight.grad is not None
    return {"mig": terms.mig.detach().cpu(), "gradient": layer.weight.grad.cpu()}


def process(rank: int, backend: str, folder: str) -> None:
    """What each of two processes does, on a GPU of its own where there are two."""
    count = torch.cuda.device_count()
    device = torch.device("cuda", rank % count) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    half = ROWS // PROCESSES
    torch.save(loss_and_gradient(device, slice(rank * half, (rank + 1) * half)), f"{folder}/{rank}.pt")
    assert gathering.gather_objects(rank) == [0, 1]
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_two_processes_by_nccl_have_the_loss_and_gradient_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "NCCL_MULTI_RANK_GPU_ENABLE", "1")  # two on one GPU, where NCCL knows how
    try:
        spawn(process, ("nccl", str(tmp_path)), PROCESSES)
    except ProcessRaisedException as error:
        if "Duplicate GPU" not in str(error):
            raise
        pytest.skip("this NCCL refuses two processes on one GPU, and there is no second one")
    expected = loss_and_gradient(torch.device("cpu"), slice(None))
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
