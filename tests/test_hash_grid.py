"""Our hash grid against nerfstudio's: the same numbers, checkpoints and random draws, on any number of threads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from nerfstudio.field_components.encodings import HashEncoding, SHEncoding
from nerfstudio.field_components.mlp import MLPWithHashEncoding
from torch import Tensor, nn

from jacobinerf_ns.hash_grid import encoding as encodings
from jacobinerf_ns.hash_grid import grid as hash_grid
from jacobinerf_ns.hash_grid.encoding import JitHashEncoding, use_jit
from jacobinerf_ns.hash_grid.grid import encode, encode_reference

CONFIGURATIONS = [(1, 10, 2), (5, 17, 2), (8, 15, 2), (16, 19, 2), (8, 12, 1), (4, 11, 4)]
"""Levels, log2 of the entries of a level, features."""
CLOSE = 1e-5
"""Largest difference, relative to the largest number."""


class Result(NamedTuple):
    values: Tensor
    of_table: Tensor
    of_positions: Tensor


def theirs(levels: int = 8, log2_size: int = 15, features: int = 2) -> HashEncoding:
    """nerfstudio's encoding with a table of ordinary numbers: its own initialisation is tiny."""
    encoding = HashEncoding(
        num_levels=levels,
        min_res=16,
        max_res=512,
        log2_hashmap_size=log2_size,
        features_per_level=features,
        implementation="torch",
    )
    nn.init.normal_(encoding.hash_table)
    return encoding


def ours(encoding: HashEncoding) -> JitHashEncoding:
    copy = deepcopy(encoding)
    assert use_jit(copy) == 1
    assert isinstance(copy, JitHashEncoding)
    return copy


def points(count: int = 3000) -> Tensor:
    """Inside the unit cube, far outside, negative, on grid points, and on the cube's corners."""
    anywhere = torch.randn(count // 3, 3) * 2
    on_grid = torch.randint(-32, 48, (count // 3, 3)) / 16
    corners = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.5]])
    return torch.cat([torch.rand(count // 3, 3), anywhere, on_grid, corners])


def run(encoding: nn.Module, positions: Tensor, seed: int = 1) -> Result:
    """Values, and gradients of a random weighting of them."""
    positions = positions.detach().clone().requires_grad_()
    encoding.zero_grad()
    values = encoding(positions)
    weighting = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed)).to(values)
    (values * weighting).sum().backward()
    table = encoding.hash_table
    assert isinstance(table, Tensor)
    assert table.grad is not None
    assert positions.grad is not None
    return Result(values.detach(), table.grad.clone(), positions.grad)


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["torch's team", "own threads"])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who calls the kernels beside the calling thread, where there is more than one."""
    from jacobinerf_ns.hash_grid import numba_kernels

    if request.param == "own threads":
        monkeypatch.setattr(numba_kernels, "_torchs_team", lambda: None)
    elif numba_kernels._torchs_team() is None:
        pytest.skip("torch's OpenMP library has no GOMP_parallel here")


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if numba were not installed, and nothing had been asked for yet."""
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "jacobinerf_ns.hash_grid.numba_kernels", raising=False)
    hash_grid.readiness.cache_clear()
    encodings._say_once.cache_clear()
    yield
    hash_grid.readiness.cache_clear()
    encodings._say_once.cache_clear()


@pytest.mark.parametrize(("levels", "log2_size", "features"), CONFIGURATIONS)
def test_values_and_gradients_are_nerfstudios(levels: int, log2_size: int, features: int) -> None:
    encoding = theirs(levels, log2_size, features)
    positions = points()
    expected, found = run(encoding, positions), run(ours(encoding), positions)
    assert torch.equal(found.values, expected.values)
    assert difference(found.of_table, expected.of_table) <= CLOSE
    assert difference(found.of_positions, expected.of_positions) <= CLOSE


@pytest.mark.parametrize(("levels", "log2_size", "features"), CONFIGURATIONS)
def test_the_reference_is_nerfstudios(levels: int, log2_size: int, features: int) -> None:
    encoding = theirs(levels, log2_size, features)
    positions = points(300).requires_grad_()
    expected = run(encoding, positions)
    table = encoding.hash_table.detach().requires_grad_()
    values = encode_reference(positions, table, encoding.scalings.float())
    weighting = torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
    of_positions, of_table = torch.autograd.grad((values * weighting).sum(), [positions, table])
    assert torch.equal(values, expected.values)
    assert difference(of_table, expected.of_table) <= CLOSE
    assert difference(of_positions, expected.of_positions) <= CLOSE


def test_the_reference_has_the_gradients_of_its_values() -> None:
    positions = torch.rand(6, 3, dtype=torch.float64, requires_grad=True)
    table = torch.randn(3 * 16, 2, dtype=torch.float64, requires_grad=True)
    scalings = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p, t: encode_reference(p, t, scalings), (positions, table))
    assert encode(positions, table, scalings).dtype == torch.float64


@pytest.mark.parametrize("shape", [(0,), (2, 0), (1,), (7, 5), (2, 3, 4)])
def test_any_batch(shape: tuple[int, ...]) -> None:
    encoding = theirs()
    positions = torch.rand(*shape, 3)
    found = ours(encoding)(positions)
    assert found.shape == (*shape, 16)
    assert torch.equal(found, encoding(positions))


def test_an_empty_batch_has_gradients() -> None:
    positions = torch.rand(0, 3, requires_grad=True)
    encoding = ours(theirs())
    encoding(positions).sum().backward()
    assert encoding.hash_table.grad is not None
    assert not encoding.hash_table.grad.any()
    assert positions.grad is not None


def test_positions_and_gradients_may_lie_anyhow_in_memory() -> None:
    encoding = theirs()
    positions = torch.rand(3, 500).T
    assert not positions.is_contiguous()
    weighting = torch.randn(16, 500).T
    tables = []
    for each in (encoding, ours(encoding)):
        each(positions).backward(weighting)
        tables.append(each.hash_table.grad)
    assert difference(tables[1], tables[0]) <= CLOSE


def test_float16_table() -> None:
    encoding, positions = theirs().half(), points()
    expected, found = run(encoding, positions), run(ours(encoding), positions)
    assert found.values.dtype == torch.float32
    assert found.of_table.dtype == torch.float16
    assert torch.equal(found.values, expected.values)
    assert difference(found.of_positions, expected.of_positions) <= CLOSE
    in_single = run(deepcopy(encoding).float(), positions)
    assert difference(found.of_table.float(), in_single.of_table) <= 2**-11, "more than one rounding to float16"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_under_autocast(dtype: torch.dtype) -> None:
    encoding = ours(theirs())
    positions = torch.rand(100, 3)
    expected = run(encoding, positions)
    with torch.autocast("cpu", dtype):
        found = run(encoding, positions)
        assert encoding(positions.to(dtype)).dtype == torch.float32
    assert found.values.dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_not_a_number_stays_with_its_point() -> None:
    positions = torch.rand(100, 3)
    positions[7, 1] = torch.nan
    values = ours(theirs())(positions)
    assert values[7].isnan().all()
    assert values[torch.arange(100) != 7].isfinite().all()


def test_a_table_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match=r"96 table entries are not 2 levels"):
        encode(torch.rand(5, 3), torch.rand(96, 2), torch.tensor([2.0, 4.0]))


def test_the_same_to_the_last_bit_on_any_number_of_threads(threads: None, workers: None) -> None:
    encoding, positions = ours(theirs()), points(12_000)
    results = []
    for count in (1, 2, 2, 4):
        torch.set_num_threads(count)
        results.append(run(encoding, positions))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_work_is_shared_out_over_torchs_team(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from jacobinerf_ns.hash_grid import numba_kernels

    team = numba_kernels._torchs_team()
    if team is None:
        pytest.skip("torch's OpenMP library has no GOMP_parallel here")
    asked = []

    def spied(address: int, addresses: int, workers: int, flags: int) -> None:
        asked.append(workers)
        team(address, addresses, workers, flags)

    monkeypatch.setattr(numba_kernels, "_torchs_team", lambda: spied)
    encoding = ours(theirs())
    for count, points_asked in ((1, 12_000), (3, 12_000), (3, 100)):
        torch.set_num_threads(count)
        encoding(torch.rand(points_asked, 3))
    assert asked == [3], "one thread, or one part, needs no team"


def test_without_a_team_work_is_shared_out_over_own_threads(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from jacobinerf_ns.hash_grid import numba_kernels

    asked = []
    pool = numba_kernels._threads
    monkeypatch.setattr(numba_kernels, "_torchs_team", lambda: None)
    monkeypatch.setattr(numba_kernels, "_threads", lambda process: asked.append(process) or pool(process))
    encoding, positions = ours(theirs()), torch.rand(12_000, 3)
    for count in (1, 3):
        torch.set_num_threads(count)
        asked.clear()
        encoding(positions)
        assert len(asked) == count - 1


def test_calls_from_several_threads_at_once(threads: None, workers: None) -> None:
    torch.set_num_threads(2)
    encoding = ours(theirs())
    batches = [torch.rand(9_000, 3) for _ in range(4)]

    def work(positions: Tensor) -> list[Result]:
        return [run(deepcopy(encoding), positions) for _ in range(4)]

    expected = [run(deepcopy(encoding), positions) for positions in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, batches))
    for one, repeated in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for each in repeated for a, b in zip(one, each, strict=True))


FORKED = """
import os, torch
from jacobinerf_ns.hash_grid.grid import encode
torch.set_num_threads(2)
inputs = torch.rand(9_000, 3), torch.rand(8 * 1024, 2), torch.arange(1.0, 9.0)
before = encode(*inputs)
child = os.fork()
if not child:
    found = encode(*inputs)  # compared by numpy: what torch itself would share out waits for threads that are not here
    os._exit(0 if (found.numpy() == before.numpy()).all() else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_can_go_on() -> None:
    assert python(FORKED).stdout.strip() == "0"


def test_gradients_that_nobody_asks_for_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = hash_grid.readiness("cpu", 2).kernels
    calls = []
    for name in ("position_gradient", "table_gradient"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *inputs, name=name, kernel=kernel: calls.append(name) or kernel(*inputs)
        )
    encoding = ours(theirs())
    encoding(torch.rand(10, 3)).sum().backward()
    encoding.position_gradients = False
    encoding(torch.rand(10, 3, requires_grad=True)).sum().backward()
    assert calls == ["table_gradient"] * 2
    encoding.position_gradients = True
    encoding.hash_table.requires_grad_(False)
    encoding(torch.rand(10, 3, requires_grad=True)).sum().backward()
    assert calls == ["table_gradient"] * 2 + ["position_gradient"]


def test_construction_draws_what_nerfstudios_draws() -> None:
    torch.manual_seed(3)
    expected, after = HashEncoding(num_levels=4, log2_hashmap_size=10, implementation="torch"), torch.rand(1)
    torch.manual_seed(3)
    found = JitHashEncoding(num_levels=4, log2_hashmap_size=10)
    assert torch.equal(found.hash_table, expected.hash_table)
    assert torch.equal(torch.rand(1), after)


def test_checkpoints_load_both_ways() -> None:
    def model() -> nn.Sequential:
        field = MLPWithHashEncoding(num_levels=4, log2_hashmap_size=10, out_dim=5, hash_init_scale=1.0)
        return nn.Sequential(field, nn.ModuleDict({"proposal": theirs(5, 10)}))

    old, new, positions = model(), model(), torch.rand(50, 3)
    assert use_jit(new) == 2
    new.load_state_dict(old.state_dict())
    assert list(new.state_dict()) == list(old.state_dict())
    assert torch.equal(new[0](positions), old[0](positions))
    nn.init.normal_(next(iter(new.parameters())))
    old.load_state_dict(new.state_dict())
    assert torch.equal(new[0](positions), old[0](positions))


def test_use_jit_keeps_objects_and_finds_each_once() -> None:
    encoding = theirs()
    tree = nn.ModuleDict({"a": encoding, "same": encoding, "b": nn.Sequential(theirs(), nn.Linear(16, 2))})
    tree["directions"] = SHEncoding(levels=2, implementation="torch")
    parameters = list(tree.parameters())
    assert use_jit(tree) == 2
    assert use_jit(tree) == 0
    assert tree["a"] is tree["same"] is encoding
    assert all(one is other for one, other in zip(tree.parameters(), parameters, strict=True))
    assert type(tree["directions"]) is SHEncoding


def test_without_numba_plain_torch_does_it_and_says_so_once(
    without_numba: None, capsys: pytest.CaptureFixture[str]
) -> None:
    encoding, positions = theirs(), points(300)
    expected = run(encoding, positions)
    slow = ours(encoding)
    found = [run(slow, positions) for _ in range(2)]
    printed = capsys.readouterr().out
    assert printed.count("plain torch") == printed.count("\n") == 1
    assert "numba" in printed
    assert all(torch.equal(result.values, expected.values) for result in found)
    assert difference(found[0].of_table, expected.of_table) <= CLOSE


COMPILING = """
import torch
from jacobinerf_ns.hash_grid import encoding as encodings
encoding = encodings.JitHashEncoding(num_levels=2, log2_hashmap_size=4)
encodings.prepare(torch.nn.Sequential(encoding, encoding), "cpu")
encoding(torch.rand(5, 3))
"""


@pytest.mark.slow
def test_compiles_once_and_says_so(tmp_path: Path) -> None:
    first, second = (python(COMPILING, NUMBA_CACHE_DIR=str(tmp_path / "cache")).stdout for _ in range(2))
    assert first.count("Compiled the hash grid's kernels") == first.count("\n") == 1
    assert second == ""


IMPORTING = """
import sys
import jacobinerf_ns.config, jacobinerf_ns.hash_grid.encoding
print([name for name in sys.modules if name == "numba" or name.endswith("_kernels") and "hash_grid" in name])
"""


def test_importing_the_methods_imports_no_kernels() -> None:
    assert python(IMPORTING).stdout.strip().endswith("[]")


INTERPRETING = """
import torch
from jacobinerf_ns.hash_grid import grid as hash_grid
from jacobinerf_ns.hash_grid import triton_kernels as kernels
torch.manual_seed(0)
for levels, size, features, half in ((1, 2**10, 1, False), (5, 2**12, 2, False), (3, 2**11, 4, True)):
    dtype = torch.float16 if half else torch.float32
    positions = torch.cat([torch.rand(100, 3), torch.randn(157, 3) * 2, torch.randint(-32, 48, (50, 3)) / 16])
    positions.requires_grad_()
    table = torch.randn(levels * size, features).to(dtype).float().requires_grad_()
    scalings = torch.floor(16 * 1.7 ** torch.arange(levels))
    values = hash_grid.encode_reference(positions, table, scalings)
    weighting = torch.randn_like(values)
    expected = values, *torch.autograd.grad(values, [table, positions], weighting)
    inputs, stored = positions.detach(), table.detach().to(dtype)
    found = (
        kernels.forward(inputs, stored, scalings),
        kernels.table_gradient(inputs, scalings, weighting, len(table)),
        kernels.position_gradient(inputs, stored, scalings, weighting),
    )
    for one, other in zip(found, expected):
        assert one.dtype == torch.float32 and one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max(), (levels, size, features, dtype)
nothing = torch.empty(0, 3)
assert kernels.forward(nothing, stored, scalings).shape == (0, 12)
assert not kernels.table_gradient(nothing, scalings, torch.empty(0, 12), len(table)).any()
assert kernels.position_gradient(nothing, stored, scalings, torch.empty(0, 12)).shape == (0, 3)
print("equal")
"""


def test_triton_kernels_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    assert python(INTERPRETING, TRITON_INTERPRET="1").stdout.strip() == "equal"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("levels", "log2_size", "features"), CONFIGURATIONS)
def test_on_a_gpu(levels: int, log2_size: int, features: int) -> None:
    device = torch.device("cuda")
    assert hash_grid.readiness(device.type, features).kernels is not None
    encoding, positions = theirs(levels, log2_size, features).to(device), points().to(device)
    expected, found = run(encoding, positions), run(ours(encoding), positions)
    for one, other in zip(found, expected, strict=True):
        assert difference(one, other) <= CLOSE


def python(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a fresh interpreter; its complaints become ours."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **variables}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done
