"""A 3x3 convolution of joined maps with its activation in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def conv3x3(
    inputs: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: int = 0,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """See :func:`unet_fast.ops.conv3x3`."""
    x = inputs if isinstance(inputs, Tensor) else torch.cat(tuple(inputs), 1)
    out = F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), padding=padding)
    if activation is None:
        return out
    return F.relu(out) if activation == "relu" else F.leaky_relu(out, negative_slope)
