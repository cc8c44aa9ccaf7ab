"""upsample_concat and its backward: one program a tile of the joined map, written once, whatever the layout.

Rows and columns of a tile are those of the result in memory: (N C H, W) where it is planar, (N H W, C) where it is channels-last. Which
number of which map an element takes is worked out once a row or column of the tile. A number of the up-sampled map comes from one
place of ``x``, or four; its gradient goes the other way, gathered, so that no sum has an order of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from unet_fast.ops import _record, _tensors
from unet_fast.triton import _junction

NONE = tl.constexpr(0)  # in the order of csrc/common/upsample_concat.h
NEAREST = tl.constexpr(1)
BILINEAR = tl.constexpr(2)
ZEROS = tl.constexpr(1)
REPLICATE = tl.constexpr(2)

_UNITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_TILE = 1024  # numbers of one program
_GATHERED = 256  # of the backward: two for each thread, whose places and weights along both axes take registers
_SIZES = ["channels", "out_height", "out_width", "height", "width"]


@triton.jit
def _places(
    rows, columns, channels, height, width, LAST: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Row and column of a tile in memory, which exist, and n, c, y, x of each of its numbers."""
    tiles_x = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0)
    row = (program // tiles_x).to(INDEX) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (program % tiles_x) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    exists = (row < rows) & (column < columns)
    if LAST:
        x = row % width
        rest = row // width
        y = rest % height
        n = rest // height
        c = column
    else:
        x = column
        y = row % height
        rest = row // height
        c = rest % channels
        n = rest // channels
    return row.to(tl.int64), column, exists, n.to(tl.int64), c.to(tl.int64), y.to(tl.int64), x.to(tl.int64)


@triton.jit
def _taps(at, size, MODE: tl.constexpr, SUMS: tl.constexpr):
    """The two places along an axis of ``size`` that number ``at`` of the up-sampled map takes, and the weight of the second."""
    if MODE == NONE:
        first = at
        second = at
        weight = (at * 0).to(SUMS)
    elif MODE == NEAREST:
        first = at // 2
        second = first
        weight = (at * 0).to(SUMS)
    else:
        if MODE == BILINEAR:
            where = tl.maximum((at.to(SUMS) + 0.5) * 0.5 - 0.5, 0.0)
        else:
            step = tl.cast(size - 1, SUMS) / tl.cast(2 * size - 1, SUMS)
            where = at.to(SUMS) * step
        first = tl.minimum(where.to(tl.int64), size - 1)
        second = tl.minimum(first + 1, size - 1)
        weight = where - first.to(SUMS)
    return first, second, weight


@triton.jit
def _wide(value, SUMS: tl.constexpr):
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    return value.to(SUMS)


# Bytes: each number of the result written once, each of the two maps read once from memory; limit: their sum / copy bandwidth.
# Tile: as wide as what lies side by side, 1024 numbers in all, 8 for each of 128 threads.
@triton.jit(do_not_specialize=[*_SIZES, "rows", "columns", "skip_at", "x_at", "skip_channels", "x_channels", "skip_top", "skip_left",
                               "top", "left"])  # fmt: skip
def join_maps(
    skip, x_map, out, rows, columns, channels, out_height, out_width, height, width, skip_at, skip_channels, x_at, x_channels,
    skip_top, skip_left, top, left, skip_n, skip_c, skip_y, skip_x, x_n, x_c, x_y, x_x,
    LAST: tl.constexpr, MODE: tl.constexpr, BORDER: tl.constexpr, SUMS: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, exists, n, c, y, x = _places(
        rows, columns, channels, out_height, out_width, LAST, INDEX, ROWS, COLUMNS
    )
    target = out + row * columns + column
    of_skip = exists & (c >= skip_at) & (c < skip_at + skip_channels)
    from_skip = n * skip_n + (c - skip_at) * skip_c + (y + skip_top) * skip_y + (x + skip_left) * skip_x
    tl.store(target, tl.load(skip + from_skip, mask=of_skip), mask=of_skip)
    of_x = exists & (c >= x_at) & (c < x_at + x_channels)
    FACTOR: tl.constexpr = 1 if MODE == NONE else 2
    at_y = y - top
    at_x = x - left
    inside = of_x & (at_y >= 0) & (at_y < FACTOR * height) & (at_x >= 0) & (at_x < FACTOR * width)
    if BORDER == REPLICATE:
        at_y = tl.minimum(tl.maximum(at_y, 0), FACTOR * height - 1)
        at_x = tl.minimum(tl.maximum(at_x, 0), FACTOR * width - 1)
        inside = of_x
    y0, y1, wy = _taps(at_y, height, MODE, SUMS)
    x0, x1, wx = _taps(at_x, width, MODE, SUMS)
    base = x_map + n * x_n + (c - x_at) * x_c
    value = tl.load(base + y0 * x_y + x0 * x_x, mask=inside, other=0)
    if MODE >= BILINEAR:
        above = (
            _wide(value, SUMS) * (1.0 - wx)
            + _wide(tl.load(base + y0 * x_y + x1 * x_x, mask=inside, other=0), SUMS) * wx
        )
        first = _wide(tl.load(base + y1 * x_y + x0 * x_x, mask=inside, other=0), SUMS) * (1.0 - wx)
        below = first + _wide(tl.load(base + y1 * x_y + x1 * x_x, mask=inside, other=0), SUMS) * wx
        total = above * (1.0 - wy) + below * wy
        tl.store(target, tl.where(inside, total, 0.0).to(out.dtype.element_ty), mask=of_x)
    else:
        tl.store(target, value, mask=of_x)


@triton.jit
def _weight(shown, place, size, joined, start, MODE: tl.constexpr, BORDER: tl.constexpr, SUMS: tl.constexpr):
    """With which weight number ``shown`` of an axis of the joined map takes this place of an axis of ``x``."""
    FACTOR: tl.constexpr = 1 if MODE == NONE else 2
    at = shown - start
    there = (shown >= 0) & (shown < joined)
    if BORDER == REPLICATE:
        at = tl.minimum(tl.maximum(at, 0), FACTOR * size - 1)
    else:
        there = there & (at >= 0) & (at < FACTOR * size)
    first, second, weight = _taps(at, size, MODE, SUMS)
    of_first = tl.where(first == place, 1.0 - weight, 0.0)
    return tl.where(there, of_first + tl.where(second == place, weight, 0.0), 0.0)


# Bytes: the gradient read once from memory (and from the caches by neighbours), that of x written once.
@triton.jit(do_not_specialize=[*_SIZES, "rows", "columns", "top", "left", "span_y", "span_x"])
def gather_gradients(
    grad, out, rows, columns, channels, out_height, out_width, height, width, top, left, span_y, span_x,
    grad_n, grad_c, grad_y, grad_x,
    LAST: tl.constexpr, MODE: tl.constexpr, BORDER: tl.constexpr, BEFORE: tl.constexpr, SUMS: tl.constexpr,
    INDEX: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, exists, n, c, y, x = _places(rows, columns, channels, height, width, LAST, INDEX, ROWS, COLUMNS)
    base = grad + n * grad_n + c * grad_c
    FACTOR: tl.constexpr = 1 if MODE == NONE else 2
    begin_y = top + FACTOR * y - BEFORE
    begin_x = left + FACTOR * x - BEFORE
    if BORDER == REPLICATE:  # the first number is shown in the whole of the border before it
        begin_y = tl.where(FACTOR * y <= BEFORE, 0, begin_y)
        begin_x = tl.where(FACTOR * x <= BEFORE, 0, begin_x)
    total = tl.zeros([ROWS, COLUMNS], SUMS)
    for v in range(0, span_y):
        weight_y = _weight(begin_y + v, y, height, out_height, top, MODE, BORDER, SUMS)
        for u in range(0, span_x):
            weight = weight_y * _weight(begin_x + u, x, width, out_width, left, MODE, BORDER, SUMS)
            seen = exists & (weight != 0)
            value = tl.load(base + (begin_y + v) * grad_y + (begin_x + u) * grad_x, mask=seen, other=0.0)
            total += tl.where(seen, _wide(value, SUMS) * weight, 0.0)
    tl.store(out + row * columns + column, total.to(out.dtype.element_ty), mask=exists)


def _tiling(shape: torch.Size, last: bool, tile: int) -> tuple[int, int, int, int]:
    """Rows and columns of a dense map (N, C, H, W) in memory, and of a tile."""
    n, c, height, width = shape
    rows, columns = (n * height * width, c) if last else (n * c * height, width)
    wide = min(_junction.columns(columns), tile)
    return rows, columns, max(1, min(tile // wide, triton.next_power_of_2(rows))), wide


def _index(rows: int) -> tl.dtype:
    """The integers in which rows are counted; to divide those of 64 bits takes a GPU a hundred instructions."""
    return tl.int32 if rows < 2**31 - _TILE else tl.int64


def _start(joined: int, up: int, border: int) -> int:
    return (joined - up) // 2 if border else 0


def upsample_concat(skip: torch.Tensor, x: torch.Tensor, mode: int, up_first: bool, border: int) -> torch.Tensor:
    """As torch.ops.unet_fast.upsample_concat."""
    out = _record.allocate("upsample_concat", skip, x, mode, up_first, border)
    if not out.numel():
        return out
    last, factor = _tensors.is_channels_last(out), 2 if mode else 1
    rows, columns, tile_rows, tile_columns = _tiling(out.shape, last, _TILE)
    sums = tl.float64 if x.dtype == torch.float64 else tl.float32
    c1, c2 = skip.shape[1], x.shape[1]
    starts = [_start(out.shape[dim], factor * x.shape[dim], border) for dim in (2, 3)]
    crops = [0 if border else (skip.shape[dim] - out.shape[dim]) // 2 for dim in (2, 3)]
    maps = (
        (skip, x, out)
        if mode >= BILINEAR.value
        else (map_.view(_UNITS[map_.element_size()]) for map_ in (skip, x, out))
    )
    grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns),)
    join_maps[grid](
        *maps, rows, columns, c1 + c2, *out.shape[2:], *x.shape[2:], c2 if up_first else 0, c1, 0 if up_first else c1, c2, *crops,
        *starts, *skip.stride(), *x.stride(), LAST=last, MODE=mode, BORDER=border, SUMS=sums, INDEX=_index(rows), ROWS=tile_rows, COLUMNS=tile_columns,
    )  # fmt: skip
    return out


# The numbers of the up-sampled map that may take place y: from 2 y - BEFORE on, so many. From both formulas of _taps.
_REACH = {0: (0, 1), 1: (0, 2), 2: (1, 4), 3: (2, 6)}


def upsample_concat_backward(grad: torch.Tensor, size: list[int], mode: int, border: int) -> torch.Tensor:
    """As torch.ops.unet_fast.upsample_concat_backward."""
    out = _record.allocate("upsample_concat_backward", grad, size, mode, border)
    if not out.numel():
        return out
    last, factor = _tensors.is_channels_last(out), 2 if mode else 1
    rows, columns, tile_rows, tile_columns = _tiling(out.shape, last, _GATHERED)
    before, count = _REACH[mode]
    starts, spans = [], []
    for dim in (2, 3):
        shown, up = grad.shape[dim], factor * size[dim - 2]
        starts.append(_start(shown, up, border))
        spans.append(count + (shown - up if border == REPLICATE.value else 0))
    sums = tl.float64 if grad.dtype == torch.float64 else tl.float32
    grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns),)
    gather_gradients[grid](
        grad, out, rows, columns, grad.shape[1], *grad.shape[2:], *size, *starts, *spans, *grad.stride(),
        LAST=last, MODE=mode, BORDER=border, BEFORE=before, SUMS=sums, INDEX=_index(rows), ROWS=tile_rows, COLUMNS=tile_columns,
    )  # fmt: skip
    return out


KERNELS: dict[str, Any] = {"upsample_concat": upsample_concat, "upsample_concat_backward": upsample_concat_backward}
