"""What a GPU may do faster: products in TF32, and functions compiled to few kernels. On a CPU nothing changes."""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Allow GPUs inside the block to round factors of float32 products to 11 binary digits."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32
    settings.allow_tf32 = before or allowed
    try:
        yield
    finally:
        settings.allow_tf32 = before


def compiled_on_gpu(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function of tensors for the shapes that it meets on a GPU; where that fails it runs as it is.

    Its first argument says where it runs, and it changes none of them. `TORCH_COMPILE_DISABLE=1` switches this off.
    """
    chosen: list[Callable[P, R]] = []

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _compiles_for(args[0]):
            return function(*args, **kwargs)
        if not chosen:
            chosen.append(torch.compile(function, dynamic=False))
        try:
            return chosen[0](*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # a missing compiler, an old GPU: the compiler's errors have no common base
            if chosen[0] is function:
                raise
            reason = (str(error).splitlines() or [""])[0]
            text = f"{function.__name__} runs uncompiled, which is slower ({type(error).__name__}: {reason})"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            chosen[0] = function
            return function(*args, **kwargs)

    return run


def _compiles_for(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_cuda
