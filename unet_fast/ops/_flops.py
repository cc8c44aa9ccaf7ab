"""Floating-point operations of the operators that contain matrix products, for ``torch.utils.flop_counter``.

As there, a multiplication and an addition count as two, and whatever is not a product counts for nothing.

Imported by the layers and the networks, not by the operators: torch's counter loads Triton, which takes longer than all of
this package, and a data loader that only warps images has no use for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from unet_fast.ops import _library

Shape = Sequence[int]


def _convolution(x: Shape, weight: Shape, padding: int) -> int:
    outputs = x[0] * math.prod(size + 2 * padding - kernel + 1 for size, kernel in zip(x[2:], weight[2:], strict=True))
    return 2 * outputs * math.prod(weight)


def _up_convolution(x: Shape, weight: Shape) -> int:
    return 2 * x[0] * math.prod(x[2:]) * math.prod(weight)


def _conv_bias_relu(x: Shape, weight: Shape, bias: Any, padding: int, **_: Any) -> int:
    return _convolution(x, weight, padding)


def _conv_bias_relu_backward(
    grad: Shape, x: Shape, weight: Shape, out: Shape, padding: int, want_x: bool, want_weight: bool, *_: Any, **__: Any
) -> int:
    return (want_x + want_weight) * _convolution(x, weight, padding)


def _up_conv(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return _up_convolution(x, weight)


def _up_conv_backward(grad: Shape, x: Shape, weight: Shape, want_x: bool, want_weight: bool, *_: Any, **__: Any) -> int:
    return (want_x + want_weight) * _up_convolution(x, weight)


def _head(features: Shape, feature_bias: Any, relu: bool, weight: Shape, *rest: Any, **_: Any) -> int:
    """The products of the logits; where gradients are made in the same pass, those of features and weight as well."""
    want_grad = rest[-1]
    return 2 * features[0] * math.prod(features[2:]) * math.prod(weight) * (3 if want_grad else 1)


if _library.CPU.error is None:
    _FORMULAS: dict[Any, Any] = {
        torch.ops.unet_fast.conv_bias_relu: _conv_bias_relu,
        torch.ops.unet_fast.conv_bias_relu_backward: _conv_bias_relu_backward,
        torch.ops.unet_fast.up_conv_into: _up_conv,
        torch.ops.unet_fast.up_conv_crop_concat: _up_conv,
        torch.ops.unet_fast.up_conv_into_backward: _up_conv_backward,
        torch.ops.unet_fast.head_cross_entropy: _head,
    }
    for _operator, _formula in _FORMULAS.items():
        register_flop_formula(_operator)(_formula)
