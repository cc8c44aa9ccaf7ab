"""up_conv_crop_concat: the crop of the skip and the product with its scatter, each written once, in two launches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unet_fast.ops import _record, _tensors
from unet_fast.triton.crop_concat import place
from unet_fast.triton.up_conv_into import up_conv_into


def up_conv_crop_concat(x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor) -> Tensor:
    """As torch.ops.unet_fast.up_conv_crop_concat."""
    out = _record.allocate("up_conv_crop_concat", x, weight, bias, skip)
    for dim in (2, 3):
        skip = skip.narrow(dim, (skip.shape[dim] - out.shape[dim]) // 2, out.shape[dim])
    place(skip, out[:, : skip.shape[1]], _tensors.is_channels_last(x))
    up_conv_into(x, weight, bias, out)
    return out


KERNELS: dict[str, Any] = {"up_conv_crop_concat": up_conv_crop_concat}
