"""Exact Euclidean distances by taking the minimum over all pixels of an axis, one axis after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unet_fast.distance_options import spacing_of


def distance_transform(mask: Tensor, *, spacing: float | Sequence[float] | None = None) -> Tensor:
    """See :func:`unet_fast.ops.distance_transform`."""
    squared = squared_distance(mask != 0, spacing_of(spacing, mask.dim() - 1))
    return squared.sqrt().to(torch.float32)


def squared_distance(mask: Tensor, spacing: Sequence[float]) -> Tensor:
    """Squared distance to the nearest False, in float64: min over j of d[j] + (step * (x - j))^2 along each axis."""
    squared = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    squared = squared.masked_fill(mask, torch.inf)
    for axis, step in enumerate(spacing, start=1):
        positions = step * torch.arange(mask.shape[axis], dtype=torch.float64, device=mask.device)
        shape = [1] * mask.dim()
        shape[axis] = -1
        nearest = torch.full_like(squared, torch.inf)
        for j in range(mask.shape[axis]):
            offset = ((positions - positions[j]) ** 2).reshape(shape)
            nearest = torch.minimum(nearest, squared.narrow(axis, j, 1) + offset)
        squared = nearest
    return squared
