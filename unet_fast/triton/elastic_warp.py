"""elastic_warp: all images of a call in one launch, the field from the control points on the fly; and its gradient.

Backward adds to the input pixels with atomic operations: of floats, in any order, or of whole numbers (csrc/common/
fixed_point.h), whose sum has no order, where ``deterministic`` is asked for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast._warp_arguments import INTERPOLATIONS
from unet_fast.ops import _record
from unet_fast.triton._warp_points import BILINEAR, COLUMNS, NEAREST, ZEROS, coefficients_of, locate, tap_of

LOST = tl.constexpr(1 << 62)  # marks a fixed-point sum that has met a NaN or an infinity
BIAS = tl.constexpr(1 << 60)  # of a fixed-point sum, which stays below it

# Rows of a tile: four pixels a thread (see _warps), as many loads in flight for each tap, one in float64, which takes more
# registers; the interpreter works on few large tiles.
_ROWS = {tl.float32: 8, tl.float64: 4}
if triton.knobs.runtime.interpret:
    _ROWS = dict.fromkeys(_ROWS, 32)
_IMAGES = 8  # of one launch
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK = 1024  # pixels of a program that turns sums into floats


@triton.jit
def _sample(
    source_image, target_image, numbers, n, rows, columns, whole_y, rest_y, whole_x, rest_x, height, width,
    KIND: tl.constexpr, PADDING: tl.constexpr, SUMS: tl.constexpr, OFFSETS: tl.constexpr,
):  # fmt: skip
    """All channels of one image for the pixels of a tile."""
    TAPS: tl.constexpr = 1 if KIND == NEAREST else (2 if KIND == BILINEAR else 4)
    stride_n = tl.cast(numbers[0], tl.int64)
    stride_c = tl.cast(numbers[1], tl.int64)
    stride_y = tl.cast(numbers[2], OFFSETS)
    stride_x = tl.cast(numbers[3], OFFSETS)
    channels = numbers[4]
    out_height, out_width = numbers[5], numbers[6]
    out_rows = rows - numbers[7]
    out_columns = columns - numbers[8]
    fill_bits = tl.cast(numbers[9], tl.int64)
    kept = (out_rows >= 0) & (out_rows < out_height)
    wanted = kept[:, None] & ((out_columns >= 0) & (out_columns < out_width))[None, :]
    from_sample = source_image + n * stride_n
    area = tl.cast(out_height, tl.int64) * out_width
    to_sample = target_image + n * channels * area + (out_rows[:, None] * out_width + out_columns[None, :])
    for channel in range(0, channels):
        source = from_sample + channel * stride_c
        target = to_sample + channel * area
        if KIND == NEAREST:
            index_y, inside_y, _ = tap_of(whole_y, rest_y, height, 0, KIND, PADDING)
            index_x, inside_x, _ = tap_of(whole_x, rest_x, width, 0, KIND, PADDING)
            value = tl.load(source + (index_y * stride_y + index_x * stride_x), mask=wanted)
            if PADDING == ZEROS:
                value = tl.where(inside_y & inside_x, value, fill_bits.to(value.dtype))
            tl.store(target, value, mask=wanted)
        else:
            fill = fill_bits.to(tl.float64, bitcast=True).to(SUMS)
            total = tl.zeros(whole_y.shape, SUMS)
            for v in tl.static_range(TAPS):
                index_y, inside_y, weight_y = tap_of(whole_y, rest_y, height, v, KIND, PADDING)
                along = tl.zeros(whole_y.shape, SUMS)
                for u in tl.static_range(TAPS):
                    index_x, inside_x, weight_x = tap_of(whole_x, rest_x, width, u, KIND, PADDING)
                    value = tl.load(source + (index_y * stride_y + index_x * stride_x), mask=wanted, other=0.0)
                    if value.dtype != tl.float64:
                        value = value.to(tl.float32)
                    value = value.to(SUMS)
                    if PADDING == ZEROS:
                        value = tl.where(inside_y & inside_x, value, fill)
                    along += weight_x * value
                total += weight_y * along
            if target_image.dtype.element_ty.is_int():
                total = tl.minimum(tl.maximum(tl.floor(total + 0.5), numbers[10]), numbers[11])
            tl.store(target, total.to(target_image.dtype.element_ty), mask=wanted)


# Bytes: each output pixel is written once, each input pixel that it shows is read once from memory and again, as a tap of its
# neighbours, from the caches. Limit: at least 2 elements an output pixel / copy bandwidth.
# Tile: 8 rows of 64 columns; the weights of the control points are worked out once a row or column, in float64, and a
# pixel takes two products for each of the columns of control points that reach into the tile, 3 of a 3 x 3 grid.
@triton.jit(
    do_not_specialize=["height", "width", "grid_height", "grid_width", "first_row", "first_block", "tiles_y", "tiles_x"]
    + ["numbers"]
)
def warp_images(
    inputs, outputs, numbers, displacement, matrix, height, width, grid_height, grid_width, first_row, first_block,
    tiles_y, tiles_x, COUNT: tl.constexpr, KINDS: tl.constexpr, FIELD: tl.constexpr, PADDING: tl.constexpr,
    HAS_MATRIX: tl.constexpr, SUMS: tl.constexpr, OFFSETS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    n, rows, columns, whole_y, rest_y, whole_x, rest_x = locate(
        tl.program_id(0), displacement, matrix, height, width, grid_height, grid_width, first_row, first_block, tiles_y,
        tiles_x, FIELD, PADDING, HAS_MATRIX, SUMS, ROWS,
    )  # fmt: skip
    for image in tl.static_range(COUNT):
        _sample(
            inputs[image], outputs[image], numbers[image], n, rows, columns, whole_y, rest_y, whole_x, rest_x, height,
            width, KINDS[image], PADDING, SUMS, OFFSETS,
        )  # fmt: skip


@triton.jit
def _power_of_two(exponent):
    """As float64, for exponents of normal numbers."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _shift(largest, bits):
    """Of the unit 2^-shift in which a sum of less than 2^bits times `largest` has 60 bits."""
    exponent = (largest.to(tl.int64, bitcast=True) >> 52) - 1023
    return tl.minimum(59 - bits - exponent, 1000)


@triton.jit
def _scatter(
    grads, targets, largest, numbers, n, rows, columns, whole_y, rest_y, whole_x, rest_x, height, width,
    KIND: tl.constexpr, PADDING: tl.constexpr, DETERMINISTIC: tl.constexpr,
):  # fmt: skip
    """All channels of one gradient for the pixels of a tile."""
    TAPS: tl.constexpr = 1 if KIND == NEAREST else (2 if KIND == BILINEAR else 4)
    stride_n = tl.cast(numbers[0], tl.int64)
    stride_c = tl.cast(numbers[1], tl.int64)
    stride_y = tl.cast(numbers[2], tl.int64)
    stride_x = tl.cast(numbers[3], tl.int64)
    channels = numbers[4]
    out_rows = rows - numbers[7]
    out_columns = columns - numbers[8]
    kept = (out_rows >= 0) & (out_rows < numbers[5])
    wanted = kept[:, None] & ((out_columns >= 0) & (out_columns < numbers[6]))[None, :]
    place = out_rows[:, None] * stride_y + out_columns[None, :] * stride_x
    area = tl.cast(height, tl.int64) * width
    for channel in range(0, channels):
        grad = tl.load(grads + n * stride_n + channel * stride_c + place, mask=wanted, other=0.0)
        target = targets + (n * channels + channel) * area
        if DETERMINISTIC:
            finite = (grad - grad) == 0.0
            shift = _shift(tl.load(largest + n * channels + channel), numbers[9])
            scaled = tl.where(finite, grad, 0.0).to(tl.float64) * _power_of_two(shift)
        for v in tl.static_range(TAPS):
            index_y, inside_y, weight_y = tap_of(whole_y, rest_y, height, v, KIND, PADDING)
            for u in tl.static_range(TAPS):
                index_x, inside_x, weight_x = tap_of(whole_x, rest_x, width, u, KIND, PADDING)
                to = target + (index_y.to(tl.int64) * width + index_x)
                mask = wanted & inside_y & inside_x if PADDING == ZEROS else wanted
                if DETERMINISTIC:
                    part = scaled * weight_y.to(tl.float64) * weight_x.to(tl.float64)
                    tl.atomic_add(to, tl.floor(part + 0.5).to(tl.int64), mask=mask & finite, sem="relaxed")
                    lost = tl.full(whole_y.shape, LOST, tl.int64)
                    tl.atomic_or(to, lost, mask=mask & (finite == 0), sem="relaxed")
                else:
                    tl.atomic_add(to, grad * weight_y * weight_x, mask=mask, sem="relaxed")


# The transpose: every output pixel adds its gradient, times the weights, to the input pixels that it read.
# Bytes: the gradient of the output is read once, that of the input cleared and written back by the L2 cache, where the
# additions happen: 3 elements a pixel / copy bandwidth; more likely the 4 additions a pixel (bilinear) are the limit.
# Deterministic: sums of 8 bytes, and `largest` for each channel of a sample.
@triton.jit(
    do_not_specialize=["height", "width", "grid_height", "grid_width", "first_row", "first_block", "tiles_y", "tiles_x"]
    + ["numbers"]
)
def scatter_gradients(
    grads, targets, largest, numbers, displacement, matrix, height, width, grid_height, grid_width, first_row,
    first_block, tiles_y, tiles_x, COUNT: tl.constexpr, KINDS: tl.constexpr, FIELD: tl.constexpr,
    PADDING: tl.constexpr, HAS_MATRIX: tl.constexpr, SUMS: tl.constexpr, DETERMINISTIC: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    n, rows, columns, whole_y, rest_y, whole_x, rest_x = locate(
        tl.program_id(0), displacement, matrix, height, width, grid_height, grid_width, first_row, first_block, tiles_y,
        tiles_x, FIELD, PADDING, HAS_MATRIX, SUMS, ROWS,
    )  # fmt: skip
    for image in tl.static_range(COUNT):
        _scatter(
            grads[image], targets[image], largest[image], numbers[image], n, rows, columns, whole_y, rest_y, whole_x,
            rest_x, height, width, KINDS[image], PADDING, DETERMINISTIC,
        )  # fmt: skip


# Bytes: 8 read and one float written for each pixel of a gradient.
@triton.jit(do_not_specialize=["area", "bits"])
def finish_sums(sums, largest, out, elements, area, bits, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < elements
    total = tl.load(sums + at, mask=here, other=0)
    shift = _shift(tl.load(largest + at // area, mask=here, other=0.0), bits)
    value = (total - BIAS).to(tl.float64) * _power_of_two(-shift)
    lost = (total & LOST) != 0
    tl.store(out + at, tl.where(lost, float("nan"), value).to(out.dtype.element_ty), mask=here)


def _window(frame: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """The frame pixel on which an output of this size begins."""
    return (frame[0] - size[0]) // 2, (frame[1] - size[1]) // 2


def _tiles(frame: Sequence[int], sizes: Sequence[Sequence[int]], rows: int) -> tuple[int, int, int, int]:
    """First row, first block, and the number of tiles down and across that cover outputs of these sizes."""
    windows = [_window(frame, size) for size in sizes]
    top, left = (min(window[axis] for window in windows) for axis in (0, 1))
    bottom, right = (
        max(window[axis] + size[axis] for window, size in zip(windows, sizes, strict=True)) for axis in (0, 1)
    )
    first_block = left // COLUMNS.value
    return top, first_block, triton.cdiv(bottom - top, rows), -(-right // COLUMNS.value) - first_block


def _bits(value: float, dtype: torch.dtype) -> int:
    """The bytes of a number of this dtype, as a signed integer of the same size."""
    return int(
        torch.tensor(value if dtype.is_floating_point else int(value), dtype=dtype).view(_INTEGERS[dtype.itemsize])
    )


def _range(dtype: torch.dtype) -> tuple[int, int]:
    """What whole numbers of this dtype are held within."""
    if dtype.is_floating_point or dtype == torch.bool:
        return 0, 0
    limits = torch.iinfo(dtype)
    return (limits.min, limits.max) if limits.bits <= 16 else (0, 0)


def _warps(sums: tl.dtype, interpolation: list[int]) -> int:
    """Half the pixels a thread where each takes many registers."""
    return 8 if sums == tl.float64 or INTERPOLATIONS.index("bicubic") in interpolation else 4


def _batches(indices: list[int]) -> list[list[int]]:
    return [indices[first : first + _IMAGES] for first in range(0, len(indices), _IMAGES)]


def elastic_warp(
    inputs: list[Tensor],
    displacement: Tensor,
    matrix: Tensor | None,
    output_size: list[int],
    interpolation: list[int],
    fill: list[float],
    field: int,
    padding: int,
) -> list[Tensor]:
    """As torch.ops.unet_fast.elastic_warp."""
    sizes = list(zip(output_size[::2], output_size[1::2], strict=True))
    outputs = _record.allocate(
        "elastic_warp", inputs, displacement, matrix, output_size, interpolation, fill, field, padding
    )
    batch, _, height, width = inputs[0].shape
    sums = tl.float64 if any(image.dtype == torch.float64 for image in inputs) else tl.float32
    points = coefficients_of(displacement, field)
    affine = points if matrix is None else matrix.contiguous()
    for chosen in _batches([i for i, out in enumerate(outputs) if out.numel()]):
        sources, targets, numbers = [], [], []
        for i in chosen:
            source, target, bits = inputs[i], outputs[i], struct.unpack("<q", struct.pack("<d", fill[i]))[0]
            if interpolation[i] == NEAREST.value:  # moved as it is
                bits, unit = _bits(fill[i], source.dtype), _INTEGERS[source.element_size()]
                source, target = source.view(unit), target.view(unit)
            sources.append(source)
            targets.append(target)
            shape = (*source.stride(), source.shape[1], *sizes[i], *_window((height, width), sizes[i]))
            numbers.append((*shape, bits, *_range(target.dtype)))
        extents = [
            (height - 1) * stride[2] + (width - 1) * stride[3] for stride in (image.stride() for image in sources)
        ]
        first_row, first_block, tiles_y, tiles_x = _tiles((height, width), [sizes[i] for i in chosen], _ROWS[sums])
        warp_images[(batch * tiles_y * tiles_x,)](
            tuple(sources), tuple(targets), tuple(numbers), points, affine, height, width, *points.shape[2:], first_row,
            first_block, tiles_y, tiles_x, COUNT=len(chosen), KINDS=tuple(interpolation[i] for i in chosen), FIELD=field,
            PADDING=padding, HAS_MATRIX=matrix is not None, SUMS=sums,
            OFFSETS=tl.int32 if max(extents) < 2**31 else tl.int64, ROWS=_ROWS[sums],
            num_warps=_warps(sums, [interpolation[i] for i in chosen]),
        )  # fmt: skip
    return outputs


def elastic_warp_backward(
    grads: list[Tensor],
    displacement: Tensor,
    matrix: Tensor | None,
    input_size: list[int],
    interpolation: list[int],
    field: int,
    padding: int,
    deterministic: bool,
) -> list[Tensor]:
    """As torch.ops.unet_fast.elastic_warp_backward.

    Workspace where ``deterministic``: 8 bytes for each pixel of the results.
    """
    height, width = input_size
    batch = displacement.shape[0]
    results = [grad.new_zeros((*grad.shape[:2], height, width)) for grad in grads]
    sums = tl.float64 if grads[0].dtype == torch.float64 else tl.float32
    points = coefficients_of(displacement, field)
    affine = points if matrix is None else matrix.contiguous()
    for chosen in _batches([i for i, grad in enumerate(grads) if grad.numel()]):
        sizes = [grads[i].shape[2:] for i in chosen]
        # of the sum of the absolute terms of a sum: all pixels may land on one, with weights up to 1.375^2 in all
        bits = [math.ceil(math.log2(size[0] * size[1])) + 1 for size in sizes]
        largest = targets = [results[i] for i in chosen]
        if deterministic:
            targets = [torch.full_like(result, BIAS.value, dtype=torch.int64) for result in targets]
            largest = [_largest(grads[i]) for i in chosen]
        first_row, first_block, tiles_y, tiles_x = _tiles(input_size, sizes, _ROWS[sums])
        numbers = tuple(
            (*grads[i].stride(), grads[i].shape[1], *size, *_window(input_size, size), bit)
            for i, size, bit in zip(chosen, sizes, bits, strict=True)
        )
        scatter_gradients[(batch * tiles_y * tiles_x,)](
            tuple(grads[i] for i in chosen), tuple(targets), tuple(largest), numbers, points, affine, height, width,
            *points.shape[2:], first_row, first_block, tiles_y, tiles_x, COUNT=len(chosen),
            KINDS=tuple(interpolation[i] for i in chosen), FIELD=field, PADDING=padding, HAS_MATRIX=matrix is not None,
            SUMS=sums, DETERMINISTIC=deterministic, ROWS=_ROWS[sums],
            num_warps=_warps(sums, [interpolation[i] for i in chosen]),
        )  # fmt: skip
        if deterministic:
            for i, total, most, bit in zip(chosen, targets, largest, bits, strict=True):
                count = total.numel()
                finish_sums[(triton.cdiv(count, _BLOCK),)](
                    total, most, results[i], count, height * width, bit, BLOCK=_BLOCK
                )
    return results


def _largest(grad: Tensor) -> Tensor:
    """The largest finite absolute value of each channel of each sample, float64."""
    return torch.where(grad.isfinite(), grad, 0.0).abs().amax((2, 3)).double().contiguous()


KERNELS: dict[str, Any] = {"elastic_warp": elastic_warp, "elastic_warp_backward": elastic_warp_backward}
