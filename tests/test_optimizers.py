"""Fused Adam against plain Adam, and their states in each other's place."""

import copy
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler

from jacobinerf_ns.optimizers import FusedAdam, FusedAdamOptimizerConfig

PLAIN = AdamOptimizerConfig(lr=1e-2, eps=1e-15)
FUSED = FusedAdamOptimizerConfig(lr=1e-2, eps=1e-15)
SIZE = 5000
"""Numbers per parameter: enough for vectorised loops and what is left over after them."""

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = [pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU]), "cpu"]


def parameter(device: str = "cpu") -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(SIZE, generator=torch.Generator().manual_seed(0)).to(device))


def gradient(step: int, device: str = "cpu") -> Tensor:
    """Sparse like those of a hash table, over many orders of magnitude."""
    generator = torch.Generator().manual_seed(step + 1)
    values = torch.randn(SIZE, generator=generator) * 10.0 ** torch.randint(-9, 1, (SIZE,), generator=generator)
    return (values * (torch.rand(SIZE, generator=generator) < 0.3)).to(device)


def take_steps(value: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        value.grad = gradient(step, str(value.device))
        optimizer.step()


def trained(
    config: AdamOptimizerConfig, steps: int, device: str = "cpu"
) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    value = parameter(device)
    optimizer = config.setup([value])
    take_steps(value, optimizer, range(steps))
    return value, optimizer


@pytest.mark.parametrize("device", DEVICES)
def test_fused_steps_equal_plain_ones(device: str):
    plain, _ = trained(PLAIN, 30, device)
    fused, optimizer = trained(FUSED, 30, device)
    assert optimizer.param_groups[0]["fused"]
    assert float((plain - fused).detach().abs().max()) <= 1e-6
    again, _ = trained(FUSED, 30, device)
    assert torch.equal(fused, again)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("first", [PLAIN, FUSED])
@pytest.mark.parametrize("second", [PLAIN, FUSED])
def test_either_goes_on_from_the_state_of_the_other(
    first: AdamOptimizerConfig, second: AdamOptimizerConfig, device: str
):
    straight, _ = trained(first, 20, device)
    value, optimizer = trained(first, 12, device)
    saved = copy.deepcopy(optimizer.state_dict())
    other = torch.nn.Parameter(value.detach().clone())
    resumed = second.setup([other])
    resumed.load_state_dict(saved)
    if isinstance(resumed, FusedAdam):
        assert resumed.param_groups[0]["fused"]
    take_steps(other, resumed, range(12, 20))
    assert float((straight - other).detach().abs().max()) <= 1e-6
    if type(first) is type(second):
        assert torch.equal(straight, other)


def test_without_a_fused_kernel_it_is_plain_adam(monkeypatch: pytest.MonkeyPatch):
    saved = copy.deepcopy(trained(FUSED, 3)[1].state_dict())
    build = torch.optim.Adam.__init__

    def old_torch(self: torch.optim.Adam, params: list, fused: bool = False, **options: Any) -> None:
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")
        build(self, params, fused=fused, **options)

    monkeypatch.setattr(torch.optim.Adam, "__init__", old_torch)
    value, optimizer = trained(FUSED, 30)
    assert torch.equal(value, trained(PLAIN, 30)[0])
    optimizer.load_state_dict(saved)
    assert not optimizer.param_groups[0]["fused"]


def test_a_group_without_gradients_stays_as_it_is():
    config = {name: {"optimizer": FUSED, "scheduler": None} for name in ("fields", "proposals")}
    values = {name: parameter() for name in config}
    optimizers = Optimizers(config, {name: [value] for name, value in values.items()})
    scaler = GradScaler(enabled=False)
    after_two = torch.empty(0)
    for step in range(4):
        optimizers.zero_grad_some(list(config))
        values["fields"].grad = gradient(step)
        if step < 2:
            values["proposals"].grad = gradient(step)
        optimizers.optimizer_scaler_step_some(scaler, list(config))
        if step == 1:
            after_two = values["proposals"].detach().clone()
    assert torch.equal(values["proposals"], after_two)
    assert not torch.equal(values["fields"], after_two)
    assert torch.equal(after_two, trained(FUSED, 2)[0])


@pytest.mark.parametrize("device", DEVICES)
def test_scaled_gradients_are_taken_back_and_infinite_ones_left_out(device: str):
    results = []
    for config in (PLAIN, FUSED):
        value = parameter(device)
        optimizers = Optimizers({"fields": {"optimizer": config, "scheduler": None}}, {"fields": [value]})
        scaler: Any = torch.amp.GradScaler(device, init_scale=2.0**10)
        for step in range(8):
            optimizers.zero_grad_all()
            scaler.scale((value * gradient(step, device)).sum() * (float("inf") if step == 3 else 1.0)).backward()
            optimizers.optimizer_scaler_step_all(scaler)
            scaler.update()
        results.append(
            (value.detach(), float(optimizers.optimizers["fields"].state[value]["step"]), scaler.get_scale())
        )
    (plain, *counts), (fused, *fused_counts) = results
    assert float((plain - fused).abs().max()) <= 1e-6
    assert counts == fused_counts == [7.0, 2.0**9]


def test_the_config_survives_config_yml():
    config = FusedAdamOptimizerConfig(lr=3e-3, eps=1e-15)
    found = yaml.load(yaml.dump(config), Loader=yaml.Loader)
    assert found == config
    assert isinstance(found.setup([parameter()]), FusedAdam)
