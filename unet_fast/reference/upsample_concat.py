"""Up-sampling, then padding or a crop, then concatenation: what networks in plain PyTorch do one after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_fast.dtypes import wide


def upsample_concat(
    skip: Tensor,
    x: Tensor,
    *,
    mode: str = "nearest",
    align_corners: bool = False,
    order: str = "skip_first",
    padding: str | None = None,
) -> Tensor:
    """See :func:`unet_fast.ops.upsample_concat`. Differentiable any number of times."""
    if mode == "bilinear":
        size = (2 * x.shape[2], 2 * x.shape[3])
        up = F.interpolate(x.to(wide(x.dtype)), size=size, mode="bilinear", align_corners=align_corners).to(x.dtype)
    else:
        up = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return joined(skip, up, order, padding)


def joined(skip: Tensor, up: Tensor, order: str, padding: str | None) -> Tensor:
    """A skip and a map that is not larger, of any number of dimensions, by their order and padding."""
    for dim in range(2, skip.dim()):
        full, part = skip.shape[dim], up.shape[dim]
        start = (full - part) // 2
        if padding is None:
            skip = skip.narrow(dim, start, part)
        elif padding == "replicate" and full > 0:
            up = up.index_select(dim, (torch.arange(full, device=up.device) - start).clamp(0, part - 1))
        elif full > part:
            sizes = [[*up.shape[:dim], count, *up.shape[dim + 1 :]] for count in (start, full - part - start)]
            up = torch.cat([up.new_zeros(sizes[0]), up, up.new_zeros(sizes[1])], dim)
    return torch.cat([up, skip] if order == "up_first" else [skip, up], 1)
