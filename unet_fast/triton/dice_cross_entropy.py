"""dice_cross_entropy: the sums over pixels, what becomes of them, and the gradient. The maths is that of csrc/cpu/dice_cross_entropy_rows.h:

A class has the truth t and in the cross-entropy of a softmax the factor c = v ((1 - s) t + s / K), v its weight and s the label smoothing.
    cross-entropy   sum_k c_k ((m - x_k) + log1p(rest)), with m and rest as in weighted_cross_entropy
    its gradient    p_k T - c_k, T = sum_k c_k; of the likeliest class a: sum_{k != a} c_k - T rest / (1 + rest), which cancels nothing
    of the sums     p_k (G_k - sum_j p_j G_j), G_k = slope of predicted + t_k slope of both, all G less G_a for the same reason
With a sigmoid each class is alone.

A target that is neither a class nor ignore_index makes the sums of its image NaN: raising an error would need the host to wait for
the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _record, _tensors
from unet_fast.triton._regions import (
    factor_of,
    read_pixels,
    sigmoid_of,
    slope_of,
    softmax_of_all,
    truth_of,
    weights_of,
)
from unet_fast.triton._softmax import (
    even,
    even_step,
    exp_nonpositive,
    load_classes,
    log1p_nonnegative,
    place_of,
    softmax_of,
    store_gradient,
    wide,
)

_WARPS = 8
_TILE = 8192  # bytes of the logits of a tile in the precision of the arithmetic: 8 float32 numbers a thread
_MOST_CLASSES = 64  # of one tile
_MOST_TILES = 8  # of a program, whose numbers a thread adds up in the precision of the arithmetic
_BUSY = 1024  # programs that fill a GPU: with fewer, each takes fewer tiles
_SUMS = 2048  # that are read at once, of so many images or parts of one:
_ROWS, _MOST_ROWS = 16, 256


# The sums over one part of an image. Bytes a pixel: K logits, target (1 to 8, or K wide numbers), weight (4 or 8) read; limit: those /
# copy bandwidth. Tile: (BLOCK, PIXELS) logits, all classes of some pixels, 8 for each of 256 threads, laid out by the compiler along
# whichever axis is contiguous in memory. Each thread adds up the numbers of its places over a few tiles; they are put together once, in
# float64, into a row of BLOCK sums each of both, predicted and truth, then loss and divisor. With more than BLOCK classes each program
# takes BLOCK of them, after a look at all for the softmax.
@triton.jit
def region_parts(
    logits, target, weight, class_weight, rows, pixels, ignore_index, parts, tiles,
    batch_stride, class_stride, pixel_stride, target_n, target_c, target_p,
    SMOOTHING: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr, SOFT: tl.constexpr,
    SIGMOID: tl.constexpr, LOSS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) % parts
    n = wide(tl.program_id(0) // parts)
    k = tl.arange(0, BLOCK)[:, None]
    c = tl.program_id(1) * BLOCK + k
    v = weights_of(class_weight, c, CLASSES, WIDE)
    both = tl.zeros([BLOCK, PIXELS], WIDE)
    predicted = tl.zeros([BLOCK, PIXELS], WIDE)
    true = tl.zeros([BLOCK, PIXELS], WIDE)
    costs = tl.zeros([BLOCK, PIXELS], WIDE)
    shares = tl.zeros([PIXELS], WIDE)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, tl.cdiv(pixels, PIXELS))):
        p = wide(tile) * PIXELS + tl.arange(0, PIXELS)
        inside = p < pixels
        label, counted, w, share = read_pixels(
            target, weight, class_weight, n, p, inside, pixels, ignore_index, target_n, target_p, CLASSES, SOFT, SIGMOID, WIDE
        )  # fmt: skip
        shares += share
        truth = truth_of(target, label, n, p, c, counted, target_n, target_c, target_p, CLASSES, SOFT, WIDE)
        pixel = n * batch_stride + p * pixel_stride
        x = load_classes(logits, pixel, c, inside, class_stride, CLASSES, WIDE)
        x = tl.where(counted[None, :] & (c < CLASSES), x, 0.0)
        if SIGMOID:
            u, inverse = sigmoid_of(x)
            weighted = w[None, :] * (tl.where(x < 0, u, 1.0) * inverse)
            if LOSS:
                log = log1p_nonnegative(u, 1.0 + u, inverse)
                cost = (1.0 - truth) * (tl.where(x < 0, 0.0, x) + log) + v * truth * (tl.where(x < 0, -x, 0.0) + log)
                costs += tl.where(c < CLASSES, w[None, :] * cost, 0.0)
        else:
            if BLOCK >= CLASSES:
                m, _, rest, terms = softmax_of(tl.where(c < CLASSES, x, float("-inf")), c, CLASSES)
                rest += m - m
            else:
                m, _, rest = softmax_of_all(
                    logits, pixel, k, inside, counted, class_stride, CLASSES, BLOCK, PIXELS, WIDE
                )
                terms = tl.where(c < CLASSES, exp_nonpositive(x - m[None, :]), 0.0)
            y = 1.0 + rest
            inverse = 1.0 / y
            weighted = terms * (w * inverse)[None, :]
            if LOSS:
                log = log1p_nonnegative(rest, y, inverse)
                factor = factor_of(truth, v, SMOOTHING, CLASSES)
                cost = factor * ((m[None, :] - x) + log[None, :])
                costs += w[None, :] * tl.where(factor == 0.0, 0.0, cost)
        both += weighted * truth
        predicted += weighted
        true += w[None, :] * truth
    row = rows + wide(tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * (3 * BLOCK + 2)
    place = tl.arange(0, BLOCK)
    tl.store(row + place, tl.sum(both.to(tl.float64), axis=1))
    tl.store(row + BLOCK + place, tl.sum(predicted.to(tl.float64), axis=1))
    tl.store(row + 2 * BLOCK + place, tl.sum(true.to(tl.float64), axis=1))
    tl.store(row + 3 * BLOCK, tl.sum(costs.to(tl.float64)))
    tl.store(row + 3 * BLOCK + 1, tl.where(tl.program_id(1) == 0, tl.sum(shares.to(tl.float64)), 0.0))


# One program an image adds up its rows, in an order that depends on nothing but their number.
@triton.jit
def add_parts(
    rows, both, predicted, true, cross_entropy, counted, parts, chunks,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    n = wide(tl.program_id(0))
    k = tl.arange(0, BLOCK)
    losses = tl.zeros([ROWS], tl.float64)
    shares = tl.zeros([ROWS], tl.float64)
    for chunk in range(chunks):
        of_both = tl.zeros([ROWS, BLOCK], tl.float64)
        of_predicted = tl.zeros([ROWS, BLOCK], tl.float64)
        of_true = tl.zeros([ROWS, BLOCK], tl.float64)
        for start in range(0, parts, ROWS):
            part = start + tl.arange(0, ROWS)
            row = rows + ((n * parts + part) * chunks + chunk) * (3 * BLOCK + 2)
            at, seen = row[:, None] + k[None, :], (part < parts)[:, None]
            of_both += tl.load(at, mask=seen, other=0.0)
            of_predicted += tl.load(at + BLOCK, mask=seen, other=0.0)
            of_true += tl.load(at + 2 * BLOCK, mask=seen, other=0.0)
            losses += tl.load(row + 3 * BLOCK, mask=part < parts, other=0.0)
            shares += tl.load(row + 3 * BLOCK + 1, mask=part < parts, other=0.0)
        c = chunk * BLOCK + k
        tl.store(both + n * CLASSES + c, tl.sum(of_both, axis=0), mask=c < CLASSES)
        tl.store(predicted + n * CLASSES + c, tl.sum(of_predicted, axis=0), mask=c < CLASSES)
        tl.store(true + n * CLASSES + c, tl.sum(of_true, axis=0), mask=c < CLASSES)
    tl.store(cross_entropy + n, tl.sum(losses))
    tl.store(counted + n, tl.sum(shares))


# One program makes the loss and its slopes of the sums, as dice_cross_entropy_of_sums of csrc/common/dice_cross_entropy.h does;
# `share`: of one Dice loss in the whole. Tile: (ROWS, BLOCK), some images and all classes.
@triton.jit
def loss_of_sums(
    both, predicted, true, cross_entropy, counted, class_weight, loss, slopes, images,
    share: tl.float64, lambda_ce: tl.float64, smooth_nr: tl.float64, smooth_dr: tl.float64,
    CLASSES: tl.constexpr, FIRST: tl.constexpr, OVER_BATCH: tl.constexpr, MEAN: tl.constexpr, SIGMOID: tl.constexpr,
    LOSS: tl.constexpr, DICE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = 2 * CLASSES + 1
    k = tl.arange(0, BLOCK)
    counts = (k >= FIRST) & (k < CLASSES)
    totals = tl.zeros([ROWS], tl.float64)
    numbers = tl.zeros([ROWS], tl.float64)
    batch_both = tl.zeros([BLOCK], tl.float64)
    batch_below = tl.zeros([BLOCK], tl.float64) + smooth_dr
    for start in range(0, images, ROWS):
        n = start + tl.arange(0, ROWS)
        totals += tl.load(cross_entropy + n, mask=n < images, other=0.0)
        numbers += tl.load(counted + n, mask=n < images, other=0.0)
        if OVER_BATCH:
            at, seen = n[:, None] * CLASSES + k[None, :], (n < images)[:, None] & counts[None, :]
            batch_both += tl.sum(tl.load(both + at, mask=seen, other=0.0), axis=0)
            below = tl.load(predicted + at, mask=seen, other=0.0) + tl.load(true + at, mask=seen, other=0.0)
            batch_below += tl.sum(below, axis=0)
    each = tl.zeros([], tl.float64)
    value = tl.zeros([], tl.float64)
    if LOSS:
        number = tl.sum(numbers) * (CLASSES if SIGMOID else 1)
        each += lambda_ce
        if MEAN:
            each = each / tl.where(number == 0.0, 1.0, number)
        value += each * tl.sum(totals)
    of_class = tl.zeros([BLOCK], tl.float64) + share
    if CLASSES - FIRST > 1:
        if class_weight is not None:
            of_class = of_class * tl.load(class_weight + k, mask=counts, other=0.0).to(tl.float64)
    for start in range(0, images, ROWS):
        n = start + tl.arange(0, ROWS)
        at, seen = n[:, None] * CLASSES + k[None, :], (n < images)[:, None] & (k < CLASSES)[None, :]
        of_both = tl.zeros([ROWS, BLOCK], tl.float64)
        of_predicted = tl.zeros([ROWS, BLOCK], tl.float64)
        if DICE:
            if OVER_BATCH:
                sum_both = of_both + batch_both[None, :]
                below = of_both + batch_below[None, :]
            else:
                sum_both = tl.load(both + at, mask=seen, other=0.0)
                below = tl.load(predicted + at, mask=seen, other=0.0) + tl.load(true + at, mask=seen, other=0.0)
                below = below + smooth_dr
            # a class that is neither there nor predicted has no loss; a NaN is one
            used = counts[None, :] & (n < images)[:, None] & ((below > 0.0) | (below != below))
            above = 2.0 * sum_both + smooth_nr
            divisor = tl.where(used, below, 1.0)
            of_both = tl.where(used, -2.0 * of_class[None, :] / divisor, 0.0)
            of_predicted = tl.where(used, of_class[None, :] * above / (divisor * divisor), 0.0)
            losses = tl.where(used, of_class[None, :] * (1.0 - above / divisor), 0.0)
            if OVER_BATCH:
                losses = tl.where((n == 0)[:, None], losses, 0.0)
            value += tl.sum(losses)
        at = n[:, None] * WIDTH + k[None, :]
        tl.store(slopes + at, of_both, mask=seen)
        tl.store(slopes + at + CLASSES, of_predicted, mask=seen)
        tl.store(slopes + n * WIDTH + 2 * CLASSES, tl.zeros([ROWS], tl.float64) + each, mask=n < images)
    tl.store(loss, value.to(loss.dtype.element_ty))


# Bytes a pixel: as region_parts, and K gradients written; limit: those / copy bandwidth. Tile: as there, one a program. More than BLOCK
# classes are read three times, the second and third time from the caches.
@triton.jit
def region_gradients(
    slopes, logits, target, weight, class_weight, grad, pixels, ignore_index,
    batch_stride, class_stride, pixel_stride, target_n, target_c, target_p, grad_class_stride, grad_pixel_stride,
    SMOOTHING: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr, SOFT: tl.constexpr,
    SIGMOID: tl.constexpr, LOSS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    n, p, inside = place_of(tl.program_id(0), pixels, PIXELS)
    label, counted, w, _ = read_pixels(
        target, weight, class_weight, n, p, inside, pixels, ignore_index, target_n, target_p, CLASSES, SOFT, SIGMOID, WIDE
    )  # fmt: skip
    of_image = slopes + n * (2 * CLASSES + 1)
    of_loss = tl.load(of_image + 2 * CLASSES).to(WIDE)
    k = tl.arange(0, BLOCK)[:, None]
    pixel = n * batch_stride + p * pixel_stride
    to = n * CLASSES * pixels + p * grad_pixel_stride
    of_largest = tl.zeros([PIXELS], WIDE)
    total = tl.zeros([PIXELS], WIDE)
    others = tl.zeros([PIXELS], WIDE)
    mean = tl.zeros([PIXELS], WIDE)
    if not SIGMOID:
        m, first, rest = softmax_of_all(logits, pixel, k, inside, counted, class_stride, CLASSES, BLOCK, PIXELS, WIDE)
        inverse = 1.0 / (1.0 + rest)
        for start in range(0, CLASSES, BLOCK):
            c = k + start
            truth = truth_of(target, label, n, p, c, counted, target_n, target_c, target_p, CLASSES, SOFT, WIDE)
            largest = c == first[None, :]
            of_largest += tl.sum(tl.where(largest, slope_of(of_image, truth, c, CLASSES, WIDE), 0.0), axis=0)
            if LOSS:
                factor = factor_of(truth, weights_of(class_weight, c, CLASSES, WIDE), SMOOTHING, CLASSES)
                total += tl.sum(factor, axis=0)
                others += tl.sum(tl.where(largest, 0.0, factor), axis=0)
        for start in range(0, CLASSES, BLOCK):
            c = k + start
            x = load_classes(logits, pixel, c, inside, class_stride, CLASSES, WIDE)
            truth = truth_of(target, label, n, p, c, counted, target_n, target_c, target_p, CLASSES, SOFT, WIDE)
            above = slope_of(of_image, truth, c, CLASSES, WIDE) - of_largest[None, :]
            terms = exp_nonpositive(tl.where(counted[None, :], x, 0.0) - m[None, :])
            mean += tl.sum(tl.where((c == first[None, :]) | (c >= CLASSES), 0.0, terms * above), axis=0) * inverse
    for start in range(0, CLASSES, BLOCK):
        c = k + start
        x = load_classes(logits, pixel, c, inside, class_stride, CLASSES, WIDE)
        x = tl.where(counted[None, :], x, 0.0)
        truth = truth_of(target, label, n, p, c, counted, target_n, target_c, target_p, CLASSES, SOFT, WIDE)
        slope = slope_of(of_image, truth, c, CLASSES, WIDE)
        v = weights_of(class_weight, c, CLASSES, WIDE)
        if SIGMOID:
            x = tl.where(c < CLASSES, x, 0.0)
            u, inverse_of = sigmoid_of(x)
            probability = tl.where(x < 0, u, 1.0) * inverse_of
            against = tl.where(x < 0, 1.0, u) * inverse_of
            gradient = probability * against * slope
            if LOSS:
                gradient += of_loss * ((1.0 - truth) * probability - v * truth * against)
        else:
            largest = c == first[None, :]
            probability = exp_nonpositive(x - m[None, :]) * inverse[None, :]
            gradient = probability * (tl.where(largest, 0.0, slope - of_largest[None, :]) - mean[None, :])
            if LOSS:
                of_others = others - rest * inverse * total
                of_one = probability * total[None, :] - factor_of(truth, v, SMOOTHING, CLASSES)
                gradient += of_loss * tl.where(largest, of_others[None, :], of_one)
        store_gradient(grad, to, c, inside, grad_class_stride, w[None, :] * gradient, counted, CLASSES)


class _Call(NamedTuple):
    """What the two passes over the pixels take alike."""

    tensors: tuple[Tensor | None, ...]
    images: int
    classes: int
    pixels: int
    strides: tuple[int, ...]
    tile: int
    options: dict[str, Any]


def _call(
    logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, smoothing: float, sigmoid: bool,
    loss: bool,
) -> _Call:  # fmt: skip
    images, classes = logits.shape[:2]
    soft = target.dtype.is_floating_point
    logits, target = even(logits), even(target) if soft else target.contiguous()
    weight, class_weight = (one if one is None else one.contiguous() for one in (weight, class_weight))
    strides: tuple[int, ...] = (logits.stride(0), logits.stride(1), even_step(logits))
    strides += (target.stride(0), target.stride(1), even_step(target)) if soft else (0, 0, 0)
    wide_type = _tensors.wide(logits.dtype)
    block = min(triton.next_power_of_2(classes), _MOST_CLASSES)
    tile = _TILE // (block * wide_type.itemsize)
    options = {
        "SMOOTHING": smoothing, "CLASSES": classes, "BLOCK": block, "PIXELS": tile, "SOFT": soft, "SIGMOID": sigmoid,
        "LOSS": loss, "WIDE": tl.float64 if wide_type == torch.float64 else tl.float32, "num_warps": _WARPS,
    }  # fmt: skip
    pixels = logits.numel() // (images * classes) if images else 0
    return _Call((logits, target, weight, class_weight), images, classes, pixels, strides, tile, options)


def _add_up(call: _Call, sums: tuple[Tensor, ...], ignore_index: int) -> None:
    """Writes (N, K), (N, K), (N, K), (N,), (N,)."""
    if not call.images:
        return
    block, all_tiles = call.options["BLOCK"], triton.cdiv(call.pixels, call.tile)
    chunks = triton.cdiv(call.classes, block)
    tiles = max(1, min(call.images * all_tiles * chunks // _BUSY, _MOST_TILES))
    parts = triton.cdiv(all_tiles, tiles)
    rows = sums[0].new_empty(call.images * parts * chunks * (3 * block + 2))
    if parts:
        region_parts[(call.images * parts, chunks)](
            *call.tensors, rows, call.pixels, ignore_index, parts, tiles, *call.strides, **call.options
        )
    add_parts[(call.images,)](
        rows, *sums, parts, chunks, CLASSES=call.classes, BLOCK=block, ROWS=max(_ROWS, min(_SUMS // block, _MOST_ROWS))
    )


def region_sums(
    logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, ignore_index: int, smoothing: float,
    sigmoid: bool, loss: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As torch.ops.unet_fast.region_sums. Workspace: 8 (3 K + 2) bytes a program, for each tile of 2,048 logits or eight of them."""
    arguments = (logits, target, weight, class_weight, ignore_index, smoothing, sigmoid, loss)
    sums: tuple[Tensor, ...] = _record.allocate("region_sums", *arguments)
    _add_up(_call(logits, target, weight, class_weight, smoothing, sigmoid, loss), sums, ignore_index)
    return sums


def dice_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, ignore_index: int, smoothing: float,
    sigmoid: bool, lambda_dice: float, lambda_ce: float, smooth_nr: float, smooth_dr: float, background: bool, batch: bool,
    mean: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As torch.ops.unet_fast.dice_cross_entropy. Three launches. Workspace: as region_sums, and its sums."""
    rest = (lambda_dice, lambda_ce, smooth_nr, smooth_dr, background, batch, mean)
    arguments = (logits, target, weight, class_weight, ignore_index, smoothing, sigmoid)
    loss, slopes = _record.allocate("dice_cross_entropy", *arguments, *rest)
    call = _call(logits, target, weight, class_weight, smoothing, sigmoid, lambda_ce != 0)
    n, classes = call.images, call.classes
    if not n:
        return loss.zero_(), slopes
    sums = logits.new_empty(3 * n * classes + 2 * n, dtype=torch.float64).split([n * classes] * 3 + [n] * 2)
    _add_up(call, sums, ignore_index)
    first = 0 if background or classes == 1 else 1
    share = lambda_dice / ((1 if batch else n) * (classes - first) if mean else 1)
    block = triton.next_power_of_2(classes)
    loss_of_sums[(1,)](
        *sums, call.tensors[3], loss, slopes, n, float(share), float(lambda_ce), float(smooth_nr), float(smooth_dr),
        CLASSES=classes, FIRST=first, OVER_BATCH=batch, MEAN=mean, SIGMOID=sigmoid, LOSS=lambda_ce != 0, DICE=lambda_dice != 0,
        BLOCK=block, ROWS=max(1, min(_SUMS // block, _ROWS)),
    )  # fmt: skip
    return loss, slopes


def dice_cross_entropy_backward(
    slopes: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, ignore_index: int,
    smoothing: float, sigmoid: bool, loss: bool,
) -> Tensor:  # fmt: skip
    """As torch.ops.unet_fast.dice_cross_entropy_backward."""
    options = (ignore_index, smoothing, sigmoid, loss)
    grad: Tensor = _record.allocate(
        "dice_cross_entropy_backward", slopes, logits, target, weight, class_weight, *options
    )
    call = _call(logits, target, weight, class_weight, smoothing, sigmoid, loss)
    steps = (call.pixels, 1) if _tensors.dense_format(logits) == torch.contiguous_format else (1, call.classes)
    programs = call.images * triton.cdiv(call.pixels, call.tile)
    if programs:
        region_gradients[(programs,)](
            slopes.contiguous(), *call.tensors, grad, call.pixels, ignore_index, *call.strides, *steps, **call.options
        )
    return grad


KERNELS: dict[str, Any] = {
    "region_sums": region_sums,
    "dice_cross_entropy": dice_cross_entropy,
    "dice_cross_entropy_backward": dice_cross_entropy_backward,
}
