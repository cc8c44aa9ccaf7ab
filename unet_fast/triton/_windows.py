"""2x2 windows in Triton: the maximum and its byte, the way back, and which windows a tile holds."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pool_window(p0, p1, p2, p3, INT: tl.constexpr):
    """The maximum of four rectified pixels, and the byte of csrc/common/pool_window.h that remembers the window."""
    higher = p1 > p0
    largest = tl.where(higher, p1, p0)
    first = tl.where(higher, 1 << 4, 0)
    higher = p2 > largest
    largest = tl.where(higher, p2, largest)
    first = tl.where(higher, 2 << 4, first)
    higher = p3 > largest
    largest = tl.where(higher, p3, largest)
    first = tl.where(higher, 3 << 4, first)
    positive = tl.where(p0 != 0, 1, 0) | tl.where(p1 != 0, 2, 0) | tl.where(p2 != 0, 4, 0) | tl.where(p3 != 0, 8, 0)
    return largest.to(INT), (first | positive).to(tl.uint8)


@triton.jit
def unpooled(code, q: tl.constexpr, pooled, skip):
    """The gradient of pixel q of a window."""
    return tl.where((code >> q) & 1 != 0, skip + tl.where(code >> 4 == q, pooled, 0.0), 0.0)


@triton.jit
def block_of_plane(height, width, ROWS: tl.constexpr, WINDOWS: tl.constexpr):
    """The plane, the number of the tile in it, its pairs of rows, its columns of pixels and of windows."""
    across = tl.cdiv((width + 1) // 2, WINDOWS)
    tiles = tl.cdiv((height + 1) // 2, ROWS) * across
    plane = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    pair = ((tile // across) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    first = (tile % across) * WINDOWS
    column = (2 * first + tl.arange(0, 2 * WINDOWS))[None, :]
    return plane, tile, tiles, pair, column, (first + tl.arange(0, WINDOWS))[None, :]


@triton.jit
def even_and_odd(row, ROWS: tl.constexpr, WINDOWS: tl.constexpr):
    return tl.split(tl.reshape(row, (ROWS, WINDOWS, 2)))


@triton.jit
def side_by_side(even, odd, ROWS: tl.constexpr, WINDOWS: tl.constexpr):
    return tl.reshape(tl.join(even, odd), (ROWS, 2 * WINDOWS))


@triton.jit
def block_of_channels(count, height, width, channels, WINDOWS: tl.constexpr, CHANNELS: tl.constexpr):
    """The windows of a tile as image, pair of rows and column, which exist, its channels, and the number of its rows."""
    across = tl.cdiv(channels, CHANNELS)
    down = tl.program_id(0) // across
    item = (down.to(tl.int64) * WINDOWS + tl.arange(0, WINDOWS))[:, None]
    columns, pairs = (width + 1) // 2, (height + 1) // 2
    i = item % columns
    row = item // columns
    c = ((tl.program_id(0) % across) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    return row // pairs, row % pairs, i, item, item < count, c, down
