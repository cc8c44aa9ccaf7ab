"""Networks inside of what torch puts around them, and in the mode that prediction needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of what torch.compile and data parallelism put around it."""
    while True:
        if type(model).__name__ == "OptimizedModule":
            inner = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        else:
            return model
        assert isinstance(inner, nn.Module)
        model = inner


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run in eval mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
