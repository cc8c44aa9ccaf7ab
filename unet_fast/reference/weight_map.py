"""The U-Net's loss weight from the two distances, term by term."""

from __future__ import annotations

import torch
from torch import Tensor

from unet_fast.reference.nearest_two import nearest_two


def weight_map(
    instances: Tensor,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: str | Tensor | None = None,
    inside: bool = False,
) -> Tensor:
    """See :func:`unet_fast.ops.weight_map`."""
    instances = instances.to(torch.int64)
    cells = instances != 0
    d1, d2 = nearest_two(instances)
    border = w0 * torch.exp(-((d1 + d2) ** 2) / (2 * sigma**2))  # exp(-inf) is 0: fewer than two instances
    if not inside:
        border = border.masked_fill(cells, 0.0)
    if isinstance(class_weights, Tensor):
        w_background, w_cells = class_weights.detach().to(torch.float32)
        return torch.where(cells, w_cells, w_background) + border
    if class_weights == "balanced":
        return balanced_class_weights(cells) + border
    return 1.0 + border


def balanced_class_weights(cells: Tensor) -> Tensor:
    """Per image: pixels / (classes present * pixels of the class), whose mean over the image is 1."""
    dims = tuple(range(1, cells.dim()))
    total = cells[0].numel() if cells.shape[0] else 0
    count_cells = cells.sum(dims, keepdim=True, dtype=torch.float64)
    count_background = total - count_cells
    classes = (count_cells > 0).double() + (count_background > 0).double()
    weight = total / (classes * torch.where(cells, count_cells, count_background))
    return weight.to(torch.float32)
