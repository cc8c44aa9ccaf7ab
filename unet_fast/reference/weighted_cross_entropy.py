"""Pixel-wise softmax cross-entropy times a weight per pixel, in plain PyTorch: what the compiled op must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from unet_fast.dtypes import wide
from unet_fast.errors import InputError


def weighted_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """See :func:`unet_fast.ops.weighted_cross_entropy`. Differentiable any number of times."""
    dtype = wide(logits.dtype)
    num_classes = logits.shape[1]
    counted = target != ignore_index
    invalid = counted & ((target < 0) | (target >= num_classes))
    if invalid.any():
        value = int(target[invalid][0])
        raise InputError(bad_target(value, num_classes, ignore_index))
    # ignored pixels are cut off before the softmax: not even a NaN there may reach the gradient
    log_probability = logits.to(dtype).where(counted.unsqueeze(1), 0.0).log_softmax(1)
    index = target.to(torch.int64).where(counted, 0)
    loss = -log_probability.gather(1, index.unsqueeze(1)).squeeze(1)
    used = torch.ones_like(loss) if weight is None else weight.to(dtype)
    loss = (loss * used).where(counted, 0.0)
    if reduction == "none":
        return loss
    total = loss.sum(dtype=torch.float64)
    if reduction == "sum":
        return total.to(dtype)
    divisor = counted.sum() if reduction == "mean" else used.where(counted, 0.0).sum(dtype=torch.float64)
    return (total / divisor.where(divisor != 0, 1)).to(dtype)


def bad_target(value: int, num_classes: int, ignore_index: int) -> str:
    """The message for a target outside the classes."""
    return (
        f"target contains {value}, expected classes 0 to {num_classes - 1} or ignore_index ({ignore_index}); "
        "check the labels, or give the network more classes"
    )
