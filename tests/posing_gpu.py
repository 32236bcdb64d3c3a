"""A GPU without a GPU: CPU tensors that say they are on `cuda:0`, and refuse whatever a real GPU would refuse.

    with posing_gpu(), HostReads() as reads:
        run = open_run(config)  # as on a machine with a GPU
        ...
    assert not reads.found

Operations that mix devices raise `MixedDevices`. What it cannot show: Triton's kernels, the order of streams, and
gradients. PyTorch's engine asks the driver about the device of every gradient, also about that of fake tensors, so
`backward` does nothing here; our own backward formulas can be called as functions.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from sys import _getframe
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from jacobinerf_ns.hash_grid import grid

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
COPIES = (aten.copy_.default, aten._to_copy.default)
"""Go from any device to any other."""
LOOKUPS = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
"""A GPU's tensor takes indices from the CPU; not the other way round."""
SHAPES_FROM_VALUES = (
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
)
"""Their results are as large as the values say, which the host has to ask for."""
MEMORY = 64 << 30
"""Free bytes of the GPU that is posed as."""


class MixedDevices(RuntimeError):
    """What PyTorch says of tensors on two devices."""


class Posing(Tensor):
    """A tensor on the CPU that says it is on the GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Posing":
        posing = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
        )
        posing.inner = inner
        return posing

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _on_posing_gpu(func, args, kwargs or {})

    def tolist(self) -> list:
        """Copy to the host first: PyTorch would look for memory that is not there."""
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refuse, as of any GPU's tensor."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def backward(self, *_: Any, **__: Any) -> None:
        """Leave all gradients as they are; optimisers skip what has none."""
        assert self.requires_grad, "nothing to go back to"

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Posing({self.inner!r})"


class _PosingGpu(TorchDispatchMode):
    """Lets tensors pose that are made on the GPU out of nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _on_posing_gpu(func, args, kwargs or {})


def _on_posing_gpu(func: Any, args: tuple, kwargs: dict) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    posing = [tensor for tensor in tensors if isinstance(tensor, Posing)]
    if posing:
        plain = [tensor for tensor in tensors if not isinstance(tensor, Posing)]
        _refuse_mixed(func, args, plain, posing)
    wanted = kwargs.get("device")
    poses = bool(posing) if wanted is None else torch.device(wanted).type == "cuda"
    if func is aten.copy_.default:
        poses = isinstance(args[0], Posing)
    _refuse_generators(func, args, kwargs, poses)
    options = {**kwargs, **({"device": CPU} if wanted is not None else {}), **_unpinned(kwargs)}
    bare_args, bare_options = tree_map_only(Posing, lambda tensor: tensor.inner, (args, options))
    result = func(*bare_args, **bare_options)
    if not poses:
        return result
    own = {id(tensor.inner): tensor for tensor in posing}
    return tree_map_only(Tensor, lambda tensor: own[id(tensor)] if id(tensor) in own else Posing(tensor), result)


def _unpinned(kwargs: dict) -> dict:
    return {"pin_memory": False} if kwargs.get("pin_memory") else {}


def _refuse_mixed(func: Any, args: tuple, plain: Sequence[Tensor], posing: Sequence[Tensor]) -> None:
    if func in COPIES:
        return
    if func in LOOKUPS:
        _refuse_lookup(func, args)
    elif any(tensor.dim() > 0 for tensor in plain) or (plain and _writes(func, args)):
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (posing, plain)]
        raise MixedDevices(f"{func}: shapes {shapes[0]} are on cuda:0 and {shapes[1]} on the CPU")


def _refuse_lookup(func: Any, args: tuple) -> None:
    if not isinstance(args[0], Posing):
        raise MixedDevices(f"{func}: indices or values on cuda:0, of a tensor on the CPU")
    if func is not aten.index.Tensor and not isinstance(args[2], Posing) and args[2].dim() > 0:
        raise MixedDevices(f"{func}: a value on the CPU for a tensor on cuda:0")


def _writes(func: Any, args: tuple) -> bool:
    """Whether an operation with tensors of the GPU changes one that is on the CPU."""
    written = (place for place, one in enumerate(func._schema.arguments) if one.alias_info and one.alias_info.is_write)
    return any(place < len(args) and not isinstance(args[place], Posing) for place in written)


def _refuse_generators(func: Any, args: tuple, kwargs: dict, poses: bool) -> None:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Generator)]
    if poses and any(generator.device.type == "cpu" for generator in given):
        raise MixedDevices(f"{func}: a generator of the CPU for numbers on cuda:0")


def uncompiled(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
    """Stand in for `torch.compile`, whose kernels only a real GPU runs."""
    return function


@contextmanager
def posing_gpu() -> Iterator[None]:
    """Run the block on a machine that seems to have one GPU.

    The kernels of hash grids are not asked for: they would be Triton's.
    """
    torch._C._ensureCUDADeviceGuardSet()  # views of wrapped tensors look for one
    found: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "get_rng_state": lambda device=None: torch.random.default_generator.get_state(),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed_all": lambda seed: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: False,
    }
    with ExitStack() as stack:
        for name, stand_in in found.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(grid, "readiness", return_value=grid.Readiness(None, None)))
        stack.enter_context(mock.patch.object(torch, "compile", uncompiled))
        stack.enter_context(_new_parameters())
        stack.enter_context(_lists_by_way_of_the_cpu())
        stack.enter_context(_PosingGpu())
        yield


@contextmanager
def _new_parameters() -> Iterator[None]:
    """Let modules that move get new parameters: PyTorch would put a posing tensor's shell into the old ones."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@contextmanager
def _lists_by_way_of_the_cpu() -> Iterator[None]:
    """Let `torch.tensor(numbers, device="cuda")` make a tensor on the CPU and move it, so that the mode sees it."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


class HostRead(NamedTuple):
    """The host waits for a value of the GPU."""

    operation: str
    where: str
    """The line of Python outside of PyTorch that asked."""


class HostReads(TorchDispatchMode):
    """Counts what the host waits for inside the block: `item`, `bool`, copies to the CPU, shapes that values decide.

    For real GPUs and posing ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[HostRead] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args, kwargs):
            self.found.append(HostRead(str(func), _asker()))
        return func(*args, **kwargs)

    def by_place(self) -> Counter[HostRead]:
        """How often each line asked."""
        return Counter(self.found)


def _waits(func: Any, args: tuple, kwargs: dict) -> bool:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not any(tensor.device.type == "cuda" for tensor in tensors):
        return False
    if func in (aten._local_scalar_dense.default, aten.equal.default, *SHAPES_FROM_VALUES):
        return True
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if func is aten.copy_.default:
        return args[0].device.type == "cpu"
    if func is aten._to_copy.default:
        return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
    if func in LOOKUPS:
        # One value for all that a mask names is filled in without counting them.
        filled = func is not aten.index.Tensor and args[2].numel() == 1
        masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        return bool(masks) and not filled
    return False


def _asker() -> str:
    frame = _getframe(2)
    while frame is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
