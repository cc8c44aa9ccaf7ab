"""distance_transform: the scan of :mod:`unet_fast.triton._lines`, then the other axes, one after the other."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _record
from unet_fast.triton import _blocks, _grid, _lines
from unet_fast.triton._blocks import look_at_least
from unet_fast.triton._lines import further, load_cost, pixels_of_program, square, store_distance

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


# One axis: the least squared distance of every line. ROOTS: distances instead of costs, for the last axis.
# Bytes: 4 read a pixel (8 from float64 costs) and 4 or 8 written; neighbours come from the L1 cache. Limit: their sum /
# copy bandwidth where zeros are dense; the looking around takes over where they are far.
@triton.jit(do_not_specialize=[*_lines.SIZES, "near_steps"])
def smallest_along(
    cost, kept, out, pixels, length, stride, near_steps, SCAN: tl.constexpr, WEIGHT: tl.constexpr, SCALE: tl.constexpr,
    COST: tl.constexpr, STEPS: tl.constexpr, ROOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel, inside, place = pixels_of_program(pixels, length, stride, BLOCK)
    nearest = load_cost(cost, pixel, inside, _lines.NO_STEPS, SCAN, COST, STEPS)
    steps = tl.full([], 1, tl.int32)
    more = tl.full([], 1, tl.int32)
    while (more > 0) & (steps <= near_steps):
        here = square(steps, WEIGHT, COST)
        for side in tl.static_range(2):
            offset = steps if side == 1 else -steps
            there = place + offset
            seen = inside & (there >= 0) & (there < length) & (here < nearest)
            other = load_cost(
                cost, pixel + offset.to(tl.int64) * stride, seen, _lines.NO_STEPS, SCAN, COST, STEPS
            )  # fmt: skip
            nearest = tl.minimum(nearest, further(other, here, COST))
        steps += 1
        unknown = inside & (square(steps, WEIGHT, COST) < nearest)
        more = tl.max(unknown.to(tl.int32), axis=0)
    if kept is not None:
        nearest = look_at_least(
            cost, kept, pixel, inside, place, length, stride, nearest, SCAN, WEIGHT, COST, STEPS
        )  # fmt: skip
    if ROOTS:
        store_distance(out, pixel, inside, nearest, SCALE, COST, nearest < 0)
    else:
        tl.store(out + pixel, nearest, mask=inside)


def distance_transform(mask: Tensor, spacing: list[float]) -> Tensor:
    """As torch.ops.unet_fast.distance_transform.

    Workspace: 4 bytes a pixel for images; for volumes 4, or 8 where squared distances are no integers (the steps of the
    scan then lie in the memory of the result); for the summaries of the segments a quarter of a byte a pixel or less.
    """
    mask = mask.contiguous()
    grid = _grid.grid_of(mask, spacing)
    out = _record.allocate("distance_transform", mask, spacing)
    if not mask.numel():
        return out
    # the sign of a floating-point zero says nothing
    bits = 8 * mask.element_size()
    significant = 2 ** (bits - 1) - 1 if mask.dtype.is_floating_point else -1
    volume = grid.middle > 1
    steps = out.view(torch.int32) if volume else torch.empty(mask.shape, dtype=torch.int32, device=mask.device)
    cost = _lines.zero_steps(grid, mask.view(_INTEGERS[mask.element_size()]), significant, steps)
    pixels = mask.numel()
    blocks = (triton.cdiv(pixels, _grid.BLOCK),)
    options = grid.options

    def run(plane: Tensor, target: Tensor, length: int, stride: int, last: bool) -> None:
        steps = not (volume and last)
        kinds = {name: options[name] for name in ("SCAN", "COST", "BLOCK", "num_warps")} | {"STEPS": steps}
        (kept,) = _blocks.keep(_blocks.keep_one, (plane,), (grid.cost,), length, stride, **kinds)
        weight = grid.last_weight if last else grid.middle_weight
        smallest_along[blocks](
            plane, kept, target, pixels, length, stride, length - 1 if kept is None else _blocks.KEPT.value,
            WEIGHT=weight, STEPS=steps, ROOTS=last, **options,
        )  # fmt: skip

    if volume:
        middle = torch.empty(mask.shape, dtype=grid.cost, device=mask.device)
        run(cost, middle, grid.middle, grid.last, last=False)
        cost = middle
    run(cost, out, grid.last, 1, last=True)
    return out


KERNELS: dict[str, Any] = {"distance_transform": distance_transform}
