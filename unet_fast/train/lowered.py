"""The weights of convolutions in autocast's dtype, all cast at once.

Autocast casts each weight where it is used, and each gradient on its way back: two launches a layer, which a training step
of one image on a GPU spends 2 % of its time on. Here one call casts all of them, and one all gradients; the numbers are the
same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Lower(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_cast(list(weights), dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [grad for grad in grads if grad is not None]
        wide = iter(_cast(there, torch.float32))
        return None, *(None if grad is None else next(wide) for grad in grads)


def _cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    results = [torch.empty_like(each, dtype=dtype) for each in tensors]
    if tensors:
        torch._foreach_copy_(results, tensors)
    return results


class LoweredWeights:
    """Calls a network as it is under autocast, with its float32 convolutions' weights cast in one go.

    Kernels of 1 x 1 keep their dtype: the head's are wanted in float32.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.network, self.dtype = network, dtype
        self.names = [
            f"{name}.weight" if name else "weight"
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            and module.weight.dtype == torch.float32
            and module.weight[0, 0].numel() > 1
        ]

    def __call__(self, *arguments: Any) -> Any:
        """The network's result for ``arguments``."""
        parameters = dict(self.network.named_parameters())
        weights = _Lower.apply(self.dtype, *(parameters[name] for name in self.names))
        return torch.func.functional_call(self.network, dict(zip(self.names, weights, strict=True)), arguments)
