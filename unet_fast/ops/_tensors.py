"""The vocabulary of tensors that the operators share: layouts, the wide dtype, allocation, biases, autocast.

The rules are those of csrc/bindings/tensor.h. A result is allocated by the operator's fake, wherever Python allocates it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from unet_fast import checks
from unet_fast.dtypes import wide as wide
from unet_fast.errors import InputError


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether a (N, C, [D,] H, W) tensor steps through memory channels first of all.

    Tensors with one channel or one pixel fit both layouts and count as planar.
    """
    if tensor.dim() < 4 or tensor.shape[1] == 1 or tensor.stride(1) != 1:
        return False
    return math.prod(tensor.shape[2:]) > 1 and tensor.stride(-1) >= tensor.shape[1]


def channels_last(dims: int) -> torch.memory_format:
    """The channels-last format of tensors with so many dimensions, 4 or 5."""
    return torch.channels_last_3d if dims == 5 else torch.channels_last


def dense_format(tensor: torch.Tensor) -> torch.memory_format:
    """The dense format that is nearest to the layout of ``tensor``: channels-last or contiguous."""
    return channels_last(tensor.dim()) if is_channels_last(tensor) else torch.contiguous_format


def innermost_dense(tensor: torch.Tensor, last: bool) -> torch.Tensor:
    """The tensor itself where it steps by one element along the innermost dimension of the layout, else a copy that does.

    ``last``: the layout is channels-last.
    """
    dim = 1 if last else -1
    if tensor.shape[dim] <= 1 or tensor.stride(dim) == 1:
        return tensor
    return tensor.contiguous(memory_format=channels_last(tensor.dim()) if last else torch.contiguous_format)


def new(
    like: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """An uninitialised tensor of this shape and layout on the device of ``like``, in its dtype unless one is given."""
    return torch.empty(tuple(shape), dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def wide_bias(bias: torch.Tensor, x: torch.Tensor, channels: int) -> torch.Tensor:
    """A checked bias in the dtype that kernels add it in, :func:`wide`."""
    checks.check_tensor("bias", bias)
    checks.check_dtype("bias", bias, checks.FLOATING)
    checks.check_same_device("x", x, "bias", bias)
    if bias.shape != (channels,):
        raise InputError(f"bias has shape {tuple(bias.shape)}, expected ({channels},), one number a channel")
    return bias.to(wide(x.dtype))


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for this kind of device; meta tensors have none."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype that torch's convolutions would lower ``x`` to: that of autocast where it is on, but for float64."""
    if autocasts(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return None


def autocast_pair(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as :func:`autocast_dtype` says; one dtype, floating, is checked."""
    checks.check_dtype("x", x, checks.FLOATING)
    checks.check_dtype("weight", weight, checks.FLOATING)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight = x.to(dtype), weight.to(dtype)
    checks.check_same_dtype("x", x, "weight", weight)
    return x, weight


def unwritable(tensor: torch.Tensor) -> bool:
    """Whether autograd, while it records, lets nobody write into this tensor: a view, or a leaf that wants a gradient."""
    return tensor._is_view() or (tensor.is_leaf and tensor.requires_grad)
