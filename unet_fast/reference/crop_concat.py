"""Centre-crop (or padding) and concatenation, as every U-Net in plain PyTorch does it."""

from __future__ import annotations

import torch

from unet_fast.reference.upsample_concat import joined


def crop_concat(
    skip: torch.Tensor, up: torch.Tensor, *, order: str = "skip_first", padding: str | None = None
) -> torch.Tensor:
    """``torch.cat`` of the centred crop of ``skip`` and ``up``; start = (S - s) // 2 in every spatial dimension."""
    return joined(skip, up, order, padding)
