"""The contracting junction of a U-Net in one pass: bias, ReLU, 2x2 max-pooling and the cropped skip connection.

Kernels: csrc/cpu/relu_pool_skip.cpp and relu_pool_skip_backward.cpp; csrc/cuda/relu_pool_skip.cu and
relu_pool_skip_backward.cu; unet_fast/triton/relu_pool_skip.py. Truth: unet_fast/reference/relu_pool_skip.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError
from unet_fast.ops import _backends, _protocol, _record, _tensors
from unet_fast.ops._tolerances import BY_DTYPE, EXACT, GRADIENT


@_protocol.public
def relu_pool_skip(
    x: torch.Tensor, bias: torch.Tensor | None = None, *, skip_size: Sequence[int] | None = None, up_channels: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bias, ReLU, 2x2 max-pool and the crop for the skip connection, in one pass over a convolution's output.

    Args:
        x: (N, C, H, W) with H, W >= 2; float32, float64, float16 or bfloat16, contiguous or channels-last or a slice of
            either: the output of a convolution (without its bias, where ``bias`` is given) or of a normalisation.
        bias: (C,) floating, added in float32 (float64 for float64 images) before the ReLU; None adds nothing.
        skip_size: (h, w) of the decoder's concatenated map, h <= H and w <= W; None: no crop.
        up_channels: how many channels the up-sampled map will need behind those of the skip.

    Returns:
        ``pooled`` (N, C, H // 2, W // 2), an odd last row or column is not pooled, as in ``F.max_pool2d``; and
        ``buffer`` (N, C + up_channels, h, w): its first C channels are the centre of ``relu(x + bias)``, starting at
        ``((H - h) // 2, (W - w) // 2)``; **the others are uninitialised memory** until :func:`up_conv_into` fills them.
        Both have the dtype and layout of ``x``. The full-size output of the ReLU is never written.

        For the backward pass only one byte for each 2x2 window is kept, which says which of its pixels are positive and
        which is the maximum; the memory of ``x`` is free again at once. That is 1/4 byte read and written per element
        of ``x``, where recomputing it from ``x`` would read 2 (bfloat16) or 4 bytes and keep ``x`` alive, and where
        torch keeps the ReLU's output and int64 indices (2 more bytes per element). The gradients of the pool and of the
        skip meet in one pass that writes the gradient of ``x`` and sums it for the bias. Equal maxima: the first gets
        the gradient of the pool. NaN passes ReLU and pool. Second derivatives raise;
        ``unet_fast.reference.relu_pool_skip`` has them.

    Raises:
        InputError: a rank, size, device or channel count that does not fit; a second derivative.
        InputTypeError: not tensors, or not of a floating dtype.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), figure 1: the arrows that leave each level going down.

    Equivalent to::

        y = F.relu(x + bias[:, None, None])
        top, left = (y.shape[2] - skip_size[0]) // 2, (y.shape[3] - skip_size[1]) // 2
        buffer = y.new_empty(len(y), y.shape[1] + up_channels, *skip_size)
        buffer[:, : y.shape[1]] = y[:, :, top : top + skip_size[0], left : left + skip_size[1]]
        pooled = F.max_pool2d(y, 2)
    """
    checks.check_tensor("x", x)
    checks.check_rank("x", x, (4,), "(N, C, H, W)")
    checks.check_dtype("x", x, checks.FLOATING)
    height, width = x.shape[2:]
    if height < 2 or width < 2:
        raise InputError(f"x of shape {tuple(x.shape)} is too small to pool; expected at least 2 x 2 pixels")
    skip = (height, width) if skip_size is None else tuple(skip_size)
    if len(skip) != 2 or not 1 <= skip[0] <= height or not 1 <= skip[1] <= width:
        raise InputError(f"skip_size is {skip}, expected (h, w) from (1, 1) to the size of x, {(height, width)}")
    if up_channels < 0:
        raise InputError(f"up_channels is {up_channels}, expected 0 or more")
    if bias is not None:
        bias = _tensors.wide_bias(bias, x, x.shape[1])
    if _backends.choose("relu_pool_skip", x.device.type) == "reference":
        return reference.relu_pool_skip(x, bias, skip_size=skip, up_channels=up_channels)
    want_code = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    pooled, buffer, _ = _record.run(torch.ops.unet_fast.relu_pool_skip, x, bias, skip, up_channels, want_code)
    return pooled, buffer


def _fake(
    x: torch.Tensor, bias: torch.Tensor | None, skip_size: Sequence[int], up_channels: int, want_code: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, c, height, width = x.shape
    layout = _tensors.dense_format(x)
    windows = (n, c, (height + 1) // 2, (width + 1) // 2)
    return (
        _tensors.new(x, (n, c, height // 2, width // 2), layout=layout),
        _tensors.new(x, (n, c + up_channels, *skip_size), layout=layout),
        _tensors.new(x, windows, torch.uint8, layout) if want_code else _tensors.new(x, (0,), torch.uint8),
    )


def _fake_backward(
    code: torch.Tensor,
    grad_pooled: torch.Tensor | None,
    grad_buffer: torch.Tensor | None,
    size: Sequence[int],
    want_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    grad = grad_buffer if grad_pooled is None else grad_pooled
    assert grad is not None
    return (
        _tensors.new(grad, (*code.shape[:2], *size), layout=_tensors.dense_format(code)),
        _tensors.new(grad, (code.shape[1] if want_bias else 0,), _tensors.wide(grad.dtype)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, _, _, _, ctx.want_code = inputs
    code = output[2]
    ctx.mark_non_differentiable(code)
    ctx.set_materialize_grads(False)
    ctx.size = list(x.shape[2:])
    ctx.save_for_backward(code)


def _backward(
    ctx: Any, grad_pooled: torch.Tensor | None, grad_buffer: torch.Tensor | None, _: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None]:
    _record.no_second_derivative("relu_pool_skip")
    if not ctx.want_code:
        raise RuntimeError("relu_pool_skip was called with want_code=False, so it has no gradient")
    if grad_pooled is None and grad_buffer is None:
        return None, None, None, None, None
    (code,) = ctx.saved_tensors
    want_bias = ctx.needs_input_grad[1]
    grad_x, grad_bias = _record.run(
        torch.ops.unet_fast.relu_pool_skip_backward, code, grad_pooled, grad_buffer, ctx.size, want_bias
    )
    return grad_x, grad_bias if want_bias else None, None, None, None


_record.register(
    _record.Op(
        relu_pool_skip,
        (
            _record.Operator(
                "relu_pool_skip(Tensor x, Tensor? bias, SymInt[] skip_size, SymInt up_channels, bool "
                "want_code) -> (Tensor pooled, Tensor buffer, Tensor code)",
                _fake,
                _backward,
                _setup_context,
            ),
            _record.Operator(
                "relu_pool_skip_backward(Tensor code, Tensor? grad_pooled, Tensor? grad_buffer, SymInt[] size, "
                "bool want_bias) -> (Tensor grad_x, Tensor grad_bias)",
                _fake_backward,
            ),
        ),
        sample=lambda d, n, h, w: (d.image(n, 3, h, w), d.wide(3)),
        arguments=lambda x, bias: ((x, bias), {"skip_size": (x.shape[2] - 2, x.shape[3] - 3)}),
        tolerance=dict.fromkeys(BY_DTYPE, EXACT),
        leaves=(0, 1),
        gradient=GRADIENT,
    )
)
