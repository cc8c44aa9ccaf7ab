"""The expanding junction as one functional operator: transposed convolution, crop and concatenation.

Kernels: those of up_conv_into and crop_concat, called by csrc/bindings/torch_cpu/up_conv.cpp,
csrc/bindings/torch_cuda/up_conv.cpp and unet_fast/triton/up_conv_crop_concat.py.
Truth: unet_fast/reference/up_conv_crop_concat.py.
"""

from __future__ import annotations

from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError
from unet_fast.ops import _backends, _protocol, _record, _tensors
from unet_fast.ops._tolerances import CONVOLUTION, GRADIENT
from unet_fast.ops.up_conv_into import check_up_conv, flops, up_conv_gradients


@_protocol.public
def up_conv_crop_concat(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, skip: torch.Tensor
) -> torch.Tensor:
    """Centre-crop of ``skip`` followed by ``conv_transpose2d(x, weight, bias, stride=2)``, each written once.

    Args:
        x: (N, C_in, h, w) float32, float64, float16 or bfloat16, contiguous or channels-last.
        weight: (C_in, C_out, 2, 2), as that of ``nn.ConvTranspose2d(C_in, C_out, 2, stride=2)``.
        bias: (C_out,) floating, or None.
        skip: (N, C, H, W) with H >= 2h, W >= 2w, same dtype. Under autocast all three are cast to its
            dtype, except for float64 ``x``, as torch's own layers do.

    Returns:
        (N, C + C_out, 2h, 2w) in the layout of ``x``: the crop starts at ``((H - 2h) // 2, (W - 2w) // 2)``. The
        up-sampled map is never stored by itself. Second derivatives raise;
        ``unet_fast.reference.up_conv_crop_concat`` has them.

    Where the skip comes from a ReLU and a max-pool, :func:`relu_pool_skip` with :func:`up_conv_into` saves the copy of
    the skip as well.

    Raises:
        InputError: shapes or devices that do not fit; a second derivative.
        InputTypeError: not tensors, or dtypes that differ or are not floating.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), figure 1: "up-conv 2x2" and "copy and crop".

    Equivalent to::

        crop_concat(skip, F.conv_transpose2d(x, weight, bias, stride=2))
    """
    checks.check_tensor("skip", skip)
    checks.check_tensor("x", x)
    checks.check_rank("skip", skip, (4,), "(N, C, H, W)")
    checks.check_dtype("skip", skip, checks.FLOATING)
    lower = _tensors.autocast_dtype(x)
    x, weight, bias = check_up_conv(x, weight, bias, lower or x.dtype)
    if lower is not None:
        skip = skip.to(lower)
    checks.check_same_dtype("x", x, "skip", skip)
    checks.check_same_device("x", x, "skip", skip)
    if skip.shape[0] != x.shape[0] or skip.shape[2] < 2 * x.shape[2] or skip.shape[3] < 2 * x.shape[3]:
        raise InputError(
            f"skip has shape {tuple(skip.shape)}, expected ({x.shape[0]}, C, H, W) with H >= {2 * x.shape[2]} and "
            f"W >= {2 * x.shape[3]}, twice the size of x"
        )
    if _backends.choose("up_conv_crop_concat", x.device.type) == "reference":
        return reference.up_conv_crop_concat(x, weight, bias, skip)
    return _record.run(torch.ops.unet_fast.up_conv_crop_concat, x, weight, bias, skip)


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, skip: torch.Tensor) -> torch.Tensor:
    shape = (x.shape[0], skip.shape[1] + weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    return _tensors.new(x, shape, layout=_tensors.dense_format(x))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, bias, skip = inputs
    ctx.has_bias, ctx.skip_channels, ctx.skip_size = bias is not None, skip.shape[1], list(skip.shape[2:])
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    _record.no_second_derivative("up_conv_crop_concat")
    grad_skip = None
    if ctx.needs_input_grad[3]:
        # without a crop the gradient is a view and costs nothing
        same, channels = list(grad.shape[2:]) == ctx.skip_size, ctx.skip_channels
        grad_skip = (
            grad[:, :channels]
            if same
            else _record.run(torch.ops.unet_fast.crop_concat_backward, grad, channels, ctx.skip_size)
        )
    return *up_conv_gradients(ctx, grad), grad_skip


_record.register(
    _record.Op(
        up_conv_crop_concat,
        (
            _record.Operator(
                "up_conv_crop_concat(Tensor x, Tensor weight, Tensor? bias, Tensor skip) -> Tensor",
                _fake,
                _backward,
                _setup_context,
                flops,
            ),
        ),
        sample=lambda d, n, h, w: (
            *(d.image(n, 3, h, w), d.same(3, 2, 2, 2), d.wide(2)),
            d.image(n, 2, 2 * h + 1, 2 * w + 3),
        ),
        tolerance=CONVOLUTION,
        leaves=(0, 1, 2, 3),
        gradient=GRADIENT,
        autocast="lower",
    )
)
