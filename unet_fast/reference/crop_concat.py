"""Centre-crop and concatenation, as every U-Net in plain PyTorch does it."""

from __future__ import annotations

import torch


def crop_concat(skip: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``torch.cat`` of the centred crop of ``skip`` and ``up``; start = (S - s) // 2 in every spatial dimension."""
    window = [slice(None), slice(None)]
    for full, crop in zip(skip.shape[2:], up.shape[2:], strict=True):
        start = (full - crop) // 2
        window.append(slice(start, start + crop))
    return torch.cat([skip[tuple(window)], up], dim=1)
