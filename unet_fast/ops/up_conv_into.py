"""The expanding junction of a U-Net: a 2x2, stride-2 transposed convolution that writes into the concat buffer.

Kernels: csrc/cpu/up_conv.cpp, csrc/cuda/up_conv.cu, which scatter torch's matrix product (csrc/bindings/up_conv_matrix.h);
unet_fast/triton/up_conv_into.py, which computes and scatters it. Truth: unet_fast/reference/up_conv_into.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import _backends, _protocol, _record, _tensors
from unet_fast.ops._tolerances import CONVOLUTION, GRADIENT


@_protocol.public
def up_conv_into(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, buffer: torch.Tensor, *, fresh: bool = False
) -> torch.Tensor:
    """Write ``conv_transpose2d(x, weight, bias, stride=2)`` into the last channels of ``buffer``, in place.

    Args:
        x: (N, C_in, h, w) float32, float64, float16 or bfloat16.
        weight: (C_in, C_out, 2, 2), as that of ``nn.ConvTranspose2d(C_in, C_out, 2, stride=2)``; memory order
            channels-last costs nothing, any other a small copy.
        bias: (C_out,) floating, or None.
        buffer: (N, C, 2h, 2w) with C >= C_out, contiguous or channels-last, same dtype as ``x`` and ``weight`` (under
            autocast these two are cast to the dtype of the buffer): from :func:`relu_pool_skip`. Its last C_out
            channels are overwritten, whatever they held.
        fresh: those channels were never written, as :func:`relu_pool_skip` leaves them, so that nobody looks at their
            gradient: that of ``buffer`` is then handed on as it is. Otherwise it is copied, with zeros in their place.

    Returns:
        ``buffer``, the same tensor. Use the returned one: it carries the gradients of all four. The operator itself,
        ``torch.ops.unet_fast.up_conv_into``, returns nothing and mutates its last argument, which is what
        ``torch.compile`` and ``torch.export`` need to know; autograd is that of an in-place operation, so a buffer that
        another operation has kept for its backward raises torch's usual error. Second
        derivatives raise; ``unet_fast.reference.up_conv_into`` has them.

    With the stride equal to the kernel no two input pixels meet in one output pixel, so the whole is one matrix product
    (N h w, C_in) x (C_in, 4 C_out), whose rows are scattered with the bias added.

    Raises:
        InputError: shapes or devices that do not fit, a buffer that is neither contiguous nor channels-last; a second
            derivative.
        InputTypeError: not tensors, or dtypes that differ or are not floating.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), figure 1: "up-conv 2x2" and "copy and crop".

    Equivalent to::

        buffer[:, -weight.shape[1] :] = F.conv_transpose2d(x, weight, bias, stride=2)
    """
    checks.check_tensor("buffer", buffer)
    checks.check_rank("buffer", buffer, (4,), "(N, C, 2h, 2w)")
    x, weight, bias = check_up_conv(x, weight, bias, buffer.dtype)
    checks.check_same_dtype("x", x, "buffer", buffer)
    checks.check_same_device("x", x, "buffer", buffer)
    expected = (x.shape[0], 2 * x.shape[2], 2 * x.shape[3])
    if (buffer.shape[0], *buffer.shape[2:]) != expected or buffer.shape[1] < weight.shape[1]:
        raise InputError(
            f"buffer has shape {tuple(buffer.shape)}, expected ({expected[0]}, at least {weight.shape[1]}, "
            f"{expected[1]}, {expected[2]}) for x of shape {tuple(x.shape)}"
        )
    if not _tensors.is_channels_last(buffer) and not buffer.is_contiguous():
        raise InputError(
            f"buffer of shape {tuple(buffer.shape)} and strides {buffer.stride()} is neither contiguous nor channels-last"
        )
    if _backends.choose("up_conv_into", x.device.type) == "reference":
        return reference.up_conv_into(x, weight, bias, buffer)
    inputs = (x, weight, buffer) if bias is None else (x, weight, bias, buffer)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        if not torch.compiler.is_compiling() and _tensors.unwritable(buffer):
            what = "a view of another tensor" if buffer._is_view() else "a leaf that requires gradients"
            raise InputError(
                f"buffer is {what}, which autograd does not allow to be written to; use up_conv_crop_concat, or the result of an operation"
            )
        return _UpConvInto.apply(x, weight, bias, buffer, fresh)
    _record.run(torch.ops.unet_fast.up_conv_into, x, weight, bias, buffer)
    return buffer


def up_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``conv_transpose2d(x, weight, bias, stride=2)`` on a CPU, for a convolution that reads it beside its skip.

    Its result lies in memory that is used again, as torch's does not.
    """
    out: torch.Tensor = _record.run(torch.ops.unet_fast.up_conv, x, weight, bias)
    return out


def check_up_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Check the operands of a 2x2, stride-2 transposed convolution; under autocast cast them to ``dtype``."""
    checks.check_tensor("x", x)
    checks.check_tensor("weight", weight)
    checks.check_rank("x", x, (4,), "(N, C, h, w)")
    checks.check_same_device("x", x, "weight", weight)
    checks.check_dtype("x", x, checks.FLOATING)
    checks.check_dtype("weight", weight, checks.FLOATING)
    if _tensors.autocasts(x.device.type):
        x, weight = x.to(dtype), weight.to(dtype)
    if weight.dim() != 4 or weight.shape[0] != x.shape[1] or tuple(weight.shape[2:]) != (2, 2):
        raise InputError(f"weight has shape {tuple(weight.shape)}, expected ({x.shape[1]}, C_out, 2, 2)")
    if x.dtype != weight.dtype:
        raise InputTypeError(f"x has dtype {x.dtype} but weight has {weight.dtype}; convert one of them")
    return x, weight, None if bias is None else _tensors.wide_bias(bias, x, weight.shape[1])


class _UpConvInto(torch.autograd.Function):
    """In-place operations have no place in torch.library's autograd, which is for functional operators."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, buffer: torch.Tensor, fresh: bool
    ) -> torch.Tensor:
        _record.run(torch.ops.unet_fast.up_conv_into, x, weight, bias, buffer)
        ctx.mark_dirty(buffer)
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.fresh = bias is not None, fresh
        return buffer

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        _record.no_second_derivative("up_conv_into")
        grads = up_conv_gradients(ctx, grad)
        if not ctx.needs_input_grad[3]:
            return *grads, None, None
        if not ctx.fresh:
            grad = grad.clone()
            grad[:, grad.shape[1] - ctx.saved_tensors[1].shape[1] :] = 0
        return *grads, grad, None


def up_conv_gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The gradients of x, weight and bias from that of the concatenated map, whose last channels are theirs."""
    x, weight = ctx.saved_tensors
    want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
    want_bias = want_bias and ctx.has_bias
    if not (want_x or want_weight or want_bias):
        return None, None, None
    grads = _record.run(torch.ops.unet_fast.up_conv_into_backward, grad, x, weight, want_x, want_weight, want_bias)
    return tuple(g if want else None for g, want in zip(grads, (want_x, want_weight, want_bias), strict=True))


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, buffer: torch.Tensor) -> None:
    return None


def _fake_alone(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    shape = (x.shape[0], weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    return _tensors.new(x, shape, layout=_tensors.dense_format(x))


def _setup_alone(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, bias = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward_alone(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    _record.no_second_derivative("up_conv")
    return up_conv_gradients(ctx, grad)


def _fake_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, want_x: bool, want_weight: bool, want_bias: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    none = _tensors.new(x, (0,))
    return (
        _tensors.new(x, x.shape, layout=_tensors.dense_format(grad)) if want_x else none,
        _tensors.new(x, weight.shape, layout=torch.channels_last) if want_weight else none,
        _tensors.new(x, (weight.shape[1] if want_bias else 0,), _tensors.wide(grad.dtype)),
    )


def flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Multiplications and additions of a 2x2, stride-2 transposed convolution, from shapes."""
    return 2 * x[0] * math.prod(x[2:]) * math.prod(weight)


def _flops_backward(
    grad: Any, x: Sequence[int], weight: Sequence[int], want_x: bool, want_weight: bool, *_: Any, **__: Any
) -> int:
    return (want_x + want_weight) * flops(x, weight)


_record.register(
    _record.Op(
        up_conv_into,
        (
            _record.Operator(
                "up_conv_into(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) buffer) -> ()", _fake, flops=flops
            ),
            _record.Operator(
                "up_conv(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
                _fake_alone,
                _backward_alone,
                _setup_alone,
                flops,
            ),
            _record.Operator(
                "up_conv_into_backward(Tensor grad, Tensor x, Tensor weight, bool want_x, bool want_weight, "
                "bool want_bias) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
                _fake_backward,
                flops=_flops_backward,
            ),
        ),
        sample=lambda d, n, h, w: (d.image(n, 3, h, w), d.same(3, 2, 2, 2), d.wide(2), d.image(n, 5, 2 * h, 2 * w)),
        # a copy, as a leaf may not be written to
        arguments=lambda x, weight, bias, buffer: (
            (x, weight, bias, (buffer * 2).contiguous(memory_format=_tensors.dense_format(buffer))),
            {},
        ),
        tolerance=CONVOLUTION,
        leaves=(0, 1, 2, 3),
        gradient=GRADIENT,
    )
)
