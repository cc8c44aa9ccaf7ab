"""head_cross_entropy: the 1x1 head, the weighted softmax loss of what it puts out and all gradients, in one pass.

A tile is all channels of some pixels, in registers: it is multiplied with the weights of one class after the other to the
logits, these become loss and gradient (the maths is that of weighted_cross_entropy), and the gradient of the logits gives
those of the features, which are written, and of the weights and biases, which are summed. The logits never reach memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _record, _tensors
from unet_fast.triton._softmax import even, even_step, log1p_nonnegative, place_of, softmax_of
from unet_fast.triton.weighted_cross_entropy import (
    _DIVISOR_PIXELS,
    _DIVISOR_PROGRAMS,
    _MEAN,
    _SUMS,
    _WEIGHT_MEAN,
    _gradient,
    _read_pixels,
    _scale_of,
    _share,
    _store_sums,
    _two_classes,
    add_sums,
    sum_divisors,
)

_PROGRAMS = 512  # few: each writes a row of gradients, and all rows are added up in the end
_TILE = 4096  # features of a program: 16 for each thread of eight warps, whose gradient takes as many registers
_WARPS = 8


# Bytes a pixel: C e features read and C e gradient written, target (1 to 8) and weight (4 or 8) read; 8 (K C + K + C) written
# for each program and read by torch's sum; with a mean the targets and weights once more beforehand. FLOP: 6 K C. Limit: the
# larger of bytes / copy bandwidth (few classes: 268 bytes and 768 FLOP for 64 channels, two classes, bfloat16) and FLOP
# / rate of the ordinary arithmetic, from some 8 classes on: in TF32 or bfloat16 the gradients would not be exact.
# Tile: (PIXELS, CHANNELS), 4,096 features, laid out by the compiler along whichever axis is contiguous in memory. The
# programs loop over tiles and keep the sums over their pixels, a number a channel and class, in registers.
@triton.jit
def head_and_loss(
    features, feature_bias, weight, bias, target, pixel_weight, divisors, grad, sums, gradients,
    images, pixels, ignore_index, divisor_programs, programs, channels,
    batch_stride, channel_stride, pixel_stride, grad_channel_stride, grad_pixel_stride,
    RELU: tl.constexpr, REDUCTION: tl.constexpr, WIDE: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, DIVISORS: tl.constexpr,
):  # fmt: skip
    scale = _scale_of(divisors, divisor_programs, DIVISORS, WIDE)
    losses = tl.full([], 0.0, tl.float64)
    shares = tl.full([], 0.0, tl.float64)
    c = tl.arange(0, CHANNELS)
    k = tl.arange(0, BLOCK)[:, None]
    grad_weight = tl.zeros([BLOCK, CHANNELS], WIDE)
    grad_feature_bias = tl.zeros([CHANNELS], WIDE)
    grad_bias = tl.zeros([BLOCK], WIDE)
    added = tl.zeros([CHANNELS], WIDE)
    if feature_bias is not None:
        added = tl.load(feature_bias + c, mask=c < channels, other=0.0)
    for tile in range(tl.program_id(0), images * tl.cdiv(pixels, PIXELS), programs):
        n, p, inside = place_of(tile, pixels, PIXELS)
        t, counted, plain, w = _read_pixels(target, pixel_weight, n * pixels + p, inside, ignore_index, CLASSES, WIDE)
        mask = inside[:, None] & (c < channels)[None, :]
        at = (n * batch_stride + p * pixel_stride)[:, None] + c.to(tl.int64)[None, :] * channel_stride
        f = tl.load(features + at, mask=mask, other=0.0).to(WIDE)
        # an ignored pixel counts for nothing, NaN included
        f = tl.where(counted[:, None], f + added[None, :], 0.0)
        if RELU:
            f = tl.where(f <= 0, 0.0, f)  # NaN passes, as through torch's
        x = tl.full([BLOCK, PIXELS], float("-inf"), WIDE)
        for one in tl.static_range(CLASSES):
            of_class = tl.load(weight + one * channels + c, mask=c < channels, other=0.0)
            logit = tl.sum(f * of_class[None, :], axis=1)
            if bias is not None:
                logit += tl.load(bias + one)
            x = tl.where(k == one, logit[None, :], x)
        if CLASSES == 2:
            x0 = tl.sum(tl.where(k == 0, x, 0.0), axis=0)
            x1 = tl.sum(tl.where(k == 1, x, 0.0), axis=0)
            value, other = _two_classes(x0, x1, t == 1)
            slope = tl.where(t == 1, other, -other)  # of the first class
            g = tl.where(k == 0, slope[None, :], -slope[None, :]) * (w * scale)[None, :]
        else:
            m, first, rest, terms = softmax_of(x, k, CLASSES)
            mine = tl.sum(tl.where(k == t[None, :], x, 0.0), axis=0)
            rest += m - m  # NaN for an infinite largest logit, which must not go unnoticed
            y = 1.0 + rest
            inverse = 1.0 / y
            value = (m - mine) + log1p_nonnegative(rest, y, inverse)
            slope = _gradient(terms, rest[None, :], k == first[None, :], k == t[None, :])
            g = slope * ((w * scale) * inverse)[None, :]
        losses += tl.sum(tl.where(counted, value * w, 0.0).to(tl.float64))
        shares += tl.sum(_share(counted, plain, REDUCTION))
        if grad is not None:
            g = tl.where(counted[None, :], g, 0.0)
            slope_of_f = tl.zeros([PIXELS, CHANNELS], WIDE)
            for one in tl.static_range(CLASSES):
                of_class = tl.load(weight + one * channels + c, mask=c < channels, other=0.0)
                g_one = tl.sum(tl.where(k == one, g, 0.0), axis=0)
                slope_of_f += g_one[:, None] * of_class[None, :]
                grad_weight += tl.where(k == one, tl.sum(g_one[:, None] * f, axis=0)[None, :], 0.0)
            if RELU:
                slope_of_f = tl.where(f == 0, 0.0, slope_of_f)
            grad_feature_bias += tl.sum(slope_of_f, axis=0)
            grad_bias += tl.sum(tl.where(k < CLASSES, g, 0.0), axis=1)
            to = (n * channels * pixels + p * grad_pixel_stride)[:, None]
            to += c.to(tl.int64)[None, :] * grad_channel_stride
            tl.store(grad + to, slope_of_f.to(grad.dtype.element_ty), mask=mask)
    _store_sums(sums, losses, shares)
    if grad is not None:
        row = gradients + tl.program_id(0).to(tl.int64) * (CLASSES * channels + channels + CLASSES)
        at = k * channels + c[None, :]
        tl.store(row + at, grad_weight.to(tl.float64), mask=(k < CLASSES) & (c < channels)[None, :])
        row += CLASSES * channels
        tl.store(row + c, grad_feature_bias.to(tl.float64), mask=c < channels)
        classes = tl.arange(0, BLOCK)
        tl.store(row + channels + classes, grad_bias.to(tl.float64), mask=classes < CLASSES)


def head_cross_entropy(
    features: Tensor,
    feature_bias: Tensor | None,
    relu: bool,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    pixel_weight: Tensor | None,
    ignore_index: int,
    reduction: int,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As torch.ops.unet_fast.head_cross_entropy. Workspace: K C + K + C doubles for each of up to 512 programs."""
    loss, grad, *of_parameters = _record.allocate(
        "head_cross_entropy",
        *(features, feature_bias, relu, weight, bias, target, pixel_weight, ignore_index, reduction, want_grad),
    )
    layout = _tensors.dense_format(features)
    features = even(features)
    target, weight = target.contiguous(), weight.contiguous()
    feature_bias, bias, pixel_weight = (
        tensor if tensor is None else tensor.contiguous() for tensor in (feature_bias, bias, pixel_weight)
    )
    wide = _tensors.wide(features.dtype)
    images, channels = features.shape[:2]
    classes = weight.shape[0]
    pixels = target.numel() // images if images else 0
    block, columns = triton.next_power_of_2(classes), max(16, triton.next_power_of_2(channels))
    tile = max(8, _TILE // (columns * wide.itemsize // 4))
    # the logits of a tile are registers too
    tile = max(8, min(tile, _TILE // (2 * block)))
    programs = min(images * triton.cdiv(pixels, tile), _PROGRAMS)
    values = classes * channels + channels + classes
    workspace = features.new_empty(_DIVISOR_PROGRAMS + 2 * programs, dtype=torch.float64)
    gradients = features.new_empty((programs, values) if want_grad else 0, dtype=torch.float64)
    divisors, sums = workspace[:_DIVISOR_PROGRAMS], workspace[_DIVISOR_PROGRAMS:]

    options = {"REDUCTION": reduction, "WIDE": tl.float64 if wide == torch.float64 else tl.float32}
    divided = want_grad and reduction in (_MEAN.value, _WEIGHT_MEAN.value)
    divisor_programs = min(triton.cdiv(target.numel(), _DIVISOR_PIXELS), _DIVISOR_PROGRAMS) if divided else 0
    if divisor_programs:
        sum_divisors[(divisor_programs,)](
            target, pixel_weight, divisors, target.numel(), ignore_index, divisor_programs, PIXELS=_DIVISOR_PIXELS,
            **options,
        )  # fmt: skip
    if programs:
        steps = (pixels, 1) if layout == torch.contiguous_format else (1, channels)
        head_and_loss[(programs,)](
            features, feature_bias, weight, bias, target, pixel_weight, divisors if divided else None,
            grad if want_grad else None, sums, gradients, images, pixels, ignore_index, divisor_programs, programs,
            channels, features.stride(0), features.stride(1), even_step(features), *steps,
            RELU=relu, CLASSES=classes, BLOCK=block, CHANNELS=columns, PIXELS=tile, DIVISORS=_DIVISOR_PROGRAMS,
            num_warps=_WARPS, **options,
        )  # fmt: skip
    add_sums[(1,)](sums, loss, programs, REDUCTION=reduction, BLOCK=_SUMS)
    if want_grad:
        # torch adds up the rows in an order that depends on nothing but their number
        of_weight, of_features, of_bias = gradients.sum(0).split([classes * channels, channels, classes])
        for result, part in zip(of_parameters, (of_features, of_weight, of_bias), strict=True):
            result.copy_(part.view(result.shape))
    return loss, grad, *of_parameters


KERNELS: dict[str, Any] = {"head_cross_entropy": head_cross_entropy}
