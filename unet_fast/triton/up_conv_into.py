"""up_conv_into and its backward: a 2x2, stride-2 transposed convolution as a matrix product that scatters its own result.

With the stride equal to the kernel no two pixels of x meet in the image: of the product of all pixels (C_in numbers each)
with the weight (C_in x 4 C), the 4 C columns of a pixel are the C channels of the four pixels that it becomes. A program
computes a tile of that product on the tensor cores, adds the bias in float32, rounds once and stores the tile where it
belongs in the concat buffer: the up-sampled map is written once and never read.

Backward, one pass reads the gradient, lays it out as the matrix of that product and sums it for the bias; the two products
with it are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast import reference
from unet_fast.ops import _tensors
from unet_fast.triton import _junction

_WARPS = 8
_GATHERED = 1024  # pairs of elements (planar), elements (channels-last) of one step of a program of the gather
_STEPS = 4  # channels-last: steps of one program, so that a partial sum stands for some 500 elements


@triton.jit
def _wide(index):
    """In 64 bits; a program's number is a plain int to the interpreter at times, which has no `to`."""
    return tl.full([], 0, tl.int64) + index


# Channels-last. FLOP: 2 C_in 4 C a pixel of x. Bytes: x once (its other reads, one for each tile of columns, come from the
# caches: these programs are neighbours), the weight once, the image once. The limit is the larger of FLOP / tensor core
# rate and bytes / copy bandwidth: for the four junctions of a 572 U-Net in bfloat16, 128 to 1,024 input channels, 85 to
# 400 FLOP a byte, so both matter. Tile: 128 x 128 with 64 deep steps, the usual size for eight warps, of which each keeps
# 64 numbers a thread in registers and three steps are on their way in shared memory.
@triton.jit
def up_conv_last(
    x, weight, bias, image, pixels, height, width, in_channels, channels, image_batch, image_y, image_x,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    columns = 4 * channels
    tiles = tl.cdiv(columns, COLUMNS)
    m = _wide(tl.program_id(0) // tiles) * PIXELS + tl.arange(0, PIXELS)
    column = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([PIXELS, COLUMNS], tl.float32)
    for start in range(0, in_channels, DEPTH):
        k = start + tl.arange(0, DEPTH)
        a_mask = (m < pixels)[:, None] & (k < in_channels)[None, :]
        b_mask = (k < in_channels)[:, None] & (column < columns)[None, :]
        a = tl.load(x + m[:, None] * in_channels + k[None, :], mask=a_mask, other=0.0)
        b = tl.load(weight + k.to(tl.int64)[:, None] * columns + column[None, :], mask=b_mask, other=0.0)
        total = tl.dot(a.to(OPERAND), b.to(OPERAND), total, input_precision=PRECISION)
    d = column // channels
    c = column - d * channels
    if bias is not None:
        total += tl.load(bias + c, mask=column < columns, other=0.0)[None, :]
    row = m // width
    n = row // height
    to_pixel = n * image_batch + 2 * (row - n * height) * image_y + 2 * (m - row * width) * image_x
    to_column = (d // 2).to(tl.int64) * image_y + (d % 2) * image_x + c
    mask = (m < pixels)[:, None] & (column < columns)[None, :]
    tl.store(image + to_pixel[:, None] + to_column[None, :], total.to(image.dtype.element_ty), mask=mask)


# Planar: the same product transposed, since here the pixels lie side by side. A program computes both columns of 2x2
# (dx) for one of its rows (dy) and joins them to pairs, so that lines of the image are written without gaps; two
# programs read each tile of x, the second from the caches. FLOP, bytes and limit as above. Tile: 2 x 64 channels by 128
# pixels. EVEN says that all strides of the image are even (as in every dense one), so that a pair is one access.
@triton.jit
def up_conv_planar(
    x, weight, bias, image, pixels, width, in_channels, channels, image_batch, image_channel, image_y,
    EVEN: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    channel_tiles = tl.cdiv(channels, CHANNELS)
    pixel_tiles = tl.cdiv(pixels, PIXELS)
    c = (tl.program_id(0) % channel_tiles) * CHANNELS + tl.arange(0, CHANNELS)
    rest = tl.program_id(0) // channel_tiles
    dy = rest % 2
    rest = rest // 2
    p = (rest % pixel_tiles) * PIXELS + tl.arange(0, PIXELS)
    n = _wide(rest // pixel_tiles)
    left = tl.zeros([CHANNELS, PIXELS], tl.float32)
    right = tl.zeros([CHANNELS, PIXELS], tl.float32)
    from_x = x + n * in_channels * pixels + p[None, :]
    from_weight = weight + 2 * dy * channels + c[:, None]
    for start in range(0, in_channels, DEPTH):
        k = start + tl.arange(0, DEPTH)
        a_mask = (c < channels)[:, None] & (k < in_channels)[None, :]
        b_mask = (k < in_channels)[:, None] & (p < pixels)[None, :]
        b = tl.load(from_x + k.to(tl.int64)[:, None] * pixels, mask=b_mask, other=0.0).to(OPERAND)
        at = from_weight + k.to(tl.int64)[None, :] * (4 * channels)
        a = tl.load(at, mask=a_mask, other=0.0).to(OPERAND)
        left = tl.dot(a, b, left, input_precision=PRECISION)
        a = tl.load(at + channels, mask=a_mask, other=0.0).to(OPERAND)
        right = tl.dot(a, b, right, input_precision=PRECISION)
    if bias is not None:
        added = tl.load(bias + c, mask=c < channels, other=0.0)[:, None]
        left += added
        right += added
    y = p // width
    to_line = _even(n * image_batch, EVEN) + _even((2 * y + dy).to(tl.int64) * image_y, EVEN) + 2 * (p - y * width)
    to_channel = _even(c.to(tl.int64) * image_channel, EVEN)
    at = (to_channel[:, None] + to_line[None, :])[:, :, None] + tl.arange(0, 2)[None, None, :]
    mask = ((c < channels)[:, None] & (p < pixels)[None, :])[:, :, None]
    tl.store(image + at, tl.join(left, right).to(image.dtype.element_ty), mask=mask)


@triton.jit
def _even(offset, EVEN: tl.constexpr):
    """An offset counted in pairs of elements where that is possible: it then shows that it is even."""
    return offset * (2 if EVEN else 1)


# The way back, channels-last: four pixels of the image are one row of the product. Bytes: 2 e an element of e bytes (read,
# written) and 8 for each 500 elements (partial sums); limit: those bytes / copy bandwidth. A program takes _STEPS tiles of
# PIXELS x CHANNELS; four independent loads of 16 bytes a thread are in flight in each.
@triton.jit
def gather_last(
    image, product, sums, pixels, height, width, channels, image_batch, image_y, image_x,
    WIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    channel_tiles = tl.cdiv(channels, CHANNELS)
    part = tl.program_id(0) // channel_tiles
    c = (tl.program_id(0) % channel_tiles) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float64)
    for step in range(STEPS):
        m = _wide(part * STEPS + step) * PIXELS + tl.arange(0, PIXELS)
        mask = (m < pixels)[:, None] & (c < channels)[None, :]
        row = m // width
        n = row // height
        from_pixel = n * image_batch + 2 * (row - n * height) * image_y + 2 * (m - row * width) * image_x
        partial = tl.zeros([PIXELS, CHANNELS], WIDE)
        for d in tl.static_range(4):
            at = from_pixel + (d // 2) * image_y + (d % 2) * image_x
            values = tl.load(image + at[:, None] + c[None, :], mask=mask, other=0.0)
            tl.store(product + ((m * 4 + d) * channels)[:, None] + c[None, :], values, mask=mask)
            partial += values.to(WIDE)
        total += tl.sum(partial, axis=0).to(tl.float64)
    if sums is not None:
        tl.store(sums + _wide(part) * channels + c, total, mask=c < channels)


# The way back, planar: lines of the image are taken apart into pairs, whose halves are lines of the product. Bytes and limit
# as above, one partial sum for each tile of 2,048 elements of one channel. Tile: lines by pairs, as wide as the least
# overhang allows.
@triton.jit
def gather_planar(
    image, product, sums, images, height, width, channels, image_batch, image_channel, image_y,
    EVEN: tl.constexpr, WIDE: tl.constexpr, LINES: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    wide_tiles = tl.cdiv(width, PAIRS)
    high_tiles = tl.cdiv(2 * height, LINES)
    x = (tl.program_id(0) % wide_tiles) * PAIRS + tl.arange(0, PAIRS)
    rest = tl.program_id(0) // wide_tiles
    line = (rest % high_tiles) * LINES + tl.arange(0, LINES)
    rest = rest // high_tiles
    c = _wide(rest % channels)
    n = _wide(rest // channels)
    mask = (line < 2 * height)[:, None] & (x < width)[None, :]
    from_line = _even(n * image_batch + c * image_channel, EVEN) + _even(line.to(tl.int64) * image_y, EVEN)
    at = (from_line[:, None] + 2 * x[None, :])[:, :, None] + tl.arange(0, 2)[None, None, :]
    left, right = tl.split(tl.load(image + at, mask=mask[:, :, None], other=0.0))
    plane = _wide(height) * width
    to_line = (2 * (line % 2) * channels + c) * (images * plane) + n * plane + (line // 2) * width
    to = product + to_line[:, None] + x[None, :]
    tl.store(to, left, mask=mask)
    tl.store(to + channels * (images * plane), right, mask=mask)
    if sums is not None:
        total = tl.sum(left.to(WIDE) + right.to(WIDE))
        part = n * (high_tiles * wide_tiles) + tl.program_id(0) % (high_tiles * wide_tiles)
        tl.store(sums + part * channels + c, total.to(tl.float64))


_INTERPRETED = not isinstance(up_conv_last, triton.JITFunction)


def _power(value: int, most: int) -> int:
    """The power of two of a tile: tensor cores take 16 at least."""
    return min(most, max(16, triton.next_power_of_2(value)))


def _product_options(x: Tensor, in_channels: int) -> dict[str, Any]:
    """float32 is exact unless torch itself may take TF32; exact products do not run on tensor cores."""
    # not allow_tf32: reading it raises once somebody has set the precision by its new name
    tf32 = x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    exact = x.dtype == torch.float32 and not tf32
    # the interpreter keeps bfloat16 as the bits of integers
    operand = tl.float32 if _INTERPRETED or x.dtype == torch.float32 else _OPERANDS[x.dtype]
    return {
        "OPERAND": operand,
        "PRECISION": "tf32" if tf32 else "ieee",
        "DEPTH": _power(in_channels, 16 if exact else 32 if tf32 else 64),
        "num_warps": _WARPS,
        "num_stages": 3,
    }


_OPERANDS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def _even_strides(*strides: int) -> tuple[bool, tuple[int, ...]]:
    even = all(stride % 2 == 0 for stride in strides)
    return even, tuple(stride // 2 for stride in strides) if even else strides


def up_conv_into(x: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> None:
    """As torch.ops.unet_fast.up_conv_into. float64, which tensor cores and tl.dot are not made for, goes to torch."""
    if x.numel() == 0 or weight.numel() == 0:
        return
    if x.dtype == torch.float64:
        reference.up_conv_into(x, weight, bias, buffer)
        return
    images, in_channels, height, width = x.shape
    channels, pixels = weight.shape[1], height * width
    last = _tensors.is_channels_last(buffer)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    weight = weight.contiguous(memory_format=torch.channels_last)  # (C_in, 2, 2, C)
    bias = None if bias is None else bias.contiguous()
    image = buffer[:, buffer.shape[1] - channels :]
    options = _product_options(x, in_channels)
    exact = x.dtype == torch.float32 and options["PRECISION"] == "ieee"
    if last:
        strides = image.stride(0), image.stride(2), image.stride(3)
        # where the compiler cannot see whole vectors, an address for each element takes the registers
        odd = image.data_ptr() % 16 or any(number % 16 for number in (channels, *strides))
        most = 64 if exact or odd else 128
        tile, columns = _power(images * pixels, most), _power(4 * channels, most)
        programs = triton.cdiv(images * pixels, tile) * triton.cdiv(4 * channels, columns)
        up_conv_last[(programs,)](
            x, weight, bias, image, images * pixels, height, width, in_channels, channels,
            *strides, PIXELS=tile, COLUMNS=columns, **options,
        )  # fmt: skip
    else:
        tile, block = _power(pixels, 64 if exact else 128), _power(channels, 32 if exact else 64)
        programs = images * 2 * triton.cdiv(pixels, tile) * triton.cdiv(channels, block)
        even, halves = _even_strides(image.stride(0), image.stride(1), image.stride(2))
        up_conv_planar[(programs,)](
            x, weight, bias, image, pixels, width, in_channels, channels, *halves,
            EVEN=even, PIXELS=tile, CHANNELS=block, **options,
        )  # fmt: skip


def _gather(image: Tensor, height: int, width: int, last: bool, want_bias: bool) -> tuple[Tensor, Tensor | None]:
    """The product matrix, (N h w, 4 C) or, planar, (4 C, N, h w), and the partial sums over the pixels (parts, C)."""
    images, channels = image.shape[:2]
    pixels = height * width
    wide = tl.float64 if image.dtype == torch.float64 else tl.float32
    if last:
        block = min(64, triton.next_power_of_2(channels))
        tile = _GATHERED // block
        parts = triton.cdiv(images * pixels, tile * _STEPS)
        sums = image.new_empty((parts, channels), dtype=torch.float64) if want_bias else None
        product = image.new_empty((images * pixels, 4 * channels))
        gather_last[(parts * triton.cdiv(channels, block),)](
            image, product, sums, images * pixels, height, width, channels,
            image.stride(0), image.stride(2), image.stride(3), WIDE=wide, PIXELS=tile, CHANNELS=block, STEPS=_STEPS,
        )  # fmt: skip
        return product, sums
    pairs = min(_junction.columns(2 * width), triton.next_power_of_2(width))
    lines = min(_GATHERED // pairs, triton.next_power_of_2(2 * height))
    parts = images * triton.cdiv(2 * height, lines) * triton.cdiv(width, pairs)
    sums = image.new_empty((parts, channels), dtype=torch.float64) if want_bias else None
    product = image.new_empty((4 * channels, images, pixels))
    even, strides = _even_strides(image.stride(0), image.stride(1), image.stride(2))
    gather_planar[(parts * channels,)](
        image, product, sums, images, height, width, channels, *strides,
        EVEN=even, WIDE=wide, LINES=lines, PAIRS=pairs,
    )  # fmt: skip
    return product, sums


def up_conv_into_backward(
    grad: Tensor, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As torch.ops.unet_fast.up_conv_into_backward. Workspace: one product, the size of the up-sampled image."""
    last = _tensors.is_channels_last(grad)
    form = torch.channels_last if last else torch.contiguous_format
    images, in_channels, height, width = x.shape
    channels, pixels = weight.shape[1], height * width
    wide = _tensors.wide(grad.dtype)
    none = x.new_empty(0)
    if 0 in (images, in_channels, channels, pixels):
        zeros = torch.zeros(x.shape, dtype=x.dtype, device=x.device).contiguous(memory_format=form)
        zero_weight = torch.zeros(weight.shape, dtype=x.dtype, device=x.device)
        return (
            zeros if want_x else none,
            zero_weight.contiguous(memory_format=torch.channels_last) if want_weight else none,
            x.new_zeros(channels if want_bias else 0, dtype=wide),
        )
    image = _tensors.innermost_dense(grad, last)[:, grad.shape[1] - channels :]
    product, sums = _gather(image, height, width, last, want_bias)
    grad_bias = x.new_empty(0, dtype=wide) if sums is None else sums.sum(0).to(wide)
    x = x.contiguous(memory_format=form)
    matrix = weight.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(in_channels, 4 * channels)
    grad_x = grad_matrix = none
    if last:
        if want_x:
            rows = (product @ matrix.t()).view(images, height, width, in_channels)
            grad_x = rows.permute(0, 3, 1, 2)
        if want_weight:
            grad_matrix = x.permute(0, 2, 3, 1).reshape(images * pixels, in_channels).t() @ product
    else:
        if want_x:
            grad_x = torch.empty_like(x)
            planes = product.transpose(0, 1)  # (N, 4 C, h w)
            torch.bmm(matrix.expand(images, -1, -1), planes, out=grad_x.view(images, in_channels, pixels))
        if want_weight:
            # one product over all images: sums of several, each rounded to the dtype, would be less exact
            every = x.view(images, in_channels, pixels).transpose(0, 1).reshape(in_channels, images * pixels)
            grad_matrix = every @ product.view(4 * channels, images * pixels).t()
    grad_weight = grad_matrix.view(in_channels, 2, 2, channels).permute(0, 3, 1, 2) if want_weight else none
    return grad_x, grad_weight, grad_bias


KERNELS: dict[str, Any] = {"up_conv_into": up_conv_into, "up_conv_into_backward": up_conv_into_backward}
