"""What the losses over classes share: the pixels of a tile, their logits and softmax; exp and log1p over the ranges that these need.

exp and log1p are csrc/common/softmax.h in Triton, with the same constants: Triton's own exp and log of float32 are the approximate
instructions, whose relative error grows with the argument (exp) and is unbounded near 1 (log); with these, a loss of 1e-30 has as many
right digits as one of 1. float64 takes Triton's.
"""

from __future__ import annotations

from itertools import pairwise

import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _tensors


@triton.jit
def exp_nonpositive(x):
    """exp(x) for x <= 0, -infinity and NaN; 0 below the smallest normal number."""
    if x.dtype == tl.float64:
        result = tl.exp(x)
    else:
        clamped = tl.where(x < -87.33654, -87.33654, x)  # a NaN stays a NaN
        shifted = clamped * 1.44269504 + 12582912.0  # 1.5 * 2^23: adding it rounds to an integer
        n = shifted - 12582912.0
        r = (clamped - n * 0.693359375) - n * -2.12194440e-4
        p = 1.3814598513e-3
        p = p * r + 8.3687168836e-3
        p = p * r + 4.1668388048e-2
        p = p * r + 1.6666520632e-1
        p = p * r + 4.9999993448e-1
        value = 1.0 + (r + r * r * p)
        # the integer n sits in the low bits of `shifted`, on top of those of 12582912.0
        exponent = shifted.to(tl.int32, bitcast=True) - 0x4B400000 + 127
        result = tl.where(x < -87.33654, 0.0, value * (exponent << 23).to(tl.float32, bitcast=True))
    return result


@triton.jit
def log1p_nonnegative(u, y, inverse):
    """log(1 + u) for u >= 0 and NaN, with y = 1 + u as rounded and inverse = 1 / y."""
    lost = (u - (y - 1.0)) * inverse  # what the rounding of 1 + u lost
    if u.dtype == tl.float64:
        result = tl.log(y) + lost
    else:
        bits = y.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23
        f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
        q = -7.6344977577e-2
        q = q * f + 1.2761577536e-1
        q = q * f - 1.3160182162e-1
        q = q * f + 1.4201757917e-1
        q = q * f - 1.6623357360e-1
        q = q * f + 2.0001226880e-1
        q = q * f - 2.5000821034e-1
        q = q * f + 3.3333331708e-1
        e = exponent.to(tl.float32)
        result = e * 0.693359375 + (f + (f * f * (f * q - 0.5) + (e * -2.12194440e-4 + lost)))
    return result


@triton.jit
def softmax_of(x, classes, NONE: tl.constexpr):
    """Over the first axis: the maximum, its first class, and the sum of exp(x - maximum) over all other classes."""
    largest = tl.max(x, axis=0)
    first = tl.min(tl.where(x == largest[None, :], classes, NONE), axis=0)
    # classes that are masked out by -infinity may fill a whole chunk
    base = tl.where(largest == float("-inf"), 0.0, largest)
    terms = exp_nonpositive(x - base[None, :])
    return largest, first, tl.sum(tl.where(classes == first[None, :], 0.0, terms), axis=0), terms


@triton.jit
def join_softmax(m, first, rest, next_m, next_first, next_rest):
    """softmax_of the classes before and of those behind, put together."""
    stays = m >= next_m
    higher = tl.where(stays, m, next_m)
    lower = tl.where(stays, next_m, m)
    # the loser adds its own maximum, which its sum left out; of a chunk of -infinities nothing remains
    factor = tl.where(lower == float("-inf"), 0.0, exp_nonpositive(lower - higher))
    joined = tl.where(stays, rest + (next_rest + 1.0) * factor, next_rest + (rest + 1.0) * factor)
    return higher, tl.where(stays, first, next_first), joined


@triton.jit
def wide(index):
    """In 64 bits; the index of a loop is a plain int to the interpreter, which has no `to`."""
    return tl.full([], 0, tl.int64) + index


@triton.jit
def place_of(tile, pixels, PIXELS: tl.constexpr):
    """The image of this tile, its pixels, and which of them exist."""
    tiles = tl.cdiv(pixels, PIXELS)
    p = wide(tile % tiles) * PIXELS + tl.arange(0, PIXELS)
    return wide(tile // tiles), p, p < pixels


@triton.jit
def load_classes(logits, pixel, k, inside, class_stride, CLASSES: tl.constexpr, WIDE: tl.constexpr):
    """The logits of these classes and pixels, -infinity where there are none."""
    mask = (k < CLASSES) & inside[None, :]
    at = pixel[None, :] + k.to(tl.int64) * class_stride
    return tl.load(logits + at, mask=mask, other=float("-inf")).to(WIDE)


@triton.jit
def store_gradient(grad, pixel, k, inside, class_stride, slope, counted, CLASSES: tl.constexpr):
    """The gradient of these classes and pixels, 0 where a pixel does not count."""
    mask = (k < CLASSES) & inside[None, :]
    at = pixel[None, :] + k.to(tl.int64) * class_stride
    tl.store(grad + at, tl.where(counted[None, :], slope, 0.0).to(grad.dtype.element_ty), mask=mask)


def even_step(tensor: Tensor) -> int:
    """The step from pixel to pixel when it is the same all over the image, else 0; 0 for pixels that share memory, too."""
    sides = [pair for pair in zip(tensor.shape[2:], tensor.stride()[2:], strict=True) if pair[0] != 1]
    if any(stride != size * step for (_, stride), (size, step) in pairwise(sides)):
        return 0
    return sides[-1][1] if sides else 1


def even(tensor: Tensor) -> Tensor:
    """The tensor itself where its pixels are even steps apart, else a dense copy of the nearest layout."""
    if not tensor.numel() or even_step(tensor):
        return tensor
    return tensor.contiguous(memory_format=_tensors.dense_format(tensor))
