"""A convolution with bias and ReLU as one operator: the two are part of the convolution's epilogue, or one pass in place.

Truth: unet_fast/reference/conv_bias_relu.py. The convolution itself is torch's.
"""

from __future__ import annotations

from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError
from unet_fast.ops import _backends, _library
from unet_fast.ops.relu_pool_skip import no_second_derivative, wide_bias


def conv_bias_relu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, padding: int = 0
) -> torch.Tensor:
    """``relu(conv2d(x, weight, bias, padding=padding))``, stride 1.

    Args:
        x: (N, C, H, W) float32, float64, float16 or bfloat16, contiguous or channels-last.
        weight: (K, C, kh, kw), same dtype and device. Under autocast both are cast to its dtype.
        bias: (K,) floating, or None.
        padding: rows and columns of zeros around the image.

    Returns:
        (N, K, H + 2 * padding - kh + 1, W + 2 * padding - kw + 1). On the CPU oneDNN adds the bias and applies the ReLU
        while it writes the convolution's result; elsewhere one pass does it in place. The backward masks the incoming
        gradient with the output (which the next layer keeps anyway) and sums it for the bias in one pass, before the two
        products of the convolution's own backward. Second derivatives raise; ``unet_fast.reference.conv_bias_relu`` has
        them.

    Raises:
        InputError: shapes that do not fit.
        InputTypeError: not tensors, or dtypes that differ or are not floating.

    Equivalent to::

        F.relu(F.conv2d(x, weight, bias, padding=padding))
    """
    checks.check_tensor("x", x)
    checks.check_tensor("weight", weight)
    checks.check_rank("x", x, (4,), "(N, C, H, W)")
    checks.check_rank("weight", weight, (4,), "(K, C, kh, kw)")
    checks.check_same_device("x", x, "weight", weight)
    x, weight = autocast_pair(x, weight)
    if x.shape[1] != weight.shape[1]:
        raise InputError(
            f"x of shape {tuple(x.shape)} has {x.shape[1]} channels, "
            f"the weight of shape {tuple(weight.shape)} expects {weight.shape[1]}"
        )
    if padding < 0:
        raise InputError(f"padding is {padding}, expected 0 or more")
    for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True):
        if size + 2 * padding < kernel:
            raise InputError(
                f"x of shape {tuple(x.shape)} with padding {padding} is smaller than the kernel, {tuple(weight.shape[2:])}"
            )
    if bias is not None:
        bias = wide_bias(bias, x, weight.shape[0])
    if _backends.choose("bias_relu", x.device.type) == "reference":
        return reference.conv_bias_relu(x, weight, bias, padding=padding)
    return torch.ops.unet_fast.conv_bias_relu(x, weight, bias, padding)


def autocast_pair(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the dtype of autocast where it is on, else as they are; one dtype, floating, is checked."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    checks.check_dtype("x", x, checks.FLOATING)
    checks.check_same_dtype("x", x, "weight", weight)
    return x, weight


def _plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: int) -> torch.Tensor:
    return torch.ops.aten.convolution(x, weight, bias, [1, 1], [padding, padding], [1, 1], False, [0, 0], 1)


def _onednn_can(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN takes this convolution and fuses what follows it; it does when torch itself would use it."""
    if x.device.type != "cpu" or not x.numel() or not weight.numel():
        return False
    mkldnn = torch.backends.mkldnn
    if not (mkldnn.is_available() and mkldnn.enabled):
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _kernel(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: int) -> torch.Tensor:
    if _onednn_can(x, weight):
        narrow = None if bias is None else bias.to(x.dtype)
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, narrow, [padding, padding], [1, 1], [1, 1], 1, "relu", [], ""
        )
    out = _plain(x, weight, None, padding)
    torch.ops.unet_fast.bias_relu_(out, bias)
    return out


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: int) -> torch.Tensor:
    return _plain(x, weight, None, padding)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, _, ctx.padding = inputs
    ctx.save_for_backward(x, weight, output)


def _backward(
    ctx: Any, grad: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, None]:
    no_second_derivative("conv_bias_relu")
    x, weight, out = ctx.saved_tensors
    want_x, want_weight, want_bias, _ = ctx.needs_input_grad
    grad, grad_bias = torch.ops.unet_fast.bias_relu_backward(grad, out, want_bias)
    padding = [ctx.padding, ctx.padding]
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [want_x, want_weight, False]
    )
    return grad_x, grad_weight, grad_bias if want_bias else None, None


if _library.CPU.error is None:
    torch.library.impl("unet_fast::conv_bias_relu", ("cpu", "cuda"))(_kernel)
    torch.library.register_fake("unet_fast::conv_bias_relu", _fake)
    torch.library.register_autograd("unet_fast::conv_bias_relu", _backward, setup_context=_setup_context)
