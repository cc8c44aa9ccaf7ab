"""Centre-crop of a skip connection and its concatenation with the up-sampled tensor, in one pass.

Kernels: csrc/cpu/crop_concat.cpp, csrc/cuda/crop_concat.cu, unet_fast/triton/crop_concat.py;
truth: unet_fast/reference/crop_concat.py.
"""

from __future__ import annotations

from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError
from unet_fast.ops import _backends, _protocol, _record, _tensors
from unet_fast.ops._small_joins import join_by_torch, steps_of_torch
from unet_fast.ops._tolerances import BY_DTYPE, EXACT
from unet_fast.ops.upsample_concat import ORDERS, PADDINGS, check_join, check_padding


@_protocol.public
def crop_concat(
    skip: torch.Tensor, up: torch.Tensor, *, order: str = "skip_first", padding: str | None = None
) -> torch.Tensor:
    """Concatenate the centre of ``skip`` with ``up`` along the channels: the skip connection of a U-Net.

    Args:
        skip: (N, C1, H, W) or (N, C1, D, H, W), the feature map of the contracting path; any dtype, contiguous or
            channels-last or a slice of either.
        up: (N, C2, h, w) or (N, C2, d, h, w) with h <= H, w <= W (d <= D), the up-sampled map of the expanding path;
            same dtype and device. Under autocast the narrower dtype is widened, as ``torch.cat`` does.
        order: "skip_first" or "up_first", which channels come first in the result.
        padding: None crops a larger skip; "zeros" and "replicate" pad ``up`` to its size instead, with zeros or the outermost
            numbers, ``(S - s) // 2`` in front and the rest behind.

    Returns:
        (N, C1 + C2, h, w) or (N, C1 + C2, d, h, w): first the crop of ``skip``, which starts at ``(S - s) // 2`` in
        every spatial dimension (an odd difference loses one more pixel at the far side), then ``up``. Channels-last
        when both inputs are. With another order or a padding, images are joined by the kernels of :func:`upsample_concat` (no
        second derivatives), volumes by torch's own operations. So are small maps and maps that fit each other on a CPU, which torch
        joins sooner, unless a backend is asked for by name.

    Raises:
        InputError: ranks, batch sizes or devices differ, ``skip`` is smaller than ``up``, or an unknown name.
        InputTypeError: not tensors, or different dtypes outside autocast.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), figure 1: "copy and crop".

    Equivalent to::

        y, x = (skip.shape[2] - up.shape[2]) // 2, (skip.shape[3] - up.shape[3]) // 2
        torch.cat([skip[:, :, y : y + up.shape[2], x : x + up.shape[3]], up], dim=1)
    """
    steps = steps_of_torch(
        skip, up, 1, padding
    )  # before the checks below, which take as long as the join of small maps
    if steps is not None:
        if order != "skip_first" or padding is not None:
            checks.check_choice("order", order, ORDERS)
            check_padding(padding)
        return join_by_torch(skip, up, steps, order, padding)
    checks.check_tensor("skip", skip)
    checks.check_tensor("up", up)
    checks.check_rank("skip", skip, (4, 5), "(N, C, H, W) or (N, C, D, H, W)")
    if up.dim() != skip.dim():
        raise InputError(f"skip has {skip.dim()} dimensions but up has {up.dim()}; expected the same number")
    checks.check_same_device("skip", skip, "up", up)
    if skip.dtype != up.dtype:
        if not _tensors.autocasts(skip.device.type):
            checks.check_same_dtype("skip", skip, "up", up)
        wide = torch.promote_types(skip.dtype, up.dtype)
        skip, up = skip.to(wide), up.to(wide)
    if skip.shape[0] != up.shape[0]:
        raise InputError(f"skip has batch size {skip.shape[0]} but up has {up.shape[0]}; expected the same")
    for full, crop in zip(skip.shape[2:], up.shape[2:], strict=True):
        if full < crop:
            raise InputError(
                f"skip of size {tuple(skip.shape[2:])} is smaller than up of size {tuple(up.shape[2:])}; "
                "only a larger or equal map can be cropped: was the order of the arguments swapped?"
            )
    if order != "skip_first" or padding is not None:
        return _other_join(skip, up, order, padding)
    if _backends.choose("crop_concat", skip.device.type) == "reference":
        return reference.crop_concat(skip, up)
    return _record.run(torch.ops.unet_fast.crop_concat, skip, up)


def _other_join(skip: torch.Tensor, up: torch.Tensor, order: str, padding: str | None) -> torch.Tensor:
    """By the operator that up-samples, which joins in both orders and pads; without an up-sampling."""
    if skip.dim() == 5:
        checks.check_choice("order", order, ORDERS)
        check_padding(padding)
        return reference.crop_concat(skip, up, order=order, padding=padding)
    skip, up = check_join(skip, up, "up", 1, order, padding)
    if _backends.choose("upsample_concat", skip.device.type) == "reference":
        return reference.crop_concat(skip, up, order=order, padding=padding)
    return _record.run(torch.ops.unet_fast.upsample_concat, skip, up, 0, order == "up_first", PADDINGS.index(padding))


def _fake(skip: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    shape = [up.shape[0], skip.shape[1] + up.shape[1], *up.shape[2:]]
    return _tensors.new(up, shape, layout=_format(skip, up))


def _fake_backward(grad: torch.Tensor, skip_channels: int, skip_size: list[int]) -> torch.Tensor:
    shape = [grad.shape[0], skip_channels, *skip_size]
    return _tensors.new(grad, shape, layout=_tensors.dense_format(grad))


def _format(skip: torch.Tensor, up: torch.Tensor) -> torch.memory_format:
    """Channels-last for two channels-last tensors; a skip of one channel fits either layout."""
    fits = skip.shape[1] == 1 or _tensors.is_channels_last(skip)
    return _tensors.dense_format(up) if fits else torch.contiguous_format


def _setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    skip, _ = inputs
    ctx.skip_channels, ctx.skip_size = skip.shape[1], list(skip.shape[2:])


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    c1 = ctx.skip_channels
    grad_skip = None
    if ctx.needs_input_grad[0]:
        # without a crop the gradient is a view and costs nothing
        same = list(grad.shape[2:]) == ctx.skip_size
        grad_skip = (
            grad[:, :c1] if same else _record.run(torch.ops.unet_fast.crop_concat_backward, grad, c1, ctx.skip_size)
        )
    return grad_skip, grad[:, c1:] if ctx.needs_input_grad[1] else None


def _setup_context_backward(ctx: Any, inputs: tuple[torch.Tensor, int, list[int]], output: torch.Tensor) -> None:
    ctx.grad_shape = inputs[0].shape


def _double_backward(ctx: Any, grad_skip: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    # the backward is linear: its transpose crops again and leaves the channels of `up` untouched
    n, channels, *size = ctx.grad_shape
    rest = grad_skip.new_zeros([n, channels - grad_skip.shape[1], *size])
    return _record.run(torch.ops.unet_fast.crop_concat, grad_skip, rest), None, None


_record.register(
    _record.Op(
        crop_concat,
        (
            _record.Operator("crop_concat(Tensor skip, Tensor up) -> Tensor", _fake, _backward, _setup_context),
            _record.Operator(
                "crop_concat_backward(Tensor grad, SymInt skip_channels, SymInt[] skip_size) -> Tensor",
                _fake_backward,
                _double_backward,
                _setup_context_backward,
            ),
        ),
        sample=lambda d, n, h, w: (d.image(n, 3, h, w), d.image(n, 2, h - 2, w - 3)),
        tolerance=dict.fromkeys(BY_DTYPE, EXACT),
        leaves=(0, 1),
        second=True,
        # what is cut off is never read
        least_bytes=lambda tensors, outputs: 2 * outputs[0].numel() * outputs[0].element_size(),
    )
)
