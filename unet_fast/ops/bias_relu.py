"""``relu(x + bias)`` in one pass, with a backward that reads the output once and sums the bias gradient on the way.

Kernels: csrc/cpu/bias_relu.cpp, csrc/cuda/bias_relu.cu, unet_fast/triton/bias_relu.py;
truth: unet_fast/reference/bias_relu.py.
"""

from __future__ import annotations

from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.ops import _backends, _protocol, _record, _tensors
from unet_fast.ops._tolerances import BY_DTYPE, EXACT, GRADIENT


@_protocol.public
def bias_relu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Add a bias to each channel of a map and apply the ReLU.

    Args:
        x: (N, C, *S) with one to three spatial dimensions; float32, float64, float16 or bfloat16, contiguous or
            channels-last (other layouts are copied).
        bias: (C,) floating, added in float32 (float64 for float64 maps); None adds nothing.

    Returns:
        (N, C, *S), of the dtype and layout of ``x``. The gradient passes where the output is not 0 (NaN included), so
        only the output is kept for it; one pass over it and the incoming gradient gives the gradients of ``x`` and
        ``bias``. Second derivatives raise; ``unet_fast.reference.bias_relu`` has them.

    :func:`conv_bias_relu` does the same in place, in the output of a convolution, which autograd allows because nothing
    else uses that output.

    Raises:
        InputError: a rank, device or channel count that does not fit; a second derivative.
        InputTypeError: not tensors, or not of a floating dtype.

    Source: ``max(x + bias, 0)``, Nair and Hinton, Rectified linear units (ICML 2010).

    Equivalent to::

        F.relu(x + bias.view(-1, *[1] * (x.dim() - 2)))
    """
    checks.check_tensor("x", x)
    checks.check_rank("x", x, (3, 4, 5), "(N, C, H, W), or one or three spatial dimensions")
    checks.check_dtype("x", x, checks.FLOATING)
    if bias is not None:
        bias = _tensors.wide_bias(bias, x, x.shape[1])
    if _backends.choose("bias_relu", x.device.type) == "reference":
        return reference.bias_relu(x, bias)
    return _record.run(torch.ops.unet_fast.bias_relu, x, bias)


def _fake(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return _tensors.new(x, x.shape, layout=_tensors.dense_format(x))


def _fake_in_place(x: torch.Tensor, bias: torch.Tensor | None) -> None:
    return None


def _fake_backward(grad: torch.Tensor, out: torch.Tensor, want_bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        _tensors.new(grad, grad.shape, layout=_tensors.dense_format(out)),
        _tensors.new(grad, (out.shape[1] if want_bias else 0,), _tensors.wide(grad.dtype)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(output)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    _record.no_second_derivative("bias_relu")
    (out,) = ctx.saved_tensors
    want_bias = ctx.needs_input_grad[1]
    grad_x, grad_bias = _record.run(torch.ops.unet_fast.bias_relu_backward, grad, out, want_bias)
    return grad_x, grad_bias if want_bias else None


_record.register(
    _record.Op(
        bias_relu,
        (
            _record.Operator("bias_relu(Tensor x, Tensor? bias) -> Tensor", _fake, _backward, _setup_context),
            _record.Operator("bias_relu_(Tensor(a!) x, Tensor? bias) -> ()", _fake_in_place),
            _record.Operator(
                "bias_relu_backward(Tensor grad, Tensor out, bool want_bias) -> (Tensor grad_x, Tensor grad_bias)",
                _fake_backward,
            ),
        ),
        sample=lambda d, n, h, w: (d.image(n, 3, h, w), d.wide(3)),
        tolerance=dict.fromkeys(BY_DTYPE, EXACT),
        leaves=(0, 1),
        gradient=GRADIENT,
    )
)
