"""Bias and ReLU in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from unet_fast.dtypes import wide


def bias_relu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """See :func:`unet_fast.ops.bias_relu`."""
    if bias is None:
        return F.relu(x)
    dtype = wide(x.dtype)
    return F.relu((x.to(dtype) + bias.to(dtype).view(-1, *[1] * (x.dim() - 2))).to(x.dtype))
