"""ReLU, 1x1 convolution and loss one after the other, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from unet_fast.dtypes import wide
from unet_fast.reference.weighted_cross_entropy import weighted_cross_entropy


def head_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    pixel_weight: Tensor | None = None,
    *,
    relu: bool = False,
    feature_bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """See :func:`unet_fast.ops.head_cross_entropy`. Differentiable any number of times."""
    logits = head_logits(features, weight, bias, target != ignore_index, relu, feature_bias)
    return weighted_cross_entropy(logits, target, pixel_weight, ignore_index=ignore_index, reduction=reduction)


def head_logits(
    features: Tensor, weight: Tensor, bias: Tensor | None, counted: Tensor, relu: bool, feature_bias: Tensor | None
) -> Tensor:
    """The logits (N, K, *S), wide, with the features of pixels that are not counted (N, *S) taken as 0."""
    dtype = wide(features.dtype)
    # ignored pixels are cut off before anything is computed: not even a NaN there may reach a gradient
    y = features.to(dtype).where(counted.unsqueeze(1), 0.0)
    one_a_channel = [-1, *[1] * (features.dim() - 2)]
    if feature_bias is not None:
        y = y + feature_bias.to(dtype).view(one_a_channel)
    if relu:
        y = y.relu()
    with torch.autocast(features.device.type, enabled=False):  # the logits are wide
        logits = torch.einsum("nc...,kc->nk...", y, weight.flatten(1).to(dtype))
    if bias is not None:
        logits = logits + bias.to(dtype).view(one_a_channel)
    return logits
