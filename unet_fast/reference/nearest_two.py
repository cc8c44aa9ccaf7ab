"""The two nearest instances by one distance transform for each instance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unet_fast.distance_options import spacing_of
from unet_fast.reference.distance_transform import squared_distance


def nearest_two(instances: Tensor, *, spacing: float | Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
    """See :func:`unet_fast.ops.nearest_two`."""
    steps = spacing_of(spacing, instances.dim() - 1)
    labels = instances.to(torch.int64)
    first = torch.full(labels.shape, torch.inf, dtype=torch.float64, device=labels.device)
    second = first.clone()
    for n in range(labels.shape[0]):
        for label in labels[n].unique().tolist():
            if label == 0:
                continue
            here = squared_distance(labels[n : n + 1] != label, steps)[0]
            second[n] = torch.minimum(second[n], torch.maximum(first[n], here))
            first[n] = torch.minimum(first[n], here)
    return first.sqrt().to(torch.float32), second.sqrt().to(torch.float32)
