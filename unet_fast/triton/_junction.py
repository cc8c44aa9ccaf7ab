"""What bias_relu and relu_pool_skip share: ReLU on the bits of numbers, sums over pixels, the words of a row.

As in csrc/common/pool_window.h: numbers that are not negative are ordered as their bits are, with NaN above infinity, so
after a ReLU the maximum of a window is an integer maximum that passes NaN on.
"""

from __future__ import annotations

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

_BITS = {
    torch.float64: (tl.float64, tl.int64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    torch.float32: (tl.float32, tl.int32, 0x7FFFFFFF, 0x7F800000),
    torch.float16: (tl.float16, tl.int16, 0x7FFF, 0x7C00),
    torch.bfloat16: (tl.bfloat16, tl.int16, 0x7FFF, 0x7F80),
}
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "") == "1"
_PARTS, _CHANNELS = 64, 16  # the tile of add_parts


def number(dtype: torch.dtype) -> dict[str, object]:
    """The constants of a kernel that works on the bits of this dtype."""
    name, bits, magnitude, infinity = _BITS[dtype]
    wide = tl.float64 if dtype == torch.float64 else tl.float32
    # the interpreter cuts float32 off to bfloat16, where a GPU rounds
    cut = _INTERPRETED and dtype == torch.bfloat16
    return {"FLOAT": name, "INT": bits, "WIDE": wide, "MAGNITUDE": magnitude, "INFINITY": infinity, "CUT": cut}


def bits_of(tensor: Tensor) -> object:
    """The tensor as integers, for a kernel."""
    return triton.reinterpret(tensor, _BITS[tensor.dtype][1])


def unit(*steps: int) -> int:
    """How many elements, up to 16, divide all of these: the compiler then sees how wide it may access them."""
    return math.gcd(16, *steps)


@triton.jit
def wide_of(bits, FLOAT: tl.constexpr, WIDE: tl.constexpr):
    return bits.to(FLOAT, bitcast=True).to(WIDE)


@triton.jit
def narrow_bits(value, FLOAT: tl.constexpr, INT: tl.constexpr, CUT: tl.constexpr):
    """The bits of a value rounded to FLOAT, to nearest, ties to even."""
    if CUT:
        whole = value.to(tl.int32, bitcast=True)
        rounded = (whole + 0x7FFF + ((whole >> 16) & 1)) >> 16
        bits = tl.where(value != value, (whole >> 16) | 0x40, rounded).to(INT)
    else:
        bits = value.to(FLOAT).to(INT, bitcast=True)
    return bits


@triton.jit
def rectified_bits(
    bits, bias, FLOAT: tl.constexpr, INT: tl.constexpr, WIDE: tl.constexpr, MAGNITUDE: tl.constexpr,
    INFINITY: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """ReLU of what is left after the bias was added and the sum rounded. NaN stays NaN, without its sign."""
    if bias is not None:
        bits = narrow_bits(wide_of(bits, FLOAT, WIDE) + bias, FLOAT, INT, CUT)
    magnitude = bits & MAGNITUDE
    return tl.where((bits >= 0) | (magnitude > INFINITY), magnitude, 0).to(INT)


# Adds up rows of partial sums, (parts, channels), in an order that depends on nothing but their number. Bytes: 8 a partial
# sum, few beside what was summed; what counts is latency, so four channels' sectors at a time and 64 rows in flight.
@triton.jit
def add_parts(partial, sums, parts, channels, PARTS: tl.constexpr, CHANNELS: tl.constexpr):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    part = tl.arange(0, PARTS)[:, None]
    total = tl.zeros([PARTS, CHANNELS], tl.float64)
    for start in range(0, parts, PARTS):
        at = (start + part).to(tl.int64) * channels + channel
        total += tl.load(partial + at, mask=(start + part < parts) & (channel < channels), other=0.0)
    result = tl.sum(total, axis=0)
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(sums + column, result.to(sums.dtype.element_ty), mask=column < channels)


def columns(*widths: int) -> int:
    """The columns of a tile: a power of two with the least overhang over these widths, the widest of equals."""
    if max(widths) <= 32:
        return triton.next_power_of_2(max(1, *widths))
    return min((256, 128, 64, 32), key=lambda block: sum(-width % block for width in widths))


def channel_sums(partial: Tensor, parts: int, sums: Tensor) -> None:
    """Fills ``sums`` (channels,), which may be empty, from (parts, channels); with 0 where there are no parts."""
    channels = sums.numel()
    if channels:
        grid = (triton.cdiv(channels, _CHANNELS),)
        add_parts[grid](partial, sums, parts, channels, PARTS=_PARTS, CHANNELS=_CHANNELS)
