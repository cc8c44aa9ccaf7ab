"""What a network that only predicts can have besides: no gradients, and the faster memory order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unet_fast.accelerate import check
from unet_fast.accelerate.patch import Patch, patch_of


class Predicting(Patch):
    """The forward of the whole network, without gradients, for inputs of one memory order."""

    def __init__(self, module: nn.Module, inner: Patch | None) -> None:
        super().__init__(module)
        self.inner, self.order = inner, torch.contiguous_format
        self.trained = [one for one in module.modules() if one.training]
        self.kernels = [p for p in module.parameters() if p.dim() == 4 and p.is_contiguous()]

    def use(self, order: torch.memory_format) -> None:
        """Put weights, and the inputs to come, into this memory order."""
        self.order = order
        for parameter in self.kernels:
            parameter.data = parameter.data.contiguous(memory_format=order)

    def fast(self, *args: Any, **kwargs: Any) -> Any:
        """Without recording gradients."""
        args = tuple(_ordered(arg, self.order) for arg in args)
        with torch.no_grad():
            return self.plain(*args, **kwargs) if self.inner is None else self.inner(*args, **kwargs)

    def install(self) -> None:
        """Put the network into evaluation."""
        super().install()
        self.module.eval()

    def remove(self) -> None:
        """Training modes and weights as they lay before."""
        super().remove()
        self.use(torch.contiguous_format)
        for one in self.trained:
            one.training = True


def _ordered(arg: Any, order: torch.memory_format) -> Any:
    return arg.contiguous(memory_format=order) if isinstance(arg, Tensor) and arg.dim() == 4 else arg


def prepare(model: nn.Module, args: tuple[Any, ...]) -> str:
    """Put the network into evaluation and into the memory order that is faster on ``args``; say which."""
    patch = patch_of(model)
    if not isinstance(patch, Predicting):
        patch = Predicting(model, patch)
        patch.install()
    seconds = {}
    for order in (torch.contiguous_format, torch.channels_last):
        patch.use(order)
        seconds[order] = check.times(model, args)[1]
    patch.use(min(seconds, key=lambda one: seconds[one]))
    if patch.order is torch.channels_last:
        return "weights and maps are channels-last, which is faster here"
    return "maps stay contiguous, which is faster here than channels-last"
