"""Bias, ReLU, max-pool and crop one after the other, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_fast.dtypes import wide


def relu_pool_skip(
    x: Tensor, bias: Tensor | None = None, *, skip_size: Sequence[int] | None = None, up_channels: int = 0
) -> tuple[Tensor, Tensor]:
    """See :func:`unet_fast.ops.relu_pool_skip`; the channels that wait for the up-sampled map are 0."""
    dtype = wide(x.dtype)
    y = x if bias is None else (x.to(dtype) + bias.to(dtype)[:, None, None]).to(x.dtype)
    y = F.relu(y)
    height, width = y.shape[2:] if skip_size is None else skip_size
    top, left = (y.shape[2] - height) // 2, (y.shape[3] - width) // 2
    skip = y[:, :, top : top + height, left : left + width]
    rest = skip.new_zeros(skip.shape[0], up_channels, height, width)
    return F.max_pool2d(y, 2), torch.cat([skip, rest], dim=1)
