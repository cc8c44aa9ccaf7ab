"""Bias and ReLU in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def bias_relu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """See :func:`unet_fast.ops.bias_relu`."""
    if bias is None:
        return F.relu(x)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return F.relu((x.to(wide) + bias.to(wide).view(-1, *[1] * (x.dim() - 2))).to(x.dtype))
