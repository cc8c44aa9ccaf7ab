"""weight_map: the scan of :mod:`unet_fast.triton._lines`, then the rows, which end in the weight: d1 and d2 are never stored."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _instances, _record
from unet_fast.triton import _grid, _lines
from unet_fast.triton._lines import far_of, look_both_ways, pixels_of_program

# d1 + d2 beyond this many sigma makes the border term less than 1e-7 w0 (csrc/common/border_weight.h)
_BORDER_REACH = 5.7
_LARGEST = 2**31 - 1


# Bytes: 12 read a pixel and 4 written; neighbours come from the L1 cache. Limit: 16 bytes / copy bandwidth; at the
# default sigma a pixel looks at most at 28 columns on either side.
@triton.jit(do_not_specialize=[*_lines.SIZES, "area", "limit", "half", "half_square", "image_step"])
def weigh_rows(
    steps1, steps2, label, class_weights, out, pixels, length, area, limit, half, half_square, image_step, w0, scale,
    CLASSES: tl.constexpr, INSIDE: tl.constexpr, COST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel, here, place = pixels_of_program(pixels, length, 1, BLOCK)
    cells = tl.load(steps1 + pixel, mask=here, other=1) == 0
    wanted = here if INSIDE else here & (cells == 0)
    d1, near, d2 = look_both_ways(
        steps1, steps2, label, pixel, here, place, length, 1, limit, wanted, half, half_square, limit - 1, 1.0, 1.0,
        COST, True,
    )  # fmt: skip
    both = tl.sqrt(d1.to(tl.float32)) + tl.sqrt(d2.to(tl.float32))
    term = tl.where(wanted & (d2 < far_of(COST)), w0 * tl.exp(scale * (both * both)), 0.0)
    if CLASSES:
        pair = class_weights + pixel // area * image_step
        weight = tl.load(pair + cells.to(tl.int32), mask=here, other=0.0) + term
    else:
        weight = 1.0 + term
    tl.store(out + pixel, tl.where(near < 0, float("nan"), weight), mask=here)


def weight_map(
    instances: Tensor, w0: float, sigma: float, class_weights: Tensor | None, balanced: bool, inside: bool
) -> Tensor:
    """As torch.ops.unet_fast.weight_map.

    Workspace: 12 bytes a pixel, 1 or less for the summaries of the segments, and 1 to count the pixels of the classes.
    """
    if instances.device.type == "cpu":  # interpreted; a GPU would have to be waited for
        _instances.check_labels(instances)
    labels = instances.contiguous()
    grid = _grid.grid_of(labels, [1.0, 1.0])
    out = _record.allocate("weight_map", labels, w0, sigma, class_weights, balanced, inside)
    if not labels.numel():
        return out
    planes = (torch.empty(labels.shape, dtype=torch.int32, device=labels.device) for _ in range(2))
    label, steps1, steps2 = _lines.label_planes(grid, labels, *planes)
    weights = _balanced(labels) if balanced else class_weights
    weights = None if weights is None else weights.contiguous()
    reach = _BORDER_REACH * sigma
    # d1 <= d2: once half the reach has been searched, pixels without a cell that near are done
    restrict = reach * reach / 4 < _LARGEST
    weigh_rows[(triton.cdiv(labels.numel(), _grid.BLOCK),)](
        steps1, steps2, label, out if weights is None else weights, out, labels.numel(), grid.last, grid.pixels,
        math.floor(min(reach + 1, _lines.NO_LIMIT)), math.floor(reach / 2) if restrict else _LARGEST,
        math.floor(reach * reach / 4) if restrict else _LARGEST, 2 if balanced else 0, w0, -0.5 / (sigma * sigma),
        CLASSES=weights is not None, INSIDE=inside, COST=tl.int32 if grid.integral else tl.float64,
        BLOCK=_grid.BLOCK, num_warps=_grid.BLOCK // 32,
    )  # fmt: skip
    return out


def _balanced(labels: Tensor) -> Tensor:
    """(N, 2) pixels / (classes present * pixels of the class); whole numbers are added up, in any order the same."""
    pixels = labels[0].numel()
    cells = (labels != 0).sum((1, 2))
    counts = torch.stack((pixels - cells, cells), 1)
    classes = (counts > 0).sum(1, keepdim=True)
    return (pixels / (classes * counts.clamp(min=1)).double()).float()


KERNELS: dict[str, Any] = {"weight_map": weight_map}
