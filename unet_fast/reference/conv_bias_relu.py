"""Convolution, bias and ReLU in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def conv_bias_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int = 0) -> Tensor:
    """See :func:`unet_fast.ops.conv_bias_relu`."""
    return F.relu(F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), padding=padding))
