"""The layout of a kernel's result, for fake kernels: the rule of is_channels_last in csrc/bindings/torch_common.h."""

from __future__ import annotations

import torch


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether a (N, C, [D,] H, W) tensor steps through memory channels first of all."""
    if tensor.dim() < 4 or tensor.shape[1] == 1 or tensor.stride(1) != 1:
        return False
    pixels = 1
    for size in tensor.shape[2:]:
        pixels *= size
    return pixels > 1 and tensor.stride(-1) >= tensor.shape[1]


def dense_format(tensor: torch.Tensor) -> torch.memory_format:
    """The dense format that is nearest to the layout of ``tensor``: channels-last or contiguous."""
    if not is_channels_last(tensor):
        return torch.contiguous_format
    return torch.channels_last_3d if tensor.dim() == 5 else torch.channels_last
