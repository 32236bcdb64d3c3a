"""Linear layers by oneDNN against torch's own: the same numbers, wherever it is asked and wherever it is not."""

import pytest
import torch
from torch import Tensor, nn

from jacobinerf_ns.compat.nerfacto import Linear, use_products
from jacobinerf_ns.core import products

ROWS, INPUTS, OUTPUTS = 4096, 48, 64
"""Enough for oneDNN to be asked."""

needs_onednn = pytest.mark.skipif(not products._onednn_is_here(), reason="torch has no oneDNN here")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Sizes of the products that oneDNN was asked for."""
    products._onednn_is_here()
    found, real = [], products._onednn

    def spied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found.append((*x.shape, len(weight)))
        return real(x, weight, bias)

    monkeypatch.setattr(products, "_onednn", spied)
    return found


def leaves(rows: int = ROWS, inputs: int = INPUTS, outputs: int = OUTPUTS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (rows, inputs), (outputs, inputs), (outputs,)
    x, weight, bias = (torch.randn(size, generator=generator).requires_grad_() for size in sizes)
    return x, weight, bias


def close(found: Tensor, exact: Tensor) -> bool:
    """Up to rounding, which grows with what is summed up."""
    found, exact = found.detach().double(), exact.detach()
    return float((found - exact).abs().max() / exact.abs().max()) <= 2e-6


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("sizes", [(ROWS, INPUTS, OUTPUTS), (12_288, 64, 31), (12_289, 31, 64), (320, 384, 320)])
def test_values_and_gradients_are_those_of_a_linear_layer(
    sizes: tuple[int, int, int], with_bias: bool, asked: list[tuple[int, ...]]
):
    x, weight, bias = leaves(*sizes)
    bias = bias if with_bias else None
    inputs = [leaf for leaf in (x, weight, bias) if leaf is not None]
    found = products.linear(x, weight, bias)
    exact = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    weighting = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    assert close(found, exact)
    of_found = torch.autograd.grad((found * weighting).sum(), inputs)
    of_exact = torch.autograd.grad((exact * weighting).sum(), inputs)
    assert all(close(one, other) and one.shape == other.shape for one, other in zip(of_found, of_exact, strict=True))
    assert asked[0] == sizes


@needs_onednn
def test_gradients_that_nobody_asks_for_are_not_computed(asked: list[tuple[int, ...]]):
    x, weight, bias = leaves()
    products.linear(x.detach(), weight, bias).sum().backward()
    assert asked == [(ROWS, INPUTS, OUTPUTS)]
    assert x.grad is None
    assert weight.grad is not None
    with torch.no_grad():
        assert not products.linear(x, weight, bias).requires_grad


@needs_onednn
def test_what_follows_may_write_over_the_result(asked: list[tuple[int, ...]]):
    x, weight, bias = leaves()
    found = torch.relu_(products.linear(x, weight, bias))
    exact = torch.relu(nn.functional.linear(x, weight, bias))
    assert found._base is None, "writing over a view costs torch copies"
    of_found, of_exact = (torch.autograd.grad(values.sum(), weight)[0] for values in (found, exact))
    assert close(found, exact.double())
    assert close(of_found, of_exact.double())
    assert asked


@needs_onednn
def test_rows_and_gradients_may_lie_anyhow_in_memory(asked: list[tuple[int, ...]]):
    x, weight, bias = leaves()
    turned = x.detach().T.contiguous().T.requires_grad_()
    assert not turned.is_contiguous()
    weighting = torch.randn(OUTPUTS, ROWS, generator=torch.Generator().manual_seed(1)).T
    products.linear(turned, weight, bias).backward(weighting)
    exact = torch.autograd.grad(nn.functional.linear(x, weight, bias), x, weighting)[0]
    assert turned.grad is not None
    assert close(turned.grad, exact.double())
    expanded = products.linear(x, weight, bias).sum()  # its gradient is one number, seen as many
    assert close(torch.autograd.grad(expanded, bias)[0], torch.full((OUTPUTS,), float(ROWS)).double())
    assert asked


@pytest.mark.parametrize("case", ["small", "double", "three axes", "autocast", "no oneDNN"])
def test_elsewhere_torch_is_asked(case: str, asked: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch):
    x, weight, bias = leaves(100 if case == "small" else ROWS)
    if case == "double":
        x, weight, bias = x.double(), weight.double(), bias.double()
    if case == "three axes":
        x = x.view(64, -1, INPUTS)
    if case == "no oneDNN":
        monkeypatch.setattr(products, "_onednn_is_here", lambda: False)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        found, exact = products.linear(x, weight, bias), nn.functional.linear(x, weight, bias)
    assert torch.equal(found, exact)
    assert found.dtype == exact.dtype
    assert not asked


def test_a_torch_without_onednn_is_no_error(monkeypatch: pytest.MonkeyPatch):
    def missing(*_: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(products, "_onednn", missing)
    products._onednn_is_here.cache_clear()
    try:
        x, weight, bias = leaves()
        assert torch.equal(products.linear(x, weight, bias), nn.functional.linear(x, weight, bias))
        assert torch.equal(products.product(x, weight), x @ weight.T)
    finally:
        products._onednn_is_here.cache_clear()


def test_layers_change_their_class_and_stay_themselves():
    class Theirs(nn.Linear):
        pass

    layer, other = nn.Linear(INPUTS, OUTPUTS), Theirs(2, 2)
    tree = nn.Sequential(layer, nn.ReLU(), nn.ModuleDict({"other": other, "same": layer}))
    before, parameters = tree.state_dict(), list(tree.parameters())
    use_products(tree)
    assert tree[0] is layer
    assert type(layer) is Linear
    assert type(other) is Theirs
    assert list(tree.state_dict()) == list(before)
    assert all(one is other for one, other in zip(tree.parameters(), parameters, strict=True))
    x = torch.randn(ROWS, INPUTS)
    assert close(layer(x), nn.functional.linear(x, layer.weight, layer.bias).double())
