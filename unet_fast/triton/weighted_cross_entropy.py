"""weighted_cross_entropy and its backward. The maths is that of csrc/cpu/weighted_cross_entropy.cpp:

For logits x, target t and m = max_k x_k, reached first at class a:
    rest = sum_{k != a} exp(x_k - m)      loss = (m - x_t) + log1p(rest)      p_k = exp(x_k - m) / (1 + rest)
and the gradient is scale * weight * (p_k - [k = t]). Leaving the largest term out of the sum keeps the digits of small
losses; the gradient of the target is minus the sum of the others, so that it keeps them as well.

A target that is neither a class nor ignore_index makes the loss and the gradient of its pixel NaN: raising an error
would need the host to wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _record, _tensors
from unet_fast.triton._softmax import (
    even,
    even_step,
    exp_nonpositive,
    join_softmax,
    load_classes,
    log1p_nonnegative,
    place_of,
    softmax_of,
    store_gradient,
    wide,
)

# in the order of unet_fast.ops.weighted_cross_entropy.REDUCTIONS
_NONE, _SUM, _MEAN, _WEIGHT_MEAN = (tl.constexpr(value) for value in range(4))

_DIVISOR_PROGRAMS = 256  # few: every program of the loss adds up their sums
_DIVISOR_PIXELS = 2048
_LOSS_PROGRAMS = 4096  # more pixels than that many tiles hold are a loop, so that the sum of the sums stays short
_WARPS = 8  # of a program of the loss
# bytes of the logits of a program with more than two classes, in the precision of the arithmetic: 8 float32 numbers a
# thread, no spilled registers
_TILE = 8192
_MOST_PIXELS = 1024
_MOST_CLASSES = 64  # in one tile; more are read twice, the second time from the caches
_SCALED = 4096  # elements of one program of the backward: 32 for each of 128 threads
_IN_PLACE_PROGRAMS = 1024
_SUMS = 1024  # pairs of sums that add_sums reads at once


@triton.jit
def _read_pixels(target, weight, at, inside, ignore_index, CLASSES: tl.constexpr, WIDE: tl.constexpr):
    """Class, whether it counts, and weight: 1 without weights, NaN where the class is none."""
    t = tl.load(target + at, mask=inside, other=0).to(tl.int64)
    counted = inside & (t != ignore_index)
    w = tl.full(at.shape, 1.0, WIDE)
    if weight is not None:
        w = tl.load(weight + at, mask=inside, other=0.0)
    return t, counted, w, tl.where((t >= 0) & (t < CLASSES), w, float("nan"))


@triton.jit
def _share(counted, weight, REDUCTION: tl.constexpr):
    """What each pixel adds to the divisor of the reduction."""
    share = tl.where(counted, weight if REDUCTION == _WEIGHT_MEAN else 1.0, 0.0)
    return share.to(tl.float64)


@triton.jit
def _usable(divisor):
    """Nothing counted, or weights that sum to zero: the loss is 0 and so is its gradient."""
    return tl.where(divisor == 0, 1.0, divisor)


# The divisor of a mean, which the first gradient already needs: a pass over the targets (and the weights for
# "weight_mean") alone, before the loss. Bytes a pixel: target (1 to 8) and weight (4 or 8); these come again in the
# loss, then often from the second-level cache. Each program writes one sum, in a fixed order of additions.
@triton.jit
def sum_divisors(
    target, weight, sums, pixels, ignore_index, programs,
    WIDE: tl.constexpr, REDUCTION: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([PIXELS], tl.float64)
    for tile in range(tl.program_id(0), tl.cdiv(pixels, PIXELS), programs):
        at = wide(tile) * PIXELS + tl.arange(0, PIXELS)
        _, counted, w, _ = _read_pixels(target, weight, at, at < pixels, ignore_index, 1, WIDE)
        total += _share(counted, w, REDUCTION)
    tl.store(sums + tl.program_id(0), tl.sum(total))


@triton.jit
def _scale_of(divisors, divisor_programs, MOST: tl.constexpr, WIDE: tl.constexpr):
    """What the gradient is divided by, from the sums of sum_divisors; 1 for a reduction that divides nothing."""
    scale = tl.full([], 1.0, WIDE)
    if divisors is not None:
        index = tl.arange(0, MOST)
        sums = tl.load(divisors + index, mask=index < divisor_programs, other=0.0)
        scale = (1.0 / _usable(tl.sum(sums))).to(WIDE)
    return scale


@triton.jit
def _gradient(terms, rest, is_largest, is_target):
    # of the target p - 1 is minus the sum of all others, without the cancellation where p is nearly 1
    others = tl.where(is_largest, -rest, terms - (1.0 + rest))
    return tl.where(is_target, others, terms)


@triton.jit
def _two_classes(x0, x1, upper):
    """Loss, and the probability of the class that is not the target, which is all that the gradient is made of."""
    m = tl.where(x0 > x1, x0, x1)
    mine = tl.where(upper, x1, x0)
    d = x1 - x0
    u = exp_nonpositive(tl.where(d > 0, -d, d)) + (
        m - m
    )  # NaN for an infinite largest logit, which must not go unnoticed
    y = 1.0 + u
    inverse = 1.0 / y
    return (m - mine) + log1p_nonnegative(u, y, inverse), tl.where(m == mine, u, 1.0) * inverse


@triton.jit
def _store_sums(sums, losses, shares):
    tl.store(sums + 2 * tl.program_id(0), losses)
    tl.store(sums + 2 * tl.program_id(0) + 1, shares)


# Loss and gradient of tiles of pixels, each of one image, with both classes, from one read of the logits.
# Bytes a pixel: K logits read and K gradients written, target (1 to 8) and weight (4 or 8) read. Limit: those bytes,
# and those of sum_divisors before a gradient of a mean, / copy bandwidth: 28 + 8 for float32, two classes, int64.
# Tile: 1,024 pixels, 4 for each of 256 threads, read 8 (16 bits a logit) to 32 bytes at a time; 8 a thread would take
# registers from half of the threads. Interleaved classes (PAIRS) are read as pairs and split in registers. No atomics: a
# pair of sums a program, added up by add_sums.
@triton.jit
def cross_entropy_of_two(
    logits, target, weight, divisors, loss, grad, sums, images, pixels, ignore_index, divisor_programs, programs,
    batch_stride, class_stride, pixel_stride,
    REDUCTION: tl.constexpr, WIDE: tl.constexpr, PAIRS: tl.constexpr, PIXELS: tl.constexpr, DIVISORS: tl.constexpr,
):  # fmt: skip
    scale = _scale_of(divisors, divisor_programs, DIVISORS, WIDE)
    losses = tl.full([], 0.0, tl.float64)
    shares = tl.full([], 0.0, tl.float64)
    for tile in range(tl.program_id(0), images * tl.cdiv(pixels, PIXELS), programs):
        n, p, inside = place_of(tile, pixels, PIXELS)
        t, counted, plain, w = _read_pixels(target, weight, n * pixels + p, inside, ignore_index, 2, WIDE)
        pixel = n * batch_stride + p * pixel_stride
        if PAIRS:
            pair = pixel[:, None] + tl.arange(0, 2)[None, :]
            x0, x1 = tl.split(tl.load(logits + pair, mask=inside[:, None], other=0.0).to(WIDE))
        else:
            x0 = tl.load(logits + pixel, mask=inside, other=0.0).to(WIDE)
            x1 = tl.load(logits + pixel + class_stride, mask=inside, other=0.0).to(WIDE)
        value, other = _two_classes(x0, x1, t == 1)
        if grad is not None:
            slope = tl.where(counted, other * (w * scale), 0.0)
            slope = tl.where(t == 1, slope, -slope)  # of the first class
            if PAIRS:
                pair = (n * pixels + p)[:, None] * 2 + tl.arange(0, 2)[None, :]
                tl.store(grad + pair, tl.join(slope, -slope).to(grad.dtype.element_ty), mask=inside[:, None])
            else:
                plane = grad + 2 * n * pixels + p
                tl.store(plane, slope.to(grad.dtype.element_ty), mask=inside)
                tl.store(plane + pixels, (-slope).to(grad.dtype.element_ty), mask=inside)
        value = tl.where(counted, value * w, 0.0)
        if REDUCTION == _NONE:
            tl.store(loss + n * pixels + p, value, mask=inside)
        if REDUCTION != _NONE:
            losses += tl.sum(value.to(tl.float64))
            shares += tl.sum(_share(counted, plain, REDUCTION))
    if REDUCTION != _NONE:
        _store_sums(sums, losses, shares)


# The same for three classes and more.
# Tile: (BLOCK, PIXELS) logits, all classes of some pixels, 8 for each of 256 threads, reduced over the classes.
# The compiler lays the threads along whichever axis is contiguous in memory. With more than BLOCK classes the tile
# moves over them twice: for a running softmax, and for the gradient, when the logits come from the caches.
@triton.jit
def cross_entropy_of_many(
    logits, target, weight, divisors, loss, grad, sums, images, pixels, ignore_index, divisor_programs, programs,
    batch_stride, class_stride, pixel_stride, grad_class_stride, grad_pixel_stride,
    REDUCTION: tl.constexpr, WIDE: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr,
    DIVISORS: tl.constexpr,
):  # fmt: skip
    scale = _scale_of(divisors, divisor_programs, DIVISORS, WIDE)
    losses = tl.full([], 0.0, tl.float64)
    shares = tl.full([], 0.0, tl.float64)
    k = tl.arange(0, BLOCK)[:, None]
    for tile in range(tl.program_id(0), images * tl.cdiv(pixels, PIXELS), programs):
        n, p, inside = place_of(tile, pixels, PIXELS)
        t, counted, plain, w = _read_pixels(target, weight, n * pixels + p, inside, ignore_index, CLASSES, WIDE)
        pixel = n * batch_stride + p * pixel_stride
        x = load_classes(logits, pixel, k, inside, class_stride, CLASSES, WIDE)
        m, first, rest, terms = softmax_of(x, k, CLASSES)
        mine = tl.sum(tl.where(k == t[None, :], x, 0.0), axis=0)
        for start in range(BLOCK, CLASSES, BLOCK):
            x = load_classes(logits, pixel, k + start, inside, class_stride, CLASSES, WIDE)
            next_m, next_first, next_rest, _ = softmax_of(x, k + start, CLASSES)
            mine += tl.sum(tl.where(k + start == t[None, :], x, 0.0), axis=0)
            m, first, rest = join_softmax(m, first, rest, next_m, next_first, next_rest)
        rest += m - m  # NaN for an infinite largest logit, which must not go unnoticed
        y = 1.0 + rest
        inverse = 1.0 / y
        if grad is not None:
            factor = ((w * scale) * inverse)[None, :]
            to = n * CLASSES * pixels + p * grad_pixel_stride
            if BLOCK >= CLASSES:
                slope = _gradient(terms, rest[None, :], k == first[None, :], k == t[None, :]) * factor
                store_gradient(grad, to, k, inside, grad_class_stride, slope, counted, CLASSES)
            else:
                for start in range(0, CLASSES, BLOCK):
                    c = k + start
                    x = load_classes(logits, pixel, c, inside, class_stride, CLASSES, WIDE)
                    terms = exp_nonpositive(x - m[None, :])
                    slope = _gradient(terms, rest[None, :], c == first[None, :], c == t[None, :]) * factor
                    store_gradient(grad, to, c, inside, grad_class_stride, slope, counted, CLASSES)
        value = tl.where(counted, ((m - mine) + log1p_nonnegative(rest, y, inverse)) * w, 0.0)
        if REDUCTION == _NONE:
            tl.store(loss + n * pixels + p, value, mask=inside)
        if REDUCTION != _NONE:
            losses += tl.sum(value.to(tl.float64))
            shares += tl.sum(_share(counted, plain, REDUCTION))
    if REDUCTION != _NONE:
        _store_sums(sums, losses, shares)


# One program adds up the pairs of all others, 64 KiB at most. Without any (an empty tensor) the loss is 0.
@triton.jit
def add_sums(sums, loss, programs, REDUCTION: tl.constexpr, BLOCK: tl.constexpr):
    losses = tl.zeros([BLOCK], tl.float64)
    shares = tl.zeros([BLOCK], tl.float64)
    for start in range(0, programs, BLOCK):
        index = start + tl.arange(0, BLOCK)
        losses += tl.load(sums + 2 * index, mask=index < programs, other=0.0)
        shares += tl.load(sums + 2 * index + 1, mask=index < programs, other=0.0)
    total = tl.sum(losses)
    if REDUCTION != _SUM:
        total = total / _usable(tl.sum(shares))
    tl.store(loss, total.to(loss.dtype.element_ty))


# out = grad * factor, both of one dense layout. Bytes an element: one read, one written, and the factors, one value or
# one for each pixel. Limit: those bytes / copy bandwidth. Tile: (PIXELS, CLASSES) of one image; one value for all is
# the case of a single image with one class, whose factors have stride 0.
@triton.jit
def scale_gradient(
    grad, factors, out, pixels, classes, class_stride, pixel_stride, factor_stride,
    PIXELS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    class_tiles = tl.cdiv(classes, CLASSES)
    n, p, inside = place_of(tile // class_tiles, pixels, PIXELS)
    k = (tile % class_tiles) * CLASSES + tl.arange(0, CLASSES)
    mask = inside[:, None] & (k[None, :] < classes)
    at = (n * classes * pixels + p * pixel_stride)[:, None] + k.to(tl.int64)[None, :] * class_stride
    factor = tl.load(factors + (n * pixels + p) * factor_stride, mask=inside, other=0.0)
    values = tl.load(grad + at, mask=mask, other=0.0).to(factor.dtype) * factor[:, None]
    tl.store(out + at, values.to(out.dtype.element_ty), mask=mask)


# The same in place for one factor, for tensors in any dense order. Bytes: none where the factor is 1, as it nearly always
# is; else an element read and written. Programs: few, which then end at once.
@triton.jit
def scale_in_place(grad, factor, elements, programs, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1.0:
        for tile in range(tl.program_id(0), tl.cdiv(elements, BLOCK), programs):
            at = wide(tile) * BLOCK + tl.arange(0, BLOCK)
            values = tl.load(grad + at, mask=at < elements, other=0.0).to(by.dtype) * by
            tl.store(grad + at, values.to(grad.dtype.element_ty), mask=at < elements)


def weighted_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: int, want_grad: bool
) -> tuple[Tensor, Tensor]:
    """As torch.ops.unet_fast.weighted_cross_entropy. Workspace: up to 66 KiB. Up to three launches."""
    loss, grad = _record.allocate("weighted_cross_entropy", logits, target, weight, ignore_index, reduction, want_grad)
    layout = _tensors.dense_format(logits)
    logits = even(logits)
    target, weight = target.contiguous(), weight if weight is None else weight.contiguous()
    images, classes = logits.shape[:2]
    pixels = target.numel() // images if images else 0
    block = min(triton.next_power_of_2(classes), _MOST_CLASSES)
    tile = _MOST_PIXELS if classes == 2 else _TILE // (block * loss.element_size())
    programs = min(images * triton.cdiv(pixels, tile), _LOSS_PROGRAMS)
    workspace = logits.new_empty(_DIVISOR_PROGRAMS + 2 * programs, dtype=torch.float64)
    divisors, sums = workspace[:_DIVISOR_PROGRAMS], workspace[_DIVISOR_PROGRAMS:]
    options = {"REDUCTION": reduction, "WIDE": tl.float64 if loss.dtype == torch.float64 else tl.float32}

    divided = want_grad and reduction in (_MEAN.value, _WEIGHT_MEAN.value)
    divisor_programs = min(triton.cdiv(target.numel(), _DIVISOR_PIXELS), _DIVISOR_PROGRAMS) if divided else 0
    if divisor_programs:
        sum_divisors[(divisor_programs,)](
            target, weight, divisors, target.numel(), ignore_index, divisor_programs, PIXELS=_DIVISOR_PIXELS, **options
        )
    if programs:
        arguments = (
            logits, target, weight, divisors if divided else None, loss, grad if want_grad else None, sums,
            images, pixels, ignore_index, divisor_programs, programs,
            logits.stride(0), logits.stride(1), even_step(logits),
        )  # fmt: skip
        options |= {"PIXELS": tile, "DIVISORS": _DIVISOR_PROGRAMS, "num_warps": _WARPS}
        interleaved = layout != torch.contiguous_format
        if classes == 2:
            pairs = interleaved and logits.stride(1) == 1
            cross_entropy_of_two[(programs,)](*arguments, PAIRS=pairs, **options)
        else:
            steps = (1, classes) if interleaved else (pixels, 1)
            cross_entropy_of_many[(programs,)](*arguments, *steps, CLASSES=classes, BLOCK=block, **options)
    if reduction != _NONE.value:
        add_sums[(1,)](sums, loss, programs, REDUCTION=reduction, BLOCK=_SUMS)
    return loss, grad


def weighted_cross_entropy_backward(grad_output: Tensor, grad: Tensor) -> Tensor:
    """As torch.ops.unet_fast.weighted_cross_entropy_backward."""
    out = _record.allocate("weighted_cross_entropy_backward", grad_output, grad)
    layout = _tensors.dense_format(grad)
    grad, grad_output = grad.contiguous(memory_format=layout), grad_output.contiguous()
    images, classes, pixels = 1, 1, grad.numel()
    strides = (0, 1, 0)  # of classes, pixels, factors
    if grad_output.dim():
        images, classes, pixels = grad.shape[0], grad.shape[1], grad_output.numel() // max(1, grad.shape[0])
        strides = (pixels, 1, 1) if layout == torch.contiguous_format else (1, classes, 1)
    block = min(triton.next_power_of_2(classes), 64) if strides[0] == 1 else 1
    tile = _SCALED // block
    programs = images * triton.cdiv(pixels, tile) * triton.cdiv(classes, block)
    if programs:
        scale_gradient[(programs,)](grad, grad_output, out, pixels, classes, *strides, PIXELS=tile, CLASSES=block)
    return out


def weighted_cross_entropy_backward_(grads: list[Tensor], grad_output: Tensor) -> None:
    """As torch.ops.unet_fast.weighted_cross_entropy_backward_."""
    for grad in grads:
        dense = grad.contiguous(memory_format=_tensors.dense_format(grad))
        programs = min(triton.cdiv(dense.numel(), _SCALED), _IN_PLACE_PROGRAMS)
        if programs:
            scale_in_place[(programs,)](dense, grad_output, dense.numel(), programs, BLOCK=_SCALED)
        if dense.data_ptr() != grad.data_ptr():
            grad.copy_(dense)


KERNELS: dict[str, Any] = {
    "weighted_cross_entropy": weighted_cross_entropy,
    "weighted_cross_entropy_backward": weighted_cross_entropy_backward,
    "weighted_cross_entropy_backward_": weighted_cross_entropy_backward_,
}
