"""Centre-crop (or padding) and concatenation, as every U-Net in plain PyTorch does it."""

from __future__ import annotations

from torch import Tensor

from unet_fast.reference.upsample_concat import joined


def crop_concat(skip: Tensor, up: Tensor, *, order: str = "skip_first", padding: str | None = None) -> Tensor:
    """``torch.cat`` of the centred crop of ``skip`` and ``up``; start = (S - s) // 2 in every spatial dimension."""
    return joined(skip, up, order, padding)
