"""Rendering in the middle of training."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, which traces of a field need; afterwards the mode that was."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)
