"""What a search along a line passes over, for the distance ops: csrc/cuda/distance_search.h in programs of many pixels.

Beyond 32 steps a line is looked at in blocks of 32 pixels, of each of which a pass beforehand has kept the nearest two labels
(or the least cost). A block that could change nothing even if all of it lay on its near end costs one look.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.triton import _grid, _lines
from unet_fast.triton._lines import far_of, further, load_cost, look_at, square

KEPT = tl.constexpr(32)  # pixels of a block
LEAST = 128  # a line of fewer pixels has no blocks: it is soon done


@triton.jit
def _pixels_of_block(length, stride, count, BLOCK: tl.constexpr):
    """The number of each block of this program, which exist, its first place on its line, and the pixel at place 0."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_line = tl.cdiv(length, KEPT)
    row = at // stride
    outer = row // in_line
    first = ((row - outer * in_line) * KEPT).to(tl.int32)
    return at, at < count, first, outer * length * stride + (at - row * stride)


# Bytes: a pixel read once (12 or, from float64 costs, 20), 12 or 20 written for 32 of them; limit: those / copy bandwidth.
@triton.jit(do_not_specialize=[*_lines.SIZES, "count"])
def keep_two(
    cost1, cost2, labels, kept1, kept_label, kept2, count, length, stride,
    SCAN: tl.constexpr, COST: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, exists, first, start = _pixels_of_block(length, stride, count, BLOCK)
    d1 = tl.full([BLOCK], far_of(COST), COST)
    d2 = tl.full([BLOCK], far_of(COST), COST)
    label = tl.zeros([BLOCK], tl.int32)
    for i in range(0, KEPT):
        place = first + i
        pixel, seen = start + place.to(tl.int64) * stride, exists & (place < length)
        d1, label, d2 = look_at(cost1, cost2, labels, pixel, seen, 0, _lines.NO_STEPS, d1, label, d2, SCAN, COST, STEPS)
    tl.store(kept1 + at, d1, mask=exists)
    tl.store(kept_label + at, label, mask=exists)
    tl.store(kept2 + at, d2, mask=exists)


@triton.jit(do_not_specialize=[*_lines.SIZES, "count"])
def keep_one(
    cost, kept, count, length, stride,
    SCAN: tl.constexpr, COST: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, exists, first, start = _pixels_of_block(length, stride, count, BLOCK)
    least = tl.full([BLOCK], far_of(COST), COST)
    for i in range(0, KEPT):
        place = first + i
        pixel, seen = start + place.to(tl.int64) * stride, exists & (place < length)
        least = tl.minimum(least, load_cost(cost, pixel, seen, _lines.NO_STEPS, SCAN, COST, STEPS))
    tl.store(kept + at, least, mask=exists)


@triton.jit
def first_block(pixel, length, stride):
    """The first block of each pixel's line; those of a line are ``stride`` apart."""
    line = pixel // stride
    return (line // length) * tl.cdiv(length, KEPT) * stride + (pixel - line * stride)


@triton.jit
def block_at(place, edge, wanted, length, limit, WEIGHT: tl.constexpr, COST: tl.constexpr):
    """The block that ``edge`` lies in, the cost of the way to it, and for which pixels it is near enough to be looked up."""
    distance = square(edge - place, WEIGHT, COST)
    near = wanted & (edge >= 0) & (edge < length) & (distance < limit)
    return tl.maximum(edge, 0) // KEPT, distance, near


@triton.jit
def in_block(block, i, side: tl.constexpr, edge, place, length, limit, WEIGHT: tl.constexpr, COST: tl.constexpr):
    """Place i of the block, from near to far, the cost of the way to it, and for which pixels it is to be looked at."""
    there = block * KEPT + (i if side == 1 else KEPT - 1 - i)
    here = square(there - place, WEIGHT, COST)
    ahead = (there >= edge) if side == 1 else (there <= edge)
    return there, here, ahead & (there < length) & (here < limit)


@triton.jit
def beyond(edge, block, near, side: tl.constexpr):
    """Where the next block begins; a pixel that has seen enough stays where it is."""
    return tl.where(near, block * KEPT + (KEPT if side == 1 else -1), edge)


@triton.jit
def look_at_blocks(
    cost1, cost2, labels, kept1, kept_label, kept2, pixel, wanted, place, length, stride, d1, label, d2,
    SCAN: tl.constexpr, WEIGHT: tl.constexpr, COST: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """d1, label, d2 after all that lies farther than 32 steps."""
    start = first_block(pixel, length, stride)
    left, right = place - (KEPT + 1), place + (KEPT + 1)
    more = tl.full([], 1, tl.int32)
    while more > 0:
        more = tl.full([], 0, tl.int32)
        for side in tl.static_range(2):
            edge = right if side == 1 else left
            block, distance, near = block_at(place, edge, wanted, length, d2, WEIGHT, COST)
            at = start + block.to(tl.int64) * stride
            c1 = further(tl.load(kept1 + at, mask=near, other=far_of(COST)), distance, COST)
            c2 = further(tl.load(kept2 + at, mask=near, other=far_of(COST)), distance, COST)
            same = tl.load(kept_label + at, mask=near, other=0) == label
            matters = near & tl.where(same, (c1 < d1) | (c2 < d2), c1 < d2)
            if tl.max(matters.to(tl.int32), axis=0) > 0:
                for i in range(0, KEPT):
                    there, here, ahead = in_block(block, i, side, edge, place, length, d2, WEIGHT, COST)
                    other = pixel + (there - place).to(tl.int64) * stride
                    d1, label, d2 = look_at(
                        cost1, cost2, labels, other, matters & ahead, here, _lines.NO_STEPS, d1, label, d2, SCAN, COST,
                        STEPS,
                    )  # fmt: skip
            if side == 1:
                right = beyond(edge, block, near, side)
            else:
                left = beyond(edge, block, near, side)
            more = tl.maximum(more, tl.max(near.to(tl.int32), axis=0))
    return d1, label, d2


@triton.jit
def look_at_least(
    cost, kept, pixel, wanted, place, length, stride, least,
    SCAN: tl.constexpr, WEIGHT: tl.constexpr, COST: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The least cost after all that lies farther than 32 steps."""
    start = first_block(pixel, length, stride)
    left, right = place - (KEPT + 1), place + (KEPT + 1)
    more = tl.full([], 1, tl.int32)
    while more > 0:
        more = tl.full([], 0, tl.int32)
        for side in tl.static_range(2):
            edge = right if side == 1 else left
            block, distance, near = block_at(place, edge, wanted, length, least, WEIGHT, COST)
            at = start + block.to(tl.int64) * stride
            matters = near & (further(tl.load(kept + at, mask=near, other=far_of(COST)), distance, COST) < least)
            if tl.max(matters.to(tl.int32), axis=0) > 0:
                for i in range(0, KEPT):
                    there, here, ahead = in_block(block, i, side, edge, place, length, least, WEIGHT, COST)
                    other = pixel + (there - place).to(tl.int64) * stride
                    found = load_cost(cost, other, matters & ahead, _lines.NO_STEPS, SCAN, COST, STEPS)
                    least = tl.minimum(least, further(found, here, COST))
            if side == 1:
                right = beyond(edge, block, near, side)
            else:
                left = beyond(edge, block, near, side)
            more = tl.maximum(more, tl.max(near.to(tl.int32), axis=0))
    return least


def keep(
    kernel: Any, planes: tuple[Tensor, ...], dtypes: tuple[torch.dtype, ...], length: int, stride: int, **options: Any
) -> tuple[Tensor | None, ...]:
    """What ``kernel`` keeps of the blocks of lines of so many pixels: a tensor a dtype, or None where lines are short."""
    if length <= LEAST:
        return (None,) * len(dtypes)
    count = planes[0].numel() // length * triton.cdiv(length, KEPT.value)
    kept = tuple(torch.empty(count, dtype=dtype, device=planes[0].device) for dtype in dtypes)
    kernel[(triton.cdiv(count, _grid.BLOCK),)](*planes, *kept, count, length, stride, **options)
    return kept
