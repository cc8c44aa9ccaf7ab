"""Transposed convolution, crop and concatenation one after the other, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unet_fast.reference.crop_concat import crop_concat


def up_conv_crop_concat(x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor) -> Tensor:
    """See :func:`unet_fast.ops.up_conv_crop_concat`."""
    return crop_concat(skip, F.conv_transpose2d(x, weight, None if bias is None else bias.to(x.dtype), stride=2))
