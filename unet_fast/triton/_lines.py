"""Exact distances line by line, for the distance ops: what csrc/common/two_nearest.h says, in programs of many pixels.

The first axis is scanned down and up, all its lines abreast, in segments that work at the same time: each first finds
out what a walk through it would know (:func:`summarize_labels`, :func:`summarize_zeros`), then starts its own two walks
with what the segments before and behind it add up to. Along every other axis each pixel looks at its neighbours on both
sides in turn, until the next one is farther away than the second nearest instance known so far; nothing left out could
change the result. The work is a few steps a pixel in images full of cells. What lies beyond 32 steps is passed over in
blocks (:mod:`unet_fast.triton._blocks`). On the CPU lower envelopes work one pixel after the other instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.triton._grid import FAR, Grid

# Steps to a label that is not there; larger than any side.
NO_STEPS = tl.constexpr(1 << 30)
# Stands for every label that is none: negative, or beyond int32.
BAD_LABEL = tl.constexpr(-1)
NO_LIMIT = 1 << 30

_LANES = 64  # lines that a program scans abreast: two rows of 128 bytes in flight for a warp
_LEAST_ROWS = 32  # of a segment; more segments than rows in one would only add up summaries


# ---- the scan

# arguments that vary from call to call: no new compilation for a size that is 1 or a multiple of 16
SIZES = ["length", "lanes", "segments", "rows", "pixels", "stride"]


@triton.jit
def _load_label(labels, offset, inside):
    value = tl.load(labels + offset, mask=inside, other=0).to(tl.int64)
    return tl.where((value < 0) | (value > FAR), BAD_LABEL, value).to(tl.int32)


@triton.jit
def _meet(label1, position1, label2, position2, label, position):
    """The last label met, the last one that differs from it, and where, after one more pixel."""
    present = label != 0
    other = present & (label != label1)
    label2 = tl.where(other, label1, label2)
    position2 = tl.where(other, position1, position2)
    label1 = tl.where(present, label, label1)
    position1 = tl.where(present, position, position1)
    return label1, position1, label2, position2


@triton.jit
def _meet_segment(label1, position1, label2, position2, summary, lanes, inside):
    """The same after a whole segment, of which its two last distinct labels say enough."""
    first = tl.load(summary, mask=inside, other=0)
    first_position = tl.load(summary + lanes, mask=inside, other=0)
    second = tl.load(summary + 2 * lanes, mask=inside, other=0)
    second_position = tl.load(summary + 3 * lanes, mask=inside, other=0)
    label1, position1, label2, position2 = _meet(label1, position1, label2, position2, second, second_position)
    return _meet(label1, position1, label2, position2, first, first_position)


@triton.jit
def _store_summary(summary, label1, position1, label2, position2, lanes, inside):
    tl.store(summary, label1, mask=inside)
    tl.store(summary + lanes, position1, mask=inside)
    tl.store(summary + 2 * lanes, label2, mask=inside)
    tl.store(summary + 3 * lanes, position2, mask=inside)


@triton.jit
def _place(lanes, segments, LANES: tl.constexpr):
    """Image, segment and lines of a program, and the step from one pixel of a line to the next (64 bits, as offsets are)."""
    strips = tl.cdiv(lanes, LANES)
    program = tl.program_id(0)
    lane = program % strips * LANES + tl.arange(0, LANES)
    rest = program // strips
    step = tl.zeros([LANES], tl.int64) + lanes
    return (rest // segments).to(tl.int64), rest % segments, lane, step, lane < lanes


# What the walks down and up a segment would know at its end.
# Bytes: one read of the labels; 32 written a line and segment. Limit: bytes / copy bandwidth.
@triton.jit(do_not_specialize=SIZES)
def summarize_labels(labels, summaries, length, lanes, segments, rows, LANES: tl.constexpr):
    n, segment, lane, step, inside = _place(lanes, segments, LANES)
    begin = segment * rows
    end = tl.minimum(begin + rows, length)
    image = n * length * lanes + lane
    summary = summaries + (n * segments + segment) * 8 * lanes + lane
    none = tl.zeros([LANES], tl.int32)
    l1, p1, l2, p2 = none, none - NO_STEPS, none, none - NO_STEPS
    for y in range(begin, end):
        label = _load_label(labels, image + y * step, inside)
        l1, p1, l2, p2 = _meet(l1, p1, l2, p2, label, y)
    _store_summary(summary, l1, p1, l2, p2, lanes, inside)
    l1, p1, l2, p2 = none, none + NO_STEPS + length, none, none + NO_STEPS + length
    for i in range(begin, end):
        y = begin + end - 1 - i
        label = _load_label(labels, image + y * step, inside)
        l1, p1, l2, p2 = _meet(l1, p1, l2, p2, label, y)
    _store_summary(summary + 4 * lanes, l1, p1, l2, p2, lanes, inside)


# label1, steps1, steps2 <- labels: the nearest label of a pixel's line, the steps to it and to the nearest other one.
# Bytes: the labels read and 12 written a pixel on the way down, 24 on the way up, from the L2 cache where a batch of
# images fits it. Limit: (element + 12 .. 36) bytes / copy bandwidth.
@triton.jit(do_not_specialize=SIZES)
def scan_labels(
    labels, summaries, label1, steps1, steps2, length, lanes, segments, rows, LANES: tl.constexpr
):  # fmt: skip
    n, segment, lane, step, inside = _place(lanes, segments, LANES)
    begin = segment * rows
    end = tl.minimum(begin + rows, length)
    image = n * length * lanes + lane
    summary = summaries + n * segments * 8 * lanes + lane
    none = tl.zeros([LANES], tl.int32)

    l1, p1, l2, p2 = none, none - NO_STEPS, none, none - NO_STEPS
    for before in range(0, segment):
        l1, p1, l2, p2 = _meet_segment(l1, p1, l2, p2, summary + before * 8 * step, lanes, inside)
    for y in range(begin, end):
        offset = image + y * step
        l1, p1, l2, p2 = _meet(l1, p1, l2, p2, _load_label(labels, offset, inside), y)
        tl.store(label1 + offset, l1, mask=inside)
        tl.store(steps1 + offset, y - p1, mask=inside)
        tl.store(steps2 + offset, y - p2, mask=inside)
    tl.debug_barrier()  # the walk up reads what this one wrote, maybe in another thread

    l1, p1, l2, p2 = none, none + NO_STEPS + length, none, none + NO_STEPS + length
    for i in range(segment + 1, segments):
        behind = segments + segment - i
        at = summary + (behind * 8 + 4) * step
        l1, p1, l2, p2 = _meet_segment(l1, p1, l2, p2, at, lanes, inside)
    for i in range(begin, end):
        y = begin + end - 1 - i
        offset = image + y * step
        above = tl.load(label1 + offset, mask=inside, other=0)
        above1 = tl.load(steps1 + offset, mask=inside, other=0)
        above2 = tl.load(steps2 + offset, mask=inside, other=0)
        own = tl.where(above1 == 0, above, 0)
        l1, p1, l2, p2 = _meet(l1, p1, l2, p2, own, y)
        below1, below2 = p1 - y, p2 - y
        nearer = below1 < above1
        second = tl.minimum(tl.where(nearer, below2, above2),
                            tl.where(l1 == above, tl.where(nearer, above2, below2), tl.where(nearer, above1, below1)))  # fmt: skip
        tl.store(label1 + offset, tl.where(nearer, l1, above), mask=inside)
        tl.store(steps1 + offset, tl.minimum(above1, below1), mask=inside)
        tl.store(steps2 + offset, second, mask=inside)


@triton.jit
def _is_zero(mask, offset, inside, SIGNIFICANT: tl.constexpr):
    return (tl.load(mask + offset, mask=inside, other=1) & SIGNIFICANT) == 0


# Where the last and the first zero of a segment lie. Bytes: one read of the mask; 8 written a line and segment.
@triton.jit(do_not_specialize=SIZES)
def summarize_zeros(mask, summaries, length, lanes, segments, rows, SIGNIFICANT: tl.constexpr, LANES: tl.constexpr):
    n, segment, lane, step, inside = _place(lanes, segments, LANES)
    begin = segment * rows
    end = tl.minimum(begin + rows, length)
    image = n * length * lanes + lane
    last = tl.zeros([LANES], tl.int32) - NO_STEPS
    first = tl.zeros([LANES], tl.int32) + NO_STEPS + length
    for y in range(begin, end):
        zero = _is_zero(mask, image + y * step, inside, SIGNIFICANT)
        last = tl.where(zero, y, last)
        first = tl.where(zero, tl.minimum(first, y), first)
    summary = summaries + (n * segments + segment) * 2 * lanes + lane
    tl.store(summary, last, mask=inside)
    tl.store(summary + lanes, first, mask=inside)


# steps <- mask: the steps to the nearest zero of a pixel's line.
# Bytes: the mask read and 4 written a pixel on the way down, 8 on the way up, mostly from the L2 cache.
@triton.jit(do_not_specialize=SIZES)
def scan_zeros(
    mask, summaries, steps, length, lanes, segments, rows, SIGNIFICANT: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    n, segment, lane, step, inside = _place(lanes, segments, LANES)
    begin = segment * rows
    end = tl.minimum(begin + rows, length)
    image = n * length * lanes + lane
    summary = summaries + n * segments * 2 * lanes + lane
    last = tl.zeros([LANES], tl.int32) - NO_STEPS
    for before in range(0, segment):
        last = tl.maximum(last, tl.load(summary + before * 2 * step, mask=inside, other=0))
    for y in range(begin, end):
        offset = image + y * step
        last = tl.where(_is_zero(mask, offset, inside, SIGNIFICANT), y, last)
        tl.store(steps + offset, y - last, mask=inside)
    tl.debug_barrier()  # the walk up reads what this one wrote, maybe in another thread
    first = tl.zeros([LANES], tl.int32) + NO_STEPS + length
    for behind in range(segment + 1, segments):
        first = tl.minimum(first, tl.load(summary + (behind * 2 + 1) * step, mask=inside, other=0))
    for i in range(begin, end):
        y = begin + end - 1 - i
        offset = image + y * step
        above = tl.load(steps + offset, mask=inside, other=0)
        first = tl.where(above == 0, y, first)
        tl.store(steps + offset, tl.minimum(above, first - y), mask=inside)


@dataclass(frozen=True)
class Segments:
    """How the lines of a scan are cut."""

    rows: int
    count: int
    programs: int

    @staticmethod
    def of(grid: Grid) -> Segments:
        # the summaries of all segments before one are added up by that one: as many segments as rows in each at most
        rows = max(_LEAST_ROWS, math.isqrt(grid.scan))
        count = triton.cdiv(grid.scan, rows)
        return Segments(rows, count, grid.batch * count * triton.cdiv(grid.lanes, _LANES))

    def workspace(self, grid: Grid, values: int, like: Tensor) -> Tensor:
        """Memory for ``values`` int32 numbers a line and segment; none where one segment is all."""
        count = grid.batch * self.count * values * grid.lanes if self.count > 1 else 0
        return torch.empty(count, dtype=torch.int32, device=like.device)


def label_planes(grid: Grid, labels: Tensor, steps1: Tensor, steps2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """label1, steps1, steps2 of the scan; the last two are the memory given."""
    segments = Segments.of(grid)
    summaries = segments.workspace(grid, 8, labels)
    label1 = torch.empty(labels.shape, dtype=torch.int32, device=labels.device)
    sizes = (grid.scan, grid.lanes, segments.count, segments.rows)
    launch = (segments.programs,)
    if segments.count > 1:
        summarize_labels[launch](labels, summaries, *sizes, LANES=_LANES, num_warps=1)
    scan_labels[launch](labels, summaries, label1, steps1, steps2, *sizes, LANES=_LANES, num_warps=1)
    return label1, steps1, steps2


def zero_steps(grid: Grid, mask: Tensor, significant: int, steps: Tensor) -> Tensor:
    """``steps`` of the scan for zeros, an int32 tensor."""
    segments = Segments.of(grid)
    summaries = segments.workspace(grid, 2, mask)
    sizes = (grid.scan, grid.lanes, segments.count, segments.rows)
    launch = (segments.programs,)
    if segments.count > 1:
        summarize_zeros[launch](mask, summaries, *sizes, SIGNIFICANT=significant, LANES=_LANES, num_warps=1)
    scan_zeros[launch](mask, summaries, steps, *sizes, SIGNIFICANT=significant, LANES=_LANES, num_warps=1)
    return steps


# ---- along the other axes


@triton.jit
def far_of(COST: tl.constexpr):
    return FAR if COST == tl.int32 else float("inf")


@triton.jit
def square(steps, WEIGHT: tl.constexpr, COST: tl.constexpr):
    """The cost of so many steps along an axis."""
    if COST == tl.int32:
        return steps * steps
    else:
        wide = steps.to(tl.float64)
        return wide * wide * tl.full([], WEIGHT, tl.float64)


@triton.jit
def load_cost(source, offset, inside, limit, WEIGHT: tl.constexpr, COST: tl.constexpr, STEPS: tl.constexpr):
    """The cost at a pixel, out of the steps of the scan where STEPS; far from ``limit`` steps on."""
    if STEPS:
        steps = tl.load(source + offset, mask=inside, other=NO_STEPS)
        near = steps < limit
        return tl.where(near, square(tl.where(near, steps, 0), WEIGHT, COST), far_of(COST))
    else:
        return tl.load(source + offset, mask=inside, other=far_of(COST))


@triton.jit
def further(cost, more, COST: tl.constexpr):
    """Their sum; far stays far."""
    if COST == tl.int32:
        return cost + tl.where(cost < FAR, more, 0)
    else:
        return cost + more


@triton.jit
def _offer(d1, label, d2, c1, other, c2):
    """The two nearest distinct labels, with one more column that knows its own two."""
    same = other == label
    nearer = c1 < d1
    d2 = tl.where(same, tl.minimum(c2, d2), tl.minimum(tl.where(nearer, d1, c1), tl.where(nearer, c2, d2)))
    return tl.where(nearer, c1, d1), tl.where(nearer, other, label), d2


@triton.jit
def look_at(
    cost1, cost2, labels, pixel, seen, here, limit, d1, label, d2,
    SCAN: tl.constexpr, COST: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The two nearest after one more pixel, ``here`` away, where it is ``seen``."""
    c1 = further(load_cost(cost1, pixel, seen, limit, SCAN, COST, STEPS), here, COST)
    near = seen & (c1 < d2)  # else it can change nothing, and need not be loaded
    c2 = further(load_cost(cost2, pixel, near, limit, SCAN, COST, STEPS), here, COST)
    c1 = tl.where(near, c1, far_of(COST))
    return _offer(d1, label, d2, c1, tl.load(labels + pixel, mask=near, other=0), c2)


@triton.jit
def look_both_ways(
    cost1, cost2, labels, pixel, inside, place, length, stride, limit, wanted, half, half_square, furthest,
    SCAN: tl.constexpr, WEIGHT: tl.constexpr, COST: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Squared distances d1, d2 and the label of the first, of pixels at ``place`` of lines of ``length`` pixels.

    Pixels that are not ``wanted`` may be left with too large values, and so may those with d1 > half_square, once
    ``half`` steps are done. Nothing farther than ``furthest`` steps is looked at.
    """
    d1 = load_cost(cost1, pixel, inside, limit, SCAN, COST, STEPS)
    d2 = load_cost(cost2, pixel, inside, limit, SCAN, COST, STEPS)
    label = tl.load(labels + pixel, mask=inside, other=0)
    wanted = wanted & inside
    steps = tl.full([], 1, tl.int32)
    more = tl.full([], 1, tl.int32)
    longest = tl.minimum(furthest, length - 1)
    while (more > 0) & (steps <= longest):
        here = square(steps, WEIGHT, COST)
        for side in tl.static_range(2):
            offset = steps if side == 1 else -steps
            there = place + offset
            other = pixel + offset.to(tl.int64) * stride
            seen = wanted & (there >= 0) & (there < length)
            d1, label, d2 = look_at(cost1, cost2, labels, other, seen, here, limit, d1, label, d2, SCAN, COST, STEPS)
        steps += 1
        unknown = wanted & (square(steps, WEIGHT, COST) < d2)
        unknown = unknown & ((steps <= half) | (d1 <= half_square))
        more = tl.max(unknown.to(tl.int32), axis=0)
    return d1, label, d2


@triton.jit
def pixels_of_program(all_pixels, length, stride, BLOCK: tl.constexpr):
    """Which pixels a program has, and their places on their lines."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return pixel, pixel < all_pixels, (pixel // stride % length).to(tl.int32)


@triton.jit
def store_distance(target, pixel, inside, squared, SCALE: tl.constexpr, COST: tl.constexpr, poison):
    """The root, in float64, so that that of an exact square is the float32 nearest to the true distance."""
    distance = tl.sqrt(squared.to(tl.float64)) * tl.full([], SCALE, tl.float64)
    result = tl.where(squared < far_of(COST), distance.to(tl.float32), float("inf"))
    tl.store(target + pixel, tl.where(poison, float("nan"), result), mask=inside)
