"""What a GPU does differently while shaping, as far as a CPU can show it."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_config
from torch._subclasses.fake_tensor import FakeTensorMode

from jacobinerf_ns import shaping
from jacobinerf_ns.core import gpu
from jacobinerf_ns.model import CPU_SHAPING_RAYS, GPU_SHAPING_RAYS, JacobiNeRFModel


def doubled(values: torch.Tensor, times: int = 2) -> torch.Tensor:
    return values * times


def test_a_function_that_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def compile_badly(function, **_):
        def run(*args, **kwargs):
            calls.append(args)
            raise RuntimeError("no compiler\nfound")

        return run

    monkeypatch.setattr(gpu, "_compiles_for", lambda value: True)
    monkeypatch.setattr(torch, "compile", compile_badly)
    function = gpu.compiled_on_gpu(doubled)
    with pytest.warns(RuntimeWarning, match=r"doubled runs uncompiled, which is slower \(RuntimeError: no compiler\)"):
        assert function(torch.ones(2)).tolist() == [2, 2]
    assert function(torch.ones(2), times=3).tolist() == [3, 3]
    assert len(calls) == 1


def test_what_the_function_itself_raises_stays_and_memory_is_no_reason(monkeypatch: pytest.MonkeyPatch):
    def full(values: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(gpu, "_compiles_for", lambda value: True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        gpu.compiled_on_gpu(full)(torch.ones(2))
    broken: Any = gpu.compiled_on_gpu(doubled)
    with pytest.raises(TypeError):
        broken(torch.ones(2), None)


def test_a_cpu_compiles_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch, "compile")
    assert gpu.compiled_on_gpu(doubled)(torch.ones(2)).tolist() == [2, 2]


def test_tf32_is_for_soft_pairs_alone_and_ends_with_the_block(monkeypatch: pytest.MonkeyPatch):
    allowed, real = [], shaping.cosine_matrix

    def spied(vectors: torch.Tensor) -> torch.Tensor:
        allowed.append(torch.backends.cuda.matmul.allow_tf32)
        return real(vectors)

    monkeypatch.setattr(shaping, "cosine_matrix", spied)
    features = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for config in (
        shaping.ShapingConfig(),
        shaping.ShapingConfig(teacher_tf32=False),
        shaping.ShapingConfig(pairs="threshold"),
    ):
        shaping.shaping_terms(features, features, torch.tensor(0.8), config)
    assert allowed == [True, False, False, False, False, False]  # the teacher's matrix, then that of Jacobians
    assert not torch.backends.cuda.matmul.allow_tf32


def test_soft_shaping_on_a_gpu_asks_the_host_nothing(monkeypatch: pytest.MonkeyPatch):
    """Fake CUDA tensors have shapes and devices, and raise where devices mix or the host wants a number."""
    monkeypatch.setattr(gpu, "_compiles_for", lambda value: False)
    with FakeTensorMode():
        jacobians = torch.randn(32, 12, device="cuda")
        features, threshold = torch.randn(32, 6, device="cuda"), torch.tensor(0.8, device="cuda")
        terms, _ = shaping.shaping_terms(jacobians, features, threshold, shaping.ShapingConfig())
        # Without a device there is no stream to run a graph backward on: its one function of ours runs by itself.
        saved = SimpleNamespace(saved_tensors=(jacobians, jacobians[:, :1], torch.randn(32, 32, device="cuda")))
        gradient = shaping._Cosines.backward(saved, torch.randn(32, 32, device="cuda"))
        assert gradient.shape == jacobians.shape
        assert {value.device.type for value in (gradient, *(t for t in terms if t is not None))} == {"cuda"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_terms_on_a_gpu_are_those_of_the_cpu_and_wait_for_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "_compiles_for", lambda value: False)  # shapes are checked at run time here
    torch.manual_seed(0)
    given = torch.randn(256, 24), torch.randn(256, 16), torch.tensor(0.8)

    def terms(jacobians: torch.Tensor, features: torch.Tensor, threshold: torch.Tensor) -> list[torch.Tensor]:
        leaf = jacobians.clone().requires_grad_()
        found, _ = shaping.shaping_terms(leaf, features, threshold, shaping.ShapingConfig(teacher_tf32=False))
        (found.mig + found.norm).backward()
        assert leaf.grad is not None
        return [leaf.grad, *(value.detach() for value in found if value is not None)]

    there = [value.to("cuda") for value in given]
    terms(*there)  # libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = terms(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(found, terms(*given), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-5)


_COMPILED = """
import torch
from jacobinerf_ns import shaping
from jacobinerf_ns.core import gpu

torch.manual_seed(0)
teacher, vectors = torch.randn(40, 8), torch.randn(40, 12)

def terms():
    leaf = vectors.clone().requires_grad_()
    found, _ = shaping.shaping_terms(leaf, teacher, torch.tensor(0.8), shaping.ShapingConfig())
    (found.mig + found.norm).backward()
    return torch.cat([torch.stack([value.detach() for value in found]), leaf.grad.flatten()])

plain, real, compiled = terms(), torch.compile, []

def whole(function, **options):
    compiled.append(function.__name__)
    return real(function, backend="aot_eager", fullgraph=True, **options)

gpu._compiles_for = lambda value: True
torch.compile = whole
torch.testing.assert_close(terms(), plain, rtol=1e-5, atol=1e-7)
print(sorted(compiled))
"""


@pytest.mark.slow
def test_compiled_terms_are_one_graph_each_and_equal_the_plain_ones():
    """In a process of its own: the suite checks shapes at run time, which a compiler cannot see through."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", _COMPILED]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "['_both_ways', '_membership', '_soft_mig']"


def test_anchors_where_nobody_says_how_many(tmp_path):
    class Placed:
        config = tiny_config(tmp_path, tmp_path).pipeline.model
        device = torch.device("cpu")

    number = JacobiNeRFModel.num_anchors.fget
    assert number is not None
    assert number(Placed) == CPU_SHAPING_RAYS == 320
    Placed.device = torch.device("cuda", 0)
    assert number(Placed) == GPU_SHAPING_RAYS == 1024
    Placed.config.num_shaping_rays = 0
    assert number(Placed) == 0
