"""A convolution with bias and ReLU as one operator, whose backward reads its gradient once for the ReLU and the bias.

Torch's own convolution and then the kernel of bias_relu, in place: csrc/bindings/torch_cpu/conv_bias_relu.cpp with
csrc/cpu/bias_relu.cpp; csrc/bindings/torch_cuda/conv_bias_relu.cpp with csrc/cuda/bias_relu.cu;
unet_fast/triton/conv_bias_relu.py with unet_fast/triton/bias_relu.py. Truth: unet_fast/reference/conv_bias_relu.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError
from unet_fast.ops import _backends, _convolution, _protocol, _record, _tensors
from unet_fast.ops._tolerances import CONVOLUTION, GRADIENT
from unet_fast.ops.conv3x3 import run


@_protocol.public
def conv_bias_relu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, padding: int = 0
) -> torch.Tensor:
    """``relu(conv2d(x, weight, bias, padding=padding))``, stride 1.

    Args:
        x: (N, C, H, W) float32, float64, float16 or bfloat16, contiguous or channels-last.
        weight: (K, C, kh, kw), same dtype and device. Under autocast both are cast to its dtype (not
            float64).
        bias: (K,) floating, or None.
        padding: rows and columns of zeros around the image.

    Returns:
        (N, K, H + 2 * padding - kh + 1, W + 2 * padding - kw + 1). NaN stays NaN. On the CPU :func:`conv3x3` does it by
        Winograd's algorithm where that is faster; else torch's convolution adds the bias and one pass in place applies
        the ReLU, bit for bit what torch's layers give; on a GPU that pass does both.
        The backward masks the incoming gradient with the output (which the next layer keeps anyway) and sums it for the
        bias in one pass, before the two products of the convolution's own backward. Second derivatives raise;
        ``unet_fast.reference.conv_bias_relu`` has them.

    Raises:
        InputError: shapes or devices that do not fit, a negative padding; a second derivative.
        InputTypeError: not tensors, or dtypes that differ or are not floating.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), figure 1: "conv 3x3, ReLU".

    Equivalent to::

        F.relu(F.conv2d(x, weight, bias, padding=padding))
    """
    checks.check_tensor("x", x)
    checks.check_tensor("weight", weight)
    checks.check_rank("x", x, (4,), "(N, C, H, W)")
    checks.check_rank("weight", weight, (4,), "(K, C, kh, kw)")
    checks.check_same_device("x", x, "weight", weight)
    x, weight = _tensors.autocast_pair(x, weight)
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
        bias = _tensors.wide_bias(bias, x, weight.shape[0])
    if _backends.choose("conv_bias_relu", x.device.type) == "reference":
        return reference.conv_bias_relu(x, weight, bias, padding=padding)
    if _convolution.by_winograd([x], weight, padding):
        return run([x], weight, bias, padding, "relu")
    return _record.run(torch.ops.unet_fast.conv_bias_relu, x, weight, bias, padding)


def _plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: int) -> torch.Tensor:
    return torch.ops.aten.convolution(x, weight, bias, [1, 1], [padding, padding], [1, 1], False, [0, 0], 1)


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: int) -> torch.Tensor:
    return _plain(x, weight, None, padding)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, _, ctx.padding = inputs
    ctx.save_for_backward(x, weight, output)


def _fake_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    padding: int,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        torch.empty_like(out),
        x,
        weight,
        None,
        [1, 1],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, False],
    )
    grad_bias = _tensors.new(x, (weight.shape[0] if want_bias else 0,), _tensors.wide(x.dtype))
    return grad_x if want_x else x.new_empty(0), grad_weight if want_weight else x.new_empty(0), grad_bias


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    _record.no_second_derivative("conv_bias_relu")
    x, weight, out = ctx.saved_tensors
    want = ctx.needs_input_grad[:3]
    grads = _record.run(torch.ops.unet_fast.conv_bias_relu_backward, grad, x, weight, out, ctx.padding, *want)
    return *(g if wanted else None for g, wanted in zip(grads, want, strict=True)), None


def _flops(x: Sequence[int], weight: Sequence[int], bias: Any, padding: int, **_: Any) -> int:
    outputs = x[0] * math.prod(size + 2 * padding - kernel + 1 for size, kernel in zip(x[2:], weight[2:], strict=True))
    return 2 * outputs * math.prod(weight)


def _flops_backward(
    grad: Any,
    x: Sequence[int],
    weight: Sequence[int],
    out: Any,
    padding: int,
    want_x: bool,
    want_weight: bool,
    *_: Any,
    **__: Any,
) -> int:
    return (want_x + want_weight) * _flops(x, weight, None, padding)


_record.register(
    _record.Op(
        conv_bias_relu,
        (
            _record.Operator(
                "conv_bias_relu(Tensor x, Tensor weight, Tensor? bias, SymInt padding) -> Tensor",
                _fake,
                _backward,
                _setup_context,
                _flops,
            ),
            _record.Operator(
                "conv_bias_relu_backward(Tensor grad, Tensor x, Tensor weight, Tensor out, SymInt padding, "
                "bool want_x, bool want_weight, bool want_bias) -> (Tensor grad_x, Tensor grad_weight, Tensor "
                "grad_bias)",
                _fake_backward,
                flops=_flops_backward,
            ),
        ),
        sample=lambda d, n, h, w: (
            d.whole(n, 2, h, w).contiguous(memory_format=d.form),
            d.whole(3, 2, 3, 3),
            d.wide(3).round() + 0.5,
        ),
        arguments=lambda x, weight, bias: ((x, weight, bias), {"padding": 1}),
        tolerance=CONVOLUTION,
        leaves=(0, 1, 2),
        gradient=GRADIENT,
        autocast="lower",
        truth_beside=True,
    )
)
