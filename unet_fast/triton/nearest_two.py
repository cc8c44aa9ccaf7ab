"""nearest_two: the scan of :mod:`unet_fast.triton._lines`, then the other axes, one after the other."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _instances, _record, _tensors
from unet_fast.triton import _blocks, _grid, _lines
from unet_fast.triton._blocks import look_at_blocks
from unet_fast.triton._lines import look_both_ways, pixels_of_program, store_distance


# One axis: the two nearest distinct labels of every line. ROOTS: distances instead of costs and label, for the last axis.
# Bytes: 12 read a pixel (20 from float64 costs) and 8 to 20 written; neighbours come from the L1 cache. Limit: their sum
# / copy bandwidth for dense labels; the looking around takes over where the gaps are wide.
@triton.jit(do_not_specialize=[*_lines.SIZES, "near_steps"])
def nearest_along(
    cost1, cost2, label, kept1, kept_label, kept2, out1, out2, out_label, pixels, length, stride, near_steps,
    SCAN: tl.constexpr, WEIGHT: tl.constexpr, SCALE: tl.constexpr, COST: tl.constexpr, STEPS: tl.constexpr, ROOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel, inside, place = pixels_of_program(pixels, length, stride, BLOCK)
    d1, near, d2 = look_both_ways(
        cost1, cost2, label, pixel, inside, place, length, stride, _lines.NO_STEPS, inside, length, 0, near_steps,
        SCAN, WEIGHT, COST, STEPS,
    )  # fmt: skip
    if kept1 is not None:
        d1, near, d2 = look_at_blocks(
            cost1, cost2, label, kept1, kept_label, kept2, pixel, inside, place, length, stride, d1, near, d2,
            SCAN, WEIGHT, COST, STEPS,
        )  # fmt: skip
    if ROOTS:
        store_distance(out1, pixel, inside, d1, SCALE, COST, near < 0)
        store_distance(out2, pixel, inside, d2, SCALE, COST, near < 0)
    else:
        tl.store(out1 + pixel, d1, mask=inside)
        tl.store(out2 + pixel, d2, mask=inside)
        tl.store(out_label + pixel, near, mask=inside)


def nearest_two(instances: Tensor, spacing: list[float]) -> tuple[Tensor, Tensor]:
    """As torch.ops.unet_fast.nearest_two.

    Workspace: 12 bytes a pixel for images; for volumes 16, or 24 where squared distances are no integers (the steps of
    the scan then lie in the memory of the result); for the summaries of the segments 1 byte a pixel or less.
    """
    if instances.device.type == "cpu":  # interpreted; a GPU would have to be waited for
        _instances.check_labels(instances)
    labels = instances.contiguous()
    grid = _grid.grid_of(labels, spacing)
    d1, d2 = _record.allocate("nearest_two", labels, spacing)
    new = functools.partial(_tensors.new, labels, labels.shape)
    if not labels.numel():
        return d1, d2
    volume = grid.middle > 1
    steps = (d1.view(torch.int32), d2.view(torch.int32)) if volume else (new(torch.int32), new(torch.int32))
    label, cost1, cost2 = _lines.label_planes(grid, labels, *steps)
    pixels = labels.numel()
    blocks = (triton.cdiv(pixels, _grid.BLOCK),)
    options = grid.options

    def run(planes: tuple[Tensor, ...], out: tuple[Tensor, ...], length: int, stride: int, last: bool) -> None:
        steps = not (volume and last)
        kinds = {name: options[name] for name in ("SCAN", "COST", "BLOCK", "num_warps")} | {"STEPS": steps}
        dtypes = (grid.cost, torch.int32, grid.cost)
        kept = _blocks.keep(_blocks.keep_two, planes, dtypes, length, stride, **kinds)
        weight = grid.last_weight if last else grid.middle_weight
        nearest_along[blocks](
            *planes, *kept, *out, pixels, length, stride, length if kept[0] is None else _blocks.KEPT.value,
            WEIGHT=weight, STEPS=steps, ROOTS=last, **options,
        )  # fmt: skip

    planes = (cost1, cost2, label)
    if volume:
        between = new(grid.cost), new(grid.cost), new(torch.int32)
        run(planes, between, grid.middle, grid.last, last=False)
        planes = between
    run(planes, (d1, d2, d1), grid.last, 1, last=True)
    return d1, d2


KERNELS: dict[str, Any] = {"nearest_two": nearest_two}
