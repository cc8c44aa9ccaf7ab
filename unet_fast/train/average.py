"""The running average of the weights, kept up to date without reading any value."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn


class RunningAverage(nn.Module):
    """An exponential average of a network's parameters and buffers, whose memory grows at first.

    After update n = 1, 2, ... the average is ``a + (1 - k) (current - a)`` with k = min(decay, n / (n + 9)), and the
    first update takes the network as it is, so that the random initial weights are soon forgotten. Integer buffers,
    such as the count of batches, are copied. ``module`` is the averaged network; ``n_averaged`` counts the updates on the
    device, so that an update is a function of tensors alone and can be part of a CUDA graph.

    Args:
        model: the network; the average starts as a copy of it.
        decay: 0 to below 1.
    """

    n_averaged: torch.Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)
        self.decay = decay
        device = next(model.parameters()).device
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.long, device=device))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``, the network that it was made of."""
        count = self.n_averaged
        share = torch.where(count == 0, 1.0, 1.0 - ((count + 1) / (count + 10)).clamp(max=self.decay))
        floating: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for averaged, current in zip(_tensors(self.module), _tensors(model), strict=True):
            if averaged.is_floating_point():
                pair = floating.setdefault(averaged.dtype, ([], []))
                pair[0].append(averaged)
                pair[1].append(current)
            else:
                averaged.copy_(current)
        for averages, currents in floating.values():
            _lerp(averages, currents, share)
        count.add_(1)


def _tensors(module: nn.Module) -> chain[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


def _lerp(averages: list[torch.Tensor], currents: list[torch.Tensor], share: torch.Tensor) -> None:
    """``a += share * (c - a)`` for lists of tensors in one pass, with a share that stays on the device.

    torch's own _foreach_lerp_ takes the share from the host. A step of plain gradient descent with the gradient -c (for
    which it is told to maximise), weight decay 1 and the learning rate ``share`` is the same: a - share (a - c).
    """
    torch._fused_sgd_(
        averages,
        currents,
        [],
        weight_decay=1.0,
        momentum=0.0,
        lr=share,
        dampening=0.0,
        nesterov=False,
        maximize=True,
        is_first_step=False,
    )
