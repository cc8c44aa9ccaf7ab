"""Normalisation and activation: moments of each channel in parts, then the map; the gradient likewise.

A program works on a tile of channels by pixels: one channel of a planar map, several of a channels-last one, where they lie side by
side. What the parts found is put together by torch's operations on a few numbers a channel, in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _record, _tensors

_TILE = 2048  # elements of a program's tile: 16 for each of 128 threads
_TILES = 4  # of a part, one after the other
_WIDE = {torch.float64: tl.float64}


@triton.jit
def _place(channels, pixels, parts, size, CHANNELS: tl.constexpr, LAST: tl.constexpr):
    """Image, channels and their offsets, first pixel, and the step from pixel to pixel, of this program."""
    blocks = tl.cdiv(channels, CHANNELS)
    part = tl.program_id(0) % parts
    block = tl.program_id(0) // parts % blocks
    image = (tl.program_id(0) // parts // blocks).to(tl.int64)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    step = channels if LAST else 1
    first = image * channels * pixels + (c if LAST else c.to(tl.int64) * pixels)
    return image, part, c, first, part.to(tl.int64) * size, step


# Bytes: a map read once; limit: those / copy bandwidth. Each tile is summed about its own mean, so that a large mean cancels nothing;
# tiles are put together as Chan, Golub, LeVeque do it (1979).
@triton.jit
def moments(
    x, mean_of, m2_of, channels, pixels, parts, size, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, LAST: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    image, part, c, first, begin, step = _place(channels, pixels, parts, size, CHANNELS, LAST)
    end = tl.minimum(begin + size, pixels)
    mean = tl.zeros([CHANNELS], tl.float64)
    m2 = tl.zeros([CHANNELS], tl.float64)
    count = tl.full([], 0.0, tl.float64)
    for start in range(begin, end, PIXELS):
        p = start + tl.arange(0, PIXELS)
        inside = (c < channels)[:, None] & (p < end)[None, :]
        value = tl.load(x + first[:, None] + p[None, :] * step, mask=inside, other=0.0).to(WIDE)
        here = tl.minimum(end - start, PIXELS).to(tl.float64)
        about = tl.sum(value, axis=1) / here.to(WIDE)
        distance = tl.where(inside, value - about[:, None], 0.0)
        shift = tl.sum(distance, axis=1).to(tl.float64) / here  # what the rounding of `about` left
        delta = about.to(tl.float64) + shift - mean
        mean += delta * (here / (count + here))
        within = tl.sum(distance * distance, axis=1).to(tl.float64) - here * shift * shift
        m2 += within + delta * delta * (count * here / (count + here))
        count += here
    at = (image * parts + part) * channels + c
    tl.store(mean_of + at, mean, mask=c < channels)
    tl.store(m2_of + at, m2, mask=c < channels)


@triton.jit
def _numbers(mean, scale, bias, slope, image_step, image, c, channels):
    """Mean, scale, bias and slope of the channels, as columns."""
    there = c < channels
    at = image * image_step + c
    m = tl.load(mean + at, mask=there, other=0.0)[:, None]
    a = tl.load(scale + at, mask=there, other=0.0)[:, None]
    b = tl.load(bias + c, mask=there, other=0.0)[:, None]
    s = tl.load(slope + c, mask=there, other=0.0)[:, None]
    return m, a, b, s


@triton.jit
def _sigmoid(z):
    e = tl.exp(-tl.abs(z))
    return tl.where(z < 0, e, 1.0) / (1.0 + e)


# Bytes: 2 an element of a byte (read, written); limit: those / copy bandwidth.
@triton.jit
def apply(
    x, y, mean, scale, bias, slope, channels, pixels, parts, image_step, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    image, _, c, first, begin, step = _place(channels, pixels, parts, PIXELS, CHANNELS, LAST)
    m, a, b, s = _numbers(mean, scale, bias, slope, image_step, image, c, channels)
    p = begin + tl.arange(0, PIXELS)
    inside = (c < channels)[:, None] & (p < pixels)[None, :]
    at = first[:, None] + p[None, :] * step
    z = (tl.load(x + at, mask=inside, other=0.0).to(WIDE) - m) * a + b
    if ACTIVATION == 1:
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == 2:
        z = tl.where(z < 0, s * z, z)
    elif ACTIVATION == 3:
        z = z * _sigmoid(z)
    tl.store(y + at, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _through(g, z, s, ACTIVATION: tl.constexpr):
    """The gradient behind the activation."""
    h = g
    if ACTIVATION == 1:
        h = tl.where(z > 0, g, 0.0)
    elif ACTIVATION == 2:
        h = tl.where(z > 0, g, s * g)
    elif ACTIVATION == 3:
        sigmoid = _sigmoid(z)
        h = g * sigmoid * (1.0 + z * (1.0 - sigmoid))
    return h


# Bytes: gradient and map read once; limit: those / copy bandwidth. Sums (N, parts, 3, C) of h, h d and g z, csrc/cpu says of what.
@triton.jit
def gradient_sums(
    grad, x, sums, mean, scale, bias, slope, channels, pixels, parts, size, image_step, CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    image, part, c, first, begin, step = _place(channels, pixels, parts, size, CHANNELS, LAST)
    m, a, b, s = _numbers(mean, scale, bias, slope, image_step, image, c, channels)
    end = tl.minimum(begin + size, pixels)
    of_bias = tl.zeros([CHANNELS], tl.float64)
    of_weight = tl.zeros([CHANNELS], tl.float64)
    of_slope = tl.zeros([CHANNELS], tl.float64)
    for start in range(begin, end, PIXELS):
        p = start + tl.arange(0, PIXELS)
        inside = (c < channels)[:, None] & (p < end)[None, :]
        at = first[:, None] + p[None, :] * step
        d = tl.load(x + at, mask=inside, other=0.0).to(WIDE) - m
        g = tl.load(grad + at, mask=inside, other=0.0).to(WIDE)
        z = d * a + b
        h = _through(g, z, s, ACTIVATION)
        of_bias += tl.sum(h, axis=1).to(tl.float64)
        of_weight += tl.sum(h * d, axis=1).to(tl.float64)
        if ACTIVATION == 2:
            of_slope += tl.sum(tl.where(z > 0, 0.0, g * z), axis=1).to(tl.float64)
    row = (image * parts + part) * 3 * channels + c
    tl.store(sums + row, of_bias, mask=c < channels)
    tl.store(sums + row + channels, of_weight, mask=c < channels)
    tl.store(sums + row + 2 * channels, of_slope, mask=c < channels)


# Bytes: 3 an element of a byte; limit: those / copy bandwidth.
@triton.jit
def apply_gradient(
    grad, x, grad_x, mean, scale, bias, slope, constant, linear, channels, pixels, parts, image_step, CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    image, _, c, first, begin, step = _place(channels, pixels, parts, PIXELS, CHANNELS, LAST)
    m, a, b, s = _numbers(mean, scale, bias, slope, image_step, image, c, channels)
    zero = tl.load(constant + image * image_step + c, mask=c < channels, other=0.0)[:, None]
    one = tl.load(linear + image * image_step + c, mask=c < channels, other=0.0)[:, None]
    p = begin + tl.arange(0, PIXELS)
    inside = (c < channels)[:, None] & (p < pixels)[None, :]
    at = first[:, None] + p[None, :] * step
    d = tl.load(x + at, mask=inside, other=0.0).to(WIDE) - m
    h = _through(tl.load(grad + at, mask=inside, other=0.0).to(WIDE), d * a + b, s, ACTIVATION)
    tl.store(grad_x + at, (h * a - (zero + one * d)).to(grad_x.dtype.element_ty), mask=inside)


class _Launch(NamedTuple):
    """A dense map, its tiles and its parts."""

    x: Tensor
    channels: int
    pixels: int
    parts: int
    size: int  # pixels of a part
    options: dict[str, Any]

    def grid(self, parts: int) -> tuple[int]:
        return (self.x.shape[0] * triton.cdiv(self.channels, self.options["CHANNELS"]) * parts,)

    def tiles(self) -> int:
        return triton.cdiv(self.pixels, self.options["PIXELS"])


def _launch(x: Tensor) -> _Launch:
    n, channels = x.shape[:2]
    pixels = x.numel() // (n * channels)
    last = _tensors.is_channels_last(x)
    rows = min(triton.next_power_of_2(channels), 64) if last else 1
    columns = max(1, min(triton.next_power_of_2(pixels), _TILE // rows))
    size = columns * _TILES
    options = {"CHANNELS": rows, "PIXELS": columns, "LAST": last, "WIDE": _WIDE.get(x.dtype, tl.float32)}
    return _Launch(x, channels, pixels, triton.cdiv(pixels, size), size, options)


class _Numbers(NamedTuple):
    """Of each channel in the wide dtype; the first two for each image, or once."""

    mean: Tensor
    scale: Tensor
    bias: Tensor
    slope: Tensor
    image_step: int


def _by_channel(statistic: Tensor, groups: int, x: Tensor) -> Tensor:
    """(N, C) or (1, C) numbers from those of the sets."""
    if groups == 0:
        return statistic.view(1, -1)
    return statistic.view(x.shape[0], groups).repeat_interleave(x.shape[1] // groups, 1)


def _numbers_of(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, slope: Tensor | None, mean: Tensor,
    var: Tensor, groups: int, eps: float, negative: float,
) -> tuple[_Numbers, Tensor]:  # fmt: skip
    """And 1 / sqrt(var + eps) of each channel, float64."""
    wide, channels = mean.dtype, x.shape[1]
    inverse = _by_channel((var.double() + eps).rsqrt(), groups, x)
    scale = (inverse if weight is None else inverse * weight).to(wide).contiguous()
    filled = lambda given, value: x.new_full((channels,), value, dtype=wide) if given is None else given.contiguous()  # noqa: E731
    means = _by_channel(mean, groups, x).contiguous()
    return _Numbers(means, scale, filled(bias, 0.0), filled(slope, negative), 0 if groups == 0 else channels), inverse


def _statistics(launch: _Launch, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each set, float64."""
    x, n = launch.x, launch.x.shape[0]
    means, m2s = (x.new_empty((n, launch.parts, launch.channels), dtype=torch.float64) for _ in range(2))
    moments[launch.grid(launch.parts)](
        x, means, m2s, launch.channels, launch.pixels, launch.parts, launch.size, **launch.options
    )
    counts = x.new_full((launch.parts, 1), float(launch.size), dtype=torch.float64)
    counts[-1] = float(launch.pixels - launch.size * (launch.parts - 1))
    mean = (means * counts).sum(1, keepdim=True) / launch.pixels
    m2 = (m2s + counts * (means - mean).square()).sum(1)
    mean = mean.squeeze(1)
    of_sets = (n, groups, launch.channels // groups) if groups else (1, n, launch.channels)
    axis = 2 if groups else 1
    mean, m2 = mean.reshape(of_sets), m2.reshape(of_sets)
    centre = mean.mean(axis, keepdim=True)
    total = m2.sum(axis) + launch.pixels * (mean - centre).square().sum(axis)
    return centre.reshape(-1), total.reshape(-1) / (launch.pixels * of_sets[axis])


def norm_activation(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, slope: Tensor | None,
    mean: Tensor | None, var: Tensor | None, groups: int, eps: float, activation: int, negative: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As torch.ops.unet_fast.norm_activation. Workspace: 16 bytes a channel for each part of each image."""
    y, new_mean, new_var = _record.allocate(
        "norm_activation", x, weight, bias, slope, mean, var, groups, eps, activation, negative
    )
    if not x.numel():
        return y, new_mean.zero_(), new_var.zero_()
    launch = _launch(x.contiguous(memory_format=_tensors.dense_format(x)))
    if mean is None or var is None:
        for found, kept in zip(_statistics(launch, groups), (new_mean, new_var), strict=True):
            kept.copy_(found)
        mean, var = new_mean, new_var
    numbers, _ = _numbers_of(x, weight, bias, slope, mean, var, groups, eps, negative)
    apply[launch.grid(launch.tiles())](
        launch.x, y, *numbers[:4], launch.channels, launch.pixels, launch.tiles(), numbers.image_step, **launch.options,
        ACTIVATION=activation,
    )  # fmt: skip
    return y, new_mean, new_var


def norm_activation_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, slope: Tensor | None,
    mean: Tensor, var: Tensor, groups: int, eps: float, activation: int, negative: float, fixed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As torch.ops.unet_fast.norm_activation_backward. Workspace: 24 bytes a channel for each part of each image."""
    options = (groups, eps, activation, negative, fixed)
    grad_x, *grads = _record.allocate("norm_activation_backward", grad, x, weight, bias, slope, mean, var, *options)
    if not x.numel():
        return grad_x, *(one.zero_() for one in grads)
    form = _tensors.dense_format(x)
    launch, grad = _launch(x.contiguous(memory_format=form)), grad.contiguous(memory_format=form)
    n, channels, pixels = x.shape[0], launch.channels, launch.pixels
    numbers, inverse = _numbers_of(x, weight, bias, slope, mean, var, groups, eps, negative)
    found = x.new_empty((n, launch.parts, 3, channels), dtype=torch.float64)
    gradient_sums[launch.grid(launch.parts)](
        grad, launch.x, found, *numbers[:4], channels, pixels, launch.parts, launch.size, numbers.image_step, **launch.options,
        ACTIVATION=activation,
    )  # fmt: skip
    sums = found.sum(1)  # (N, 3, C)
    of_channels = ((sums[:, 1] * inverse).sum(0), sums[:, 0].sum(0), sums[:, 2].sum(0))
    for kept, total in zip(grads, of_channels, strict=True):
        if kept.numel():
            kept.copy_(total)
    if fixed:
        constant = linear = torch.zeros_like(numbers.mean)
    else:
        weighted = sums[:, :2] if weight is None else sums[:, :2] * weight
        of_sets = weighted.sum(0, keepdim=True)
        count = n * pixels
        if groups:
            of_sets = (
                weighted.unflatten(2, (groups, channels // groups)).sum(3).repeat_interleave(channels // groups, 2)
            )
            count = pixels * (channels // groups)
        constant = (inverse * of_sets[:, 0] / count).to(mean.dtype).contiguous()
        linear = (inverse.pow(3) * of_sets[:, 1] / count).to(mean.dtype).contiguous()
    apply_gradient[launch.grid(launch.tiles())](
        grad, launch.x, grad_x, *numbers[:4], constant, linear, channels, pixels, launch.tiles(), numbers.image_step,
        **launch.options, ACTIVATION=activation,
    )  # fmt: skip
    return grad_x, *grads


KERNELS: dict[str, Any] = {"norm_activation": norm_activation, "norm_activation_backward": norm_activation_backward}
