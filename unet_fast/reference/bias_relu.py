"""Bias and ReLU in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unet_fast.dtypes import wide


def bias_relu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :func:`unet_fast.ops.bias_relu`."""
    if bias is None:
        return F.relu(x)
    dtype = wide(x.dtype)
    return F.relu((x.to(dtype) + bias.to(dtype).view(-1, *[1] * (x.dim() - 2))).to(x.dtype))
