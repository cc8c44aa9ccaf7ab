"""Where the pixels of a warp read: the field from its control points on the fly, the matrix, and the taps of each axis.

The steps, and the order of the sums, are those of the C++ kernels: blocks of 64 pixels of a row on fixed positions of the
frame, relative to an integer origin (csrc/common/warp_coordinates.h), then a pixel and a rest for each axis
(csrc/common/warp_taps.h), from which every image takes its taps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast._warp_arguments import FIELDS, INTERPOLATIONS, PADDINGS

# in the order of csrc/common
NEAREST = tl.constexpr(INTERPOLATIONS.index("nearest"))
BILINEAR = tl.constexpr(INTERPOLATIONS.index("bilinear"))
BICUBIC_FIELD = tl.constexpr(FIELDS.index("bicubic"))
BSPLINE = tl.constexpr(FIELDS.index("bspline"))
SMOOTH = tl.constexpr(FIELDS.index("bspline_smooth"))
MIRROR = tl.constexpr(PADDINGS.index("mirror"))
ZEROS = tl.constexpr(PADDINGS.index("zeros"))

COLUMNS = tl.constexpr(64)  # the blocks of csrc/common/warp_coordinates.h
BESIDE = tl.constexpr(8)
FARTHEST = tl.constexpr(float(1 << 30))
NEAR = tl.constexpr(float(1 << 22))
FAR = tl.constexpr(float(1 << 52))

_LINES = 32  # of control points in one program


@triton.jit
def _keys(t, TAP: tl.constexpr):
    """Weight of tap -1, 0, 1 or 2 of Keys' cubic convolution, a = -0.75."""
    near = t if TAP <= 1 else 1.0 - t
    if TAP == 0 or TAP == 3:
        far = near + 1.0
        weight = ((-0.75 * far + 3.75) * far - 6.0) * far + 3.0
    else:
        weight = (1.25 * near - 2.25) * near * near + 1.0
    return weight


@triton.jit
def _control_taps(pixel, n, g, FIELD: tl.constexpr):
    """The four control points, of g, that act on the pixels of an axis of n, and their weights: two (pixels, 4) tensors."""
    tap = tl.arange(0, 4)[None, :]
    inside = tl.minimum(tl.maximum(pixel, 0), n - 1)
    steps = g - 3 if FIELD == SMOOTH else g - 1
    scaled = inside * steps  # 0 where n is 1
    span = tl.maximum(n - 1, 1)
    base = scaled // span
    t = ((scaled - base * span).to(tl.float64) / tl.cast(span, tl.float64))[:, None]
    d = tl.abs(t - (tap - 1).to(tl.float64))  # from the pixel to the control point: the kernels are symmetric
    central = (tap == 1) | (tap == 2)
    if FIELD == BICUBIC_FIELD:
        weight = tl.where(central, (1.25 * d - 2.25) * d * d + 1.0, ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0)
    else:
        far = 2.0 - d
        weight = tl.where(central, 4.0 + d * d * (3.0 * d - 6.0), far * far * far) / 6.0
    i = base[:, None].to(tl.int32) + (tap if FIELD == SMOOTH else tap - 1)
    if FIELD == BSPLINE:
        positive = tl.abs(i)
        index = tl.minimum(tl.where(positive < g, positive, tl.abs(2 * (g - 1) - positive)), g - 1)
    else:
        index = tl.minimum(tl.maximum(i, 0), g - 1)
    return index, weight


@triton.jit
def _start(matrix, row: tl.constexpr, y, x, centre_y, centre_x, HAS_MATRIX: tl.constexpr):
    """Row `row` of the matrix, and where the first pixels of the blocks read along that axis: origin and offset."""
    if HAS_MATRIX:
        to_y = tl.load(matrix + 3 * row).to(tl.float64)
        to_x = tl.load(matrix + 3 * row + 1).to(tl.float64)
        shift = tl.load(matrix + 3 * row + 2).to(tl.float64)
    else:
        to_y = tl.cast(1.0 - row, tl.float64)
        to_x = tl.cast(0.0 + row, tl.float64)
        shift = tl.cast(0.0, tl.float64)
    centre = centre_x if row else centre_y
    base = centre + (to_y * (y - centre_y) + to_x * (x - centre_x)) + shift
    origin = tl.floor(tl.where(tl.abs(base) <= FARTHEST, base, 0.0))
    return to_y, to_x, origin.to(tl.int32), base - origin


@triton.jit
def _point(origin, relative, n, PADDING: tl.constexpr):
    """Pixel floor(q) and the rest of q = origin + relative; that pixel and those around it may go through a reflection."""
    near = (relative >= -NEAR) & (relative <= NEAR)
    safe = tl.where(near, relative, 0.0)
    floor = tl.floor(safe)
    whole = origin + floor.to(tl.int32)
    rest = safe - floor
    odd = ~near
    if PADDING == MIRROR:
        odd = odd | (whole < 2 - n) | (whole > 2 * (n - 2))
    if tl.max(odd.to(tl.int32)) > 0:  # seldom: the same in 64 bits
        wished = origin.to(tl.float64) + relative.to(tl.float64)
        missing = wished != wished
        q = tl.where(missing, 0.0, wished)
        q = tl.where(q < -FAR, -FAR, tl.where(q > FAR, FAR, q))
        far_floor = tl.floor(q)
        i = far_floor.to(tl.int64)
        if PADDING == MIRROR:
            period = tl.maximum(2 * (tl.cast(n, tl.int64) - 1), 1)
            i = i % period
            i = tl.where(i < 0, i + period, i)
        else:
            i = tl.minimum(tl.maximum(i, -BESIDE), tl.cast(n, tl.int64) + BESIDE)
            if PADDING == ZEROS:
                i = tl.where(missing, -BESIDE, i)
        whole = tl.where(odd, i.to(tl.int32), whole)
        rest = tl.where(odd, (q - far_floor).to(rest.dtype), rest)
    return whole, rest


@triton.jit
def locate(
    program, displacement, matrix, height, width, grid_height, grid_width, first_row, first_block, tiles_y, tiles_x,
    FIELD: tl.constexpr, PADDING: tl.constexpr, HAS_MATRIX: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The sample, rows and columns of this program's tile of the frame, and where its pixels read."""
    tile = program // tiles_x
    n = (tile // tiles_y).to(tl.int64)
    rows = tl.cast(first_row, tl.int64) + (tile % tiles_y) * ROWS + tl.arange(0, ROWS)
    first_column = (tl.cast(first_block, tl.int64) + program % tiles_x) * COLUMNS
    columns = first_column + tl.arange(0, COLUMNS)

    index_y, weight_y = _control_taps(rows, height, grid_height, FIELD)
    index_x, weight_x = _control_taps(columns, width, grid_width, FIELD)
    uy = tl.zeros([ROWS, COLUMNS], SUMS)
    ux = tl.zeros([ROWS, COLUMNS], SUMS)
    plane = displacement + n * 2 * grid_height * grid_width
    for j in range(tl.min(index_x), tl.max(index_x) + 1):  # the columns of control points that reach into the tile
        at = plane + index_y.to(tl.int64) * grid_width + j
        sum_y = tl.sum(weight_y * tl.load(at).to(tl.float64), axis=1)
        sum_x = tl.sum(weight_y * tl.load(at + tl.cast(grid_height, tl.int64) * grid_width).to(tl.float64), axis=1)
        weight = tl.sum(tl.where(index_x == j, weight_x, 0.0), axis=1).to(SUMS)
        uy += sum_y.to(SUMS)[:, None] * weight[None, :]
        ux += sum_x.to(SUMS)[:, None] * weight[None, :]

    centre_y = tl.cast(height - 1, tl.float64) * 0.5
    centre_x = tl.cast(width - 1, tl.float64) * 0.5
    of_sample = matrix + n * 6
    y, x = rows.to(tl.float64), first_column.to(tl.float64)
    yy, yx, origin_y, offset_y = _start(of_sample, 0, y, x, centre_y, centre_x, HAS_MATRIX)
    xy, xx, origin_x, offset_x = _start(of_sample, 1, y, x, centre_y, centre_x, HAS_MATRIX)
    step = tl.arange(0, COLUMNS).to(SUMS)[None, :]
    relative_y = offset_y.to(SUMS)[:, None] + (yx.to(SUMS) * step + (yy.to(SUMS) * uy + yx.to(SUMS) * ux))
    relative_x = offset_x.to(SUMS)[:, None] + (xx.to(SUMS) * step + (xy.to(SUMS) * uy + xx.to(SUMS) * ux))
    whole_y, rest_y = _point(origin_y[:, None], relative_y, height, PADDING)
    whole_x, rest_x = _point(origin_x[:, None], relative_x, width, PADDING)
    return n, rows, columns, whole_y, rest_y, whole_x, rest_x


@triton.jit
def tap_of(whole, rest, n, TAP: tl.constexpr, KIND: tl.constexpr, PADDING: tl.constexpr):
    """Where tap TAP of the pixels reads along one axis, whether that is inside, and its weight."""
    if KIND == NEAREST:
        i = whole + (rest >= 0.5).to(tl.int32)
        weight = rest * 0.0 + 1.0
    elif KIND == BILINEAR:
        i = whole + TAP
        weight = rest if TAP == 1 else 1.0 - rest
    else:
        i = whole + (TAP - 1)
        weight = _keys(rest, TAP)
    if PADDING == MIRROR:
        positive = tl.abs(i)
        index = tl.minimum(tl.where(positive < n, positive, tl.abs(2 * (n - 1) - positive)), n - 1)
    else:
        index = tl.minimum(tl.maximum(i, 0), n - 1)
    return index, i == index, weight


# Turns lines of n control points into B-spline coefficients, as bspline_prefilter of csrc/common/warp_field.h. A line is the
# work of one thread; a few kilobytes in all.
@triton.jit(do_not_specialize=["lines", "n", "stride", "inner", "step"])
def prefilter(coefficients, lines, n, stride, inner, step, BLOCK: tl.constexpr):
    line = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = line < lines
    c = coefficients + (line // inner).to(tl.int64) * step + (line % inner) * (1 if stride > 1 else n)
    pole = tl.full([BLOCK], -0.26794919243112270647, tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    power = tl.full([BLOCK], 1.0, tl.float64)
    for k in range(0, 2 * n - 2):
        total += power * tl.load(c + tl.where(k < n, k, 2 * (n - 1) - k) * stride, mask=here, other=0.0)
        power *= pole
    previous = 6.0 * total / (1.0 - power)
    tl.store(c, previous, mask=here)
    for k in range(1, n - 1):
        previous = 6.0 * tl.load(c + k * stride, mask=here, other=0.0) + pole * previous
        tl.store(c + k * stride, previous, mask=here)
    # The last point stands outside of the loop: of two names for one value, as "the one before", Triton carries only one.
    last = c + (n - 1) * stride
    end = 6.0 * tl.load(last, mask=here, other=0.0) + pole * previous
    previous = pole / (pole * pole - 1.0) * (pole * previous + end)
    tl.store(last, previous, mask=here)
    for k in range(1, n):
        at = c + (n - 1 - k) * stride
        previous = pole * (previous - tl.load(at, mask=here, other=0.0))
        tl.store(at, previous, mask=here)


def coefficients_of(displacement: Tensor, field: int) -> Tensor:
    """The control points that the kernels add up: for B-splines, coefficients; 16 bytes of workspace for each point."""
    if field != BSPLINE.value:
        return displacement.contiguous()
    coefficients = displacement.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    n, _, height, width = coefficients.shape
    for lines, length, stride, inner, step in (
        (n * 2 * height, width, 1, height, height * width),
        (n * 2 * width, height, width, width, height * width),
    ):
        if lines and length > 1:
            prefilter[(triton.cdiv(lines, _LINES),)](
                coefficients, lines, length, stride, inner, step, BLOCK=_LINES, num_warps=1
            )
    return coefficients
