"""Bias, ReLU, 2x2 max-pooling and the cropped skip in one pass, and the gradient of all four in one pass.

A tile is a block of 2x2 windows: of one plane (planar), with the two rows of a window read whole and split into even and
odd columns in registers; or of any images by a block of channels (channels-last), with one read for each of the four
pixels. Rows, strides and the crop are counted in units of up to 16 elements that divide them all, so that the compiler
knows how wide it may access them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _record, _tensors
from unet_fast.triton import _junction
from unet_fast.triton._junction import narrow_bits, rectified_bits, wide_of
from unet_fast.triton._windows import (
    block_of_channels,
    block_of_plane,
    even_and_odd,
    pool_window,
    side_by_side,
    unpooled,
)

_WINDOWS = 512  # of a tile, with a channel each: 2,048 elements, 16 for each of 128 threads
_MOST_CHANNELS = 64


# Forward, planar. Bytes per element of x, of e bytes: e read; e / 4 pooled, e * (crop) skip and 1/4 code written; limit:
# those / copy bandwidth. Tile: as wide as the rows allow, up to 128 windows, which are what lies side by side.
@triton.jit(do_not_specialize=["top", "left_units", "x_batch", "x_channel", "x_row"])
def pool_planes(
    x, bias, pooled, buffer, code, channels, buffer_channels, height, width_units, skip_height, skip_units, top,
    left_units, x_batch, x_channel, x_row, UNIT: tl.constexpr, SKIP_UNIT: tl.constexpr, ROWS: tl.constexpr,
    WINDOWS: tl.constexpr, FLOAT: tl.constexpr, INT: tl.constexpr, WIDE: tl.constexpr, MAGNITUDE: tl.constexpr,
    INFINITY: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    width = width_units * UNIT
    plane, _, _, pair, column, window = block_of_plane(height, width, ROWS, WINDOWS)
    n, c = plane // channels, plane % channels
    b = None
    if bias is not None:
        b = tl.load(bias + c)
    skip_width = skip_units * SKIP_UNIT
    skip_plane = (n * buffer_channels + c) * skip_height
    skip_column = column - left_units * SKIP_UNIT
    in_skip = (skip_column >= 0) & (skip_column < skip_width)

    y = 2 * pair
    inside = (y < height) & (column < width)
    at = (n * x_batch + c * x_channel + y * x_row) * UNIT + column
    upper = tl.load(x + at, mask=inside, other=0)
    inside_lower = (y + 1 < height) & (column < width)
    at = (n * x_batch + c * x_channel + (y + 1) * x_row) * UNIT + column
    lower = tl.load(x + at, mask=inside_lower, other=0)
    upper = tl.where(inside, rectified_bits(upper, b, FLOAT, INT, WIDE, MAGNITUDE, INFINITY, CUT), 0).to(INT)
    lower = tl.where(inside_lower, rectified_bits(lower, b, FLOAT, INT, WIDE, MAGNITUDE, INFINITY, CUT), 0).to(INT)

    skip_y = y - top
    to = buffer + (skip_plane + skip_y) * skip_units * SKIP_UNIT + skip_column
    tl.store(to, upper, mask=(skip_y >= 0) & (skip_y < skip_height) & in_skip)
    to = buffer + (skip_plane + skip_y + 1) * skip_units * SKIP_UNIT + skip_column
    tl.store(to, lower, mask=(skip_y >= -1) & (skip_y + 1 < skip_height) & in_skip)

    p0, p1 = even_and_odd(upper, ROWS, WINDOWS)
    p2, p3 = even_and_odd(lower, ROWS, WINDOWS)
    largest, byte = pool_window(p0, p1, p2, p3, INT)
    whole = (pair < height // 2) & (window < width // 2)
    tl.store(pooled + (plane * (height // 2) + pair) * (width // 2) + window, largest, mask=whole)
    if code is not None:
        across = (width + 1) // 2
        at_code = (plane * ((height + 1) // 2) + pair) * across + window
        tl.store(code + at_code, byte, mask=(y < height) & (window < across))


@triton.jit
def _pixel(
    x, b, buffer, n, y, column, c, there, channels, buffer_units, height, width, skip_height, skip_width, top, left,
    x_batch, x_row, x_pixel, UNIT: tl.constexpr, FLOAT: tl.constexpr, INT: tl.constexpr, WIDE: tl.constexpr,
    MAGNITUDE: tl.constexpr, INFINITY: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """One pixel of every window, rectified, 0 outside the image; it goes to the skip where the crop reaches it."""
    inside = there & (y < height) & (column < width) & (c < channels)
    bits = tl.load(x + (n * x_batch + y * x_row + column * x_pixel) * UNIT + c, mask=inside, other=0)
    bits = tl.where(inside, rectified_bits(bits, b, FLOAT, INT, WIDE, MAGNITUDE, INFINITY, CUT), 0).to(INT)
    skip_y, skip_x = y - top, column - left
    to = ((n * skip_height + skip_y) * skip_width + skip_x) * buffer_units * UNIT + c
    in_skip = (skip_y >= 0) & (skip_y < skip_height) & (skip_x >= 0) & (skip_x < skip_width)
    tl.store(buffer + to, bits, mask=inside & in_skip)
    return bits


# Forward, channels-last. Bytes as above. Tile: up to 64 channels, 128 bytes of bfloat16, and as many windows as fill it.
@triton.jit(do_not_specialize=["count", "top", "left", "x_batch", "x_row", "x_pixel"])
def pool_pixels(
    x, bias, pooled, buffer, code, count, channel_units, buffer_units, height, width, skip_height, skip_width, top,
    left, x_batch, x_row, x_pixel, UNIT: tl.constexpr, WINDOWS: tl.constexpr, CHANNELS: tl.constexpr,
    FLOAT: tl.constexpr, INT: tl.constexpr, WIDE: tl.constexpr, MAGNITUDE: tl.constexpr, INFINITY: tl.constexpr,
    CUT: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    n, j, i, item, there, c, _ = block_of_channels(count, height, width, channels, WINDOWS, CHANNELS)
    b = None
    if bias is not None:
        b = tl.load(bias + c, mask=c < channels, other=0.0)
    p0 = _pixel(x, b, buffer, n, 2 * j, 2 * i, c, there, channels, buffer_units, height, width, skip_height, skip_width,
                top, left, x_batch, x_row, x_pixel, UNIT, FLOAT, INT, WIDE, MAGNITUDE, INFINITY, CUT)  # fmt: skip
    p1 = _pixel(x, b, buffer, n, 2 * j, 2 * i + 1, c, there, channels, buffer_units, height, width, skip_height,
                skip_width, top, left, x_batch, x_row, x_pixel, UNIT, FLOAT, INT, WIDE, MAGNITUDE, INFINITY,
                CUT)  # fmt: skip
    p2 = _pixel(x, b, buffer, n, 2 * j + 1, 2 * i, c, there, channels, buffer_units, height, width, skip_height,
                skip_width, top, left, x_batch, x_row, x_pixel, UNIT, FLOAT, INT, WIDE, MAGNITUDE, INFINITY,
                CUT)  # fmt: skip
    p3 = _pixel(x, b, buffer, n, 2 * j + 1, 2 * i + 1, c, there, channels, buffer_units, height, width, skip_height,
                skip_width, top, left, x_batch, x_row, x_pixel, UNIT, FLOAT, INT, WIDE, MAGNITUDE, INFINITY,
                CUT)  # fmt: skip
    largest, byte = pool_window(p0, p1, p2, p3, INT)
    whole = there & (j < height // 2) & (i < width // 2) & (c < channels)
    at = ((n * (height // 2) + j) * (width // 2) + i) * channel_units * UNIT + c
    tl.store(pooled + at, largest, mask=whole)
    if code is not None:
        tl.store(code + item * channel_units * UNIT + c, byte, mask=there & (c < channels))


# Backward, planar: merges the gradients of the pool and of the skip, and lets through what the ReLU did. Bytes per element
# of x, of e bytes: e / 4 pooled, e * (crop) skip and 1/4 code read, e written; limit: those / copy bandwidth. Tile: as in the
# forward; its sum goes to a place of its own, (parts, channels), for the gradient of the bias: no atomics.
@triton.jit(
    do_not_specialize=[
        "top",
        "left_units",
        "pooled_batch",
        "pooled_channel",
        "pooled_row",
        "buffer_batch",
        "buffer_channel",
    ]
    + ["buffer_row"]
)
def unpool_planes(
    code, grad_pooled, grad_buffer, grad_x, partial, channels, height, width_units, skip_height, skip_units, top,
    left_units, pooled_batch, pooled_channel, pooled_row, buffer_batch, buffer_channel, buffer_row,
    UNIT: tl.constexpr, POOLED_UNIT: tl.constexpr, SKIP_UNIT: tl.constexpr, ROWS: tl.constexpr, WINDOWS: tl.constexpr,
    FLOAT: tl.constexpr, INT: tl.constexpr, WIDE: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    width = width_units * UNIT
    plane, tile, tiles, pair, column, window = block_of_plane(height, width, ROWS, WINDOWS)
    n, c = plane // channels, plane % channels
    y = 2 * pair
    across = (width + 1) // 2
    at_code = (plane * ((height + 1) // 2) + pair) * across + window
    byte = tl.load(code + at_code, mask=(y < height) & (window < across), other=0).to(tl.int32)
    g = tl.zeros([ROWS, WINDOWS], WIDE)
    if grad_pooled is not None:
        whole = (pair < height // 2) & (window < width // 2)
        at = (n * pooled_batch + c * pooled_channel + pair * pooled_row) * POOLED_UNIT + window
        g = wide_of(tl.load(grad_pooled + at, mask=whole, other=0), FLOAT, WIDE)
    upper = tl.zeros([ROWS, 2 * WINDOWS], WIDE)
    lower = tl.zeros([ROWS, 2 * WINDOWS], WIDE)
    if grad_buffer is not None:
        skip_column = column - left_units * SKIP_UNIT
        in_skip = (skip_column >= 0) & (skip_column < skip_units * SKIP_UNIT)
        skip_y = y - top
        at = (n * buffer_batch + c * buffer_channel + skip_y * buffer_row) * SKIP_UNIT + skip_column
        reached = (skip_y >= 0) & (skip_y < skip_height) & in_skip
        upper = wide_of(tl.load(grad_buffer + at, mask=reached, other=0), FLOAT, WIDE)
        reached = (skip_y >= -1) & (skip_y + 1 < skip_height) & in_skip
        at = (n * buffer_batch + c * buffer_channel + (skip_y + 1) * buffer_row) * SKIP_UNIT + skip_column
        lower = wide_of(tl.load(grad_buffer + at, mask=reached, other=0), FLOAT, WIDE)
    s0, s1 = even_and_odd(upper, ROWS, WINDOWS)
    s2, s3 = even_and_odd(lower, ROWS, WINDOWS)
    v0, v1 = unpooled(byte, 0, g, s0), unpooled(byte, 1, g, s1)
    v2, v3 = unpooled(byte, 2, g, s2), unpooled(byte, 3, g, s3)
    to = grad_x + (plane * height + y) * width_units * UNIT + column
    values = narrow_bits(side_by_side(v0, v1, ROWS, WINDOWS), FLOAT, INT, CUT)
    tl.store(to, values, mask=(y < height) & (column < width))
    values = narrow_bits(side_by_side(v2, v3, ROWS, WINDOWS), FLOAT, INT, CUT)
    to = grad_x + (plane * height + y + 1) * width_units * UNIT + column
    tl.store(to, values, mask=(y + 1 < height) & (column < width))
    if partial is not None:
        total = tl.sum(tl.sum((v0 + v1) + (v2 + v3), axis=1), axis=0)
        tl.store(partial + (n * tiles + tile) * channels + c, total.to(tl.float64))


@triton.jit
def _unpooled_pixel(
    grad_buffer, grad_x, byte, g, q: tl.constexpr, n, y, column, c, there, channels, channel_units, height, width,
    skip_height, skip_width, top, left, buffer_batch, buffer_row, buffer_pixel, UNIT: tl.constexpr,
    SKIP_UNIT: tl.constexpr, WINDOWS: tl.constexpr, CHANNELS: tl.constexpr, FLOAT: tl.constexpr, INT: tl.constexpr,
    WIDE: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of one pixel of every window, where the image has it, and returns it."""
    skip = tl.zeros([WINDOWS, CHANNELS], WIDE)
    if grad_buffer is not None:
        skip_y, skip_x = y - top, column - left
        reached = (skip_y >= 0) & (skip_y < skip_height) & (skip_x >= 0) & (skip_x < skip_width)
        at = (n * buffer_batch + skip_y * buffer_row + skip_x * buffer_pixel) * SKIP_UNIT + c
        skip = wide_of(tl.load(grad_buffer + at, mask=reached & there & (c < channels), other=0), FLOAT, WIDE)
    value = unpooled(byte, q, g, skip)
    to = ((n * height + y) * width + column) * channel_units * UNIT + c
    inside = there & (y < height) & (column < width) & (c < channels)
    tl.store(grad_x + to, narrow_bits(value, FLOAT, INT, CUT), mask=inside)
    return value


# Backward, channels-last. Bytes as above. Tile: as in the forward.
@triton.jit(
    do_not_specialize=["count", "top", "left", "pooled_batch", "pooled_row", "pooled_pixel", "buffer_batch"]
    + ["buffer_row", "buffer_pixel"]
)
def unpool_pixels(
    code, grad_pooled, grad_buffer, grad_x, partial, count, channel_units, height, width, skip_height, skip_width, top,
    left, pooled_batch, pooled_row, pooled_pixel, buffer_batch, buffer_row, buffer_pixel, UNIT: tl.constexpr,
    POOLED_UNIT: tl.constexpr, SKIP_UNIT: tl.constexpr, WINDOWS: tl.constexpr, CHANNELS: tl.constexpr,
    FLOAT: tl.constexpr, INT: tl.constexpr, WIDE: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    n, j, i, item, there, c, down = block_of_channels(count, height, width, channels, WINDOWS, CHANNELS)
    inside = there & (c < channels)
    byte = tl.load(code + item * channel_units * UNIT + c, mask=inside, other=0).to(tl.int32)
    g = tl.zeros([WINDOWS, CHANNELS], WIDE)
    if grad_pooled is not None:
        whole = inside & (j < height // 2) & (i < width // 2)
        at = (n * pooled_batch + j * pooled_row + i * pooled_pixel) * POOLED_UNIT + c
        g = wide_of(tl.load(grad_pooled + at, mask=whole, other=0), FLOAT, WIDE)
    total = tl.zeros([WINDOWS, CHANNELS], WIDE)
    for q in tl.static_range(4):
        total += _unpooled_pixel(
            grad_buffer, grad_x, byte, g, q, n, 2 * j + q // 2, 2 * i + q % 2, c, there, channels, channel_units, height,
            width, skip_height, skip_width, top, left, buffer_batch, buffer_row, buffer_pixel, UNIT, SKIP_UNIT, WINDOWS,
            CHANNELS, FLOAT, INT, WIDE, CUT,
        )  # fmt: skip
    if partial is not None:
        sums = tl.sum(total, axis=0)[None, :].to(tl.float64)
        tl.store(partial + down.to(tl.int64) * channels + c, sums, mask=c < channels)


def _steps(image: Tensor, channels_last: bool) -> list[int]:
    """The strides of all dimensions but the innermost one, outermost first; 0 where there is one element."""
    dims = (0, 2, 3) if channels_last else (0, 1, 2)
    return [image.stride(d) if image.shape[d] > 1 else 0 for d in dims]


def _in_units(image: Tensor | None, channels_last: bool, *others: int) -> tuple[int, list[int]]:
    """The unit that divides the strides and all others, and the strides in it."""
    if image is None:
        return _junction.unit(*others), [0, 0, 0]
    steps = _steps(image, channels_last)
    unit = _junction.unit(*steps, *others)
    return unit, [step // unit for step in steps]


def _plane_tiling(height: int, width: int) -> tuple[int, int, int]:
    """Pairs of rows and windows of a tile, and the number of tiles in a plane."""
    pairs, across = (height + 1) // 2, (width + 1) // 2
    windows = min(triton.next_power_of_2(across), 32)
    if across > 32:
        windows = min((128, 64, 32), key=lambda block: -across % block)
    rows = min(triton.next_power_of_2(pairs), _WINDOWS // windows)
    return rows, windows, triton.cdiv(pairs, rows) * triton.cdiv(across, windows)


def _channel_tiling(count: int, channels: int) -> tuple[int, int, int, int]:
    """Windows and channels of a tile, and the numbers of tiles along each."""
    block = min(triton.next_power_of_2(channels), _MOST_CHANNELS)
    windows = min(triton.next_power_of_2(count), _WINDOWS // block)
    return windows, block, triton.cdiv(count, windows), triton.cdiv(channels, block)


def relu_pool_skip(
    x: Tensor, bias: Tensor | None, skip_size: list[int], up_channels: int, want_code: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As torch.ops.unet_fast.relu_pool_skip."""
    (n, c, height, width), (skip_height, skip_width) = x.shape, skip_size
    pooled, buffer, code = _record.allocate("relu_pool_skip", x, bias, skip_size, up_channels, want_code)
    last = _tensors.is_channels_last(x)
    x = _tensors.innermost_dense(x, last)
    bias = bias if bias is None else bias.contiguous()
    if not n * c:
        return pooled, buffer, code
    top, left = (height - skip_height) // 2, (width - skip_width) // 2
    bits = [_junction.bits_of(tensor) for tensor in (x, pooled, buffer)]
    pointers = (bits[0], bias, *bits[1:], code if want_code else None)
    number = _junction.number(x.dtype)
    if last:
        count = n * ((height + 1) // 2) * ((width + 1) // 2)
        windows, block, down, across = _channel_tiling(count, c)
        unit, steps = _in_units(x, True, c, up_channels)
        pool_pixels[(down * across,)](
            *pointers, count, c // unit, (c + up_channels) // unit, height, width, skip_height, skip_width, top, left,
            *steps, UNIT=unit, WINDOWS=windows, CHANNELS=block, **number,
        )  # fmt: skip
    else:
        rows, windows, tiles = _plane_tiling(height, width)
        unit, steps = _in_units(x, False, width)
        skip_unit = _junction.unit(skip_width, left)
        pool_planes[(n * c * tiles,)](
            *pointers, c, c + up_channels, height, width // unit, skip_height, skip_width // skip_unit, top,
            left // skip_unit, *steps, UNIT=unit, SKIP_UNIT=skip_unit, ROWS=rows, WINDOWS=windows, **number,
        )  # fmt: skip
    return pooled, buffer, code


def relu_pool_skip_backward(
    code: Tensor, grad_pooled: Tensor | None, grad_buffer: Tensor | None, size: list[int], want_bias: bool
) -> tuple[Tensor, Tensor]:
    """As torch.ops.unet_fast.relu_pool_skip_backward. Workspace: 8 bytes a channel for each tile."""
    like = grad_buffer if grad_pooled is None else grad_pooled
    assert like is not None
    (n, c), (height, width) = code.shape[:2], size
    grad_x, grad_bias = _record.allocate("relu_pool_skip_backward", code, grad_pooled, grad_buffer, size, want_bias)
    layout, last = _tensors.dense_format(code), _tensors.is_channels_last(code)
    code = code.contiguous(memory_format=layout)
    grad_pooled = grad_pooled if grad_pooled is None else _tensors.innermost_dense(grad_pooled, last)
    grad_buffer = grad_buffer if grad_buffer is None else _tensors.innermost_dense(grad_buffer, last)
    skip_height, skip_width = (0, 0) if grad_buffer is None else grad_buffer.shape[2:]
    top, left = (height - skip_height) // 2, (width - skip_width) // 2
    pointers = [None if grad is None else _junction.bits_of(grad) for grad in (grad_pooled, grad_buffer, grad_x)]
    number = {name: _junction.number(like.dtype)[name] for name in ("FLOAT", "INT", "WIDE", "CUT")}
    pooled_unit, pooled_steps = _in_units(grad_pooled, last)
    parts, partial = 0, like.new_empty(0, dtype=torch.float64)
    if n * c and last:
        count = n * code.shape[2] * code.shape[3]
        windows, block, parts, across = _channel_tiling(count, c)
        if want_bias:
            partial = like.new_empty(parts, c, dtype=torch.float64)
        unit = _junction.unit(c)
        skip_unit, steps = _in_units(grad_buffer, True)
        unpool_pixels[(parts * across,)](
            code, *pointers, partial if want_bias else None, count, c // unit, height, width, skip_height, skip_width, top,
            left, *pooled_steps, *steps, UNIT=unit, POOLED_UNIT=pooled_unit, SKIP_UNIT=skip_unit, WINDOWS=windows,
            CHANNELS=block, **number,
        )  # fmt: skip
    elif n * c:
        rows, windows, tiles = _plane_tiling(height, width)
        parts = n * tiles
        if want_bias:
            partial = like.new_empty(parts, c, dtype=torch.float64)
        unit = _junction.unit(width)
        skip_unit, steps = _in_units(grad_buffer, False, skip_width, left)
        unpool_planes[(n * c * tiles,)](
            code, *pointers, partial if want_bias else None, c, height, width // unit, skip_height,
            skip_width // skip_unit, top, left // skip_unit, *pooled_steps, *steps, UNIT=unit, POOLED_UNIT=pooled_unit,
            SKIP_UNIT=skip_unit, ROWS=rows, WINDOWS=windows, **number,
        )  # fmt: skip
    _junction.channel_sums(partial, parts, grad_bias)
    return grad_x, grad_bias


KERNELS: dict[str, Any] = {"relu_pool_skip": relu_pool_skip, "relu_pool_skip_backward": relu_pool_skip_backward}
