"""Whatever was up-sampled, written behind a skip that waits for it in the joined map: :func:`fill_buffer`.

Made of torch's own operations, and so without kernels or a record.
"""

from __future__ import annotations

from typing import Any

import torch

from unet_fast import checks
from unet_fast.errors import InputError
from unet_fast.ops import _protocol
from unet_fast.ops._tensors import unwritable


@_protocol.public
def fill_buffer(buffer: torch.Tensor, up: torch.Tensor, *, fresh: bool = False) -> torch.Tensor:
    """Let the last channels of ``buffer``, as :func:`relu_pool_skip` leaves it, be ``up``; for up-samplings of your own.

    An assignment to ``buffer[:, -C2:]`` does the same, but autograd copies the whole map for it: pooling and joining took 1.7 to 1.9
    times as long in channels-last then, forward and backward, and up to 1.2 times contiguous. For a transposed convolution with a 2x2 kernel, :func:`up_conv_into` writes there itself.

    Args:
        buffer: (N, C, H, W), any dtype and layout. Its last C2 channels are overwritten, whatever they held, and it is not to be
            used by itself afterwards. In a compiled or exported graph, under a transform of torch.func, for subclasses of tensors,
            for views and for leaves that want a gradient it is left alone, and a joined map is made.
        up: (N, C2, H, W) with C2 <= C, same dtype and device.
        fresh: those channels were never written, so that nobody looks at their gradient: that of ``buffer`` is then handed on as
            it is. Otherwise it is copied, with zeros in their place.

    Returns:
        The joined map (N, C, H, W), with the gradients of both; use it in place of ``buffer``.

    Raises:
        InputError: shapes or devices that do not fit. InputTypeError: not tensors, or dtypes that differ.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), figure 1: "copy and crop".

    Equivalent to::

        torch.cat([buffer[:, : buffer.shape[1] - up.shape[1]], up], dim=1)
    """
    for name, tensor in (("buffer", buffer), ("up", up)):
        checks.check_tensor(name, tensor)
        checks.check_rank(name, tensor, (4,), "(N, C, H, W)")
    checks.check_same_device("buffer", buffer, "up", up)
    checks.check_same_dtype("buffer", buffer, "up", up)
    kept = buffer.shape[1] - up.shape[1]
    if kept < 0 or (buffer.shape[0], *buffer.shape[2:]) != (up.shape[0], *up.shape[2:]):
        raise InputError(
            f"up has shape {tuple(up.shape)}, expected ({buffer.shape[0]}, at most {buffer.shape[1]}, {buffer.shape[2]}, "
            f"{buffer.shape[3]}), to fit the buffer {tuple(buffer.shape)}"
        )
    plain = type(buffer) is torch.Tensor and type(up) in (torch.Tensor, torch.nn.Parameter)
    records = torch.is_grad_enabled() and (buffer.requires_grad or up.requires_grad)
    if torch.compiler.is_compiling() or _protocol.transformed() or not plain or (records and unwritable(buffer)):
        return torch.cat([buffer[:, :kept], up], 1)
    if records:
        filled: torch.Tensor = _Fill.apply(buffer, up, fresh)  # type: ignore[no-untyped-call,unused-ignore]
        return filled
    buffer.narrow(1, kept, up.shape[1]).copy_(up)
    return buffer


class _Fill(torch.autograd.Function):
    """Writes in place, and keeps nothing for the backward."""

    @staticmethod
    def forward(ctx: Any, buffer: torch.Tensor, up: torch.Tensor, fresh: bool) -> torch.Tensor:
        ctx.kept, ctx.fresh = buffer.shape[1] - up.shape[1], fresh
        buffer.narrow(1, ctx.kept, up.shape[1]).copy_(up)
        ctx.mark_dirty(buffer)
        return buffer

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        of_buffer = grad
        if ctx.needs_input_grad[0] and not ctx.fresh:
            of_buffer = grad.clone()
            of_buffer[:, ctx.kept :] = 0
        return (
            of_buffer if ctx.needs_input_grad[0] else None,
            grad[:, ctx.kept :] if ctx.needs_input_grad[1] else None,
            None,
        )
