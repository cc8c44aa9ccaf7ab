"""Transposed convolution, then a copy into the buffer, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def up_conv_into(x: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor, *, fresh: bool = False) -> Tensor:
    """See :func:`unet_fast.ops.up_conv_into`."""
    with torch.autocast(x.device.type, enabled=False):  # the dtype is that of the buffer
        up = F.conv_transpose2d(x, weight, None if bias is None else bias.to(x.dtype), stride=2)
    buffer[:, buffer.shape[1] - weight.shape[1] :] = up
    return buffer
