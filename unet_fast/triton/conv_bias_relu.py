"""conv_bias_relu and its backward: torch's own convolution without its bias, around the kernels of bias_relu."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unet_fast.triton.bias_relu import bias_relu_, bias_relu_backward


def conv_bias_relu(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """As torch.ops.unet_fast.conv_bias_relu. Bytes: those of the convolution, and 2 an element of a byte of its output."""
    out = torch.ops.aten.convolution(x, weight, None, [1, 1], [padding, padding], [1, 1], False, [0, 0], 1)
    bias_relu_(out, bias)
    return out


def conv_bias_relu_backward(
    grad: Tensor, x: Tensor, weight: Tensor, out: Tensor, padding: int, want_x: bool, want_weight: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As torch.ops.unet_fast.conv_bias_relu_backward."""
    masked, grad_bias = bias_relu_backward(grad, out, want_bias)
    if not (want_x or want_weight):
        return x.new_empty(0), x.new_empty(0), grad_bias
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        masked, x, weight, None, [1, 1], [padding, padding], [1, 1], False, [0, 0], 1, [want_x, want_weight, False]
    )
    return grad_x if want_x else x.new_empty(0), grad_weight if want_weight else x.new_empty(0), grad_bias


KERNELS: dict[str, Any] = {"conv_bias_relu": conv_bias_relu, "conv_bias_relu_backward": conv_bias_relu_backward}
