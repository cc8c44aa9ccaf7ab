"""relu(x + bias) and its backward, each in one pass.

A dense map is a matrix: planes by pixels (planar), where a row has one bias, or pixels by channels (channels-last), where
a column has one. Without a bias, or a gradient of one, it is a single row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _record, _tensors
from unet_fast.triton import _junction
from unet_fast.triton._junction import rectified_bits, wide_of

_TILE = 2048  # elements of a program: 16 for each of 128 threads, that is two to eight 16-byte loads in flight for each
_WIDEST = 512  # columns of a tile


@triton.jit
def _tile_of(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows, the columns and the row of tiles of this program."""
    across = tl.cdiv(columns, COLUMNS)
    down = tl.program_id(0) // across
    row = (down.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = ((tl.program_id(0) % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    return row, column, down, (row < rows) & (column < columns)


# Forward. Bytes: 2 an element of a byte (read, written); limit: those / copy bandwidth.
# Tile: as wide as the matrix allows up to 512 elements, since a row is what lies side by side, and as many rows as fill it.
@triton.jit
def rectify(
    x, bias, out, rows, units, channels, UNIT: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, FLOAT: tl.constexpr, INT: tl.constexpr, WIDE: tl.constexpr, MAGNITUDE: tl.constexpr,
    INFINITY: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    columns = units * UNIT
    row, column, _, inside = _tile_of(rows, columns, ROWS, COLUMNS)
    at = row * units * UNIT + column
    b = None
    if bias is not None:
        if LAST:
            b = tl.load(bias + column, mask=column < columns, other=0.0)
        else:
            b = tl.load(bias + row % channels, mask=row < rows, other=0.0)
    bits = tl.load(x + at, mask=inside, other=0)
    tl.store(out + at, rectified_bits(bits, b, FLOAT, INT, WIDE, MAGNITUDE, INFINITY, CUT), mask=inside)


# Backward: the gradient where the output is not 0, and its sums. Bytes: 3 an element of a byte; limit: those / copy
# bandwidth. Tile: as in the forward. Its sums over pixels go to one row of `partial` (parts, channels): no atomics.
@triton.jit
def let_through(
    grad, result, grad_x, partial, rows, units, channels, UNIT: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, FLOAT: tl.constexpr, WIDE: tl.constexpr, MAGNITUDE: tl.constexpr,
):  # fmt: skip
    columns = units * UNIT
    row, column, down, inside = _tile_of(rows, columns, ROWS, COLUMNS)
    at = row * units * UNIT + column
    on = (tl.load(result + at, mask=inside, other=0) & MAGNITUDE) != 0
    bits = tl.where(on, tl.load(grad + at, mask=inside, other=0), 0).to(grad.dtype.element_ty)
    tl.store(grad_x + at, bits, mask=inside)
    if partial is not None:
        value = wide_of(bits, FLOAT, WIDE)
        if LAST:
            sums = tl.sum(value, axis=0)[None, :].to(tl.float64)
            tl.store(partial + down.to(tl.int64) * columns + column, sums, mask=column < columns)
        else:
            part = row // channels * tl.cdiv(columns, COLUMNS) + tl.program_id(0) % tl.cdiv(columns, COLUMNS)
            sums = tl.sum(value, axis=1)[:, None].to(tl.float64)
            tl.store(partial + part * channels + row % channels, sums, mask=row < rows)


def _matrix(dense: Tensor, by_channel: bool) -> tuple[int, int, bool]:
    """Rows and columns, and whether the columns are the channels."""
    n, c = dense.shape[:2]
    if not by_channel:
        return 1, dense.numel(), False
    if _tensors.is_channels_last(dense):
        return dense.numel() // c, c, True
    return n * c, dense.numel() // (n * c), False


def _tiling(rows: int, columns: int) -> tuple[int, int, int]:
    """Rows and columns of a tile, and the number of tiles across."""
    width = min(triton.next_power_of_2(columns), _WIDEST if rows > 1 else _TILE)
    height = min(triton.next_power_of_2(rows), _TILE // width)
    return height, width, triton.cdiv(columns, width)


def _apply(x: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if not x.numel():
        return
    rows, columns, last = _matrix(x, bias is not None)
    height, width, across = _tiling(rows, columns)
    unit = _junction.unit(columns)
    rectify[(triton.cdiv(rows, height) * across,)](
        _junction.bits_of(x), bias if bias is None else bias.contiguous(), _junction.bits_of(out),
        rows, columns // unit, x.shape[1], UNIT=unit, LAST=last, ROWS=height, COLUMNS=width,
        **_junction.number(x.dtype),
    )  # fmt: skip


def bias_relu(x: Tensor, bias: Tensor | None) -> Tensor:
    """As torch.ops.unet_fast.bias_relu."""
    out = _record.allocate("bias_relu", x, bias)
    _apply(x.contiguous(memory_format=_tensors.dense_format(x)), bias, out)
    return out


def bias_relu_(x: Tensor, bias: Tensor | None) -> None:
    """As torch.ops.unet_fast.bias_relu_."""
    dense = x.contiguous(memory_format=_tensors.dense_format(x))
    _apply(dense, bias, dense)
    if dense.data_ptr() != x.data_ptr():
        x.copy_(dense)


def bias_relu_backward(grad: Tensor, out: Tensor, want_bias: bool) -> tuple[Tensor, Tensor]:
    """As torch.ops.unet_fast.bias_relu_backward. Workspace: 8 bytes a channel for each tile."""
    grad_x, grad_bias = _record.allocate("bias_relu_backward", grad, out, want_bias)
    layout = _tensors.dense_format(out)
    grad, out = grad.contiguous(memory_format=layout), out.contiguous(memory_format=layout)
    n, channels = out.shape[:2]
    parts, partial = 0, grad.new_empty(0, dtype=torch.float64)
    if out.numel():
        rows, columns, last = _matrix(out, want_bias)
        height, width, across = _tiling(rows, columns)
        unit = _junction.unit(columns)
        if want_bias:
            parts = triton.cdiv(rows, height) if last else n * across
            partial = grad.new_empty(parts, channels, dtype=torch.float64)
        number = _junction.number(grad.dtype)
        let_through[(triton.cdiv(rows, height) * across,)](
            _junction.bits_of(grad), _junction.bits_of(out), _junction.bits_of(grad_x), partial if want_bias else None,
            rows, columns // unit, channels, UNIT=unit, LAST=last, ROWS=height, COLUMNS=width,
            **{name: number[name] for name in ("FLOAT", "WIDE", "MAGNITUDE")},
        )  # fmt: skip
    _junction.channel_sums(partial, parts, grad_bias)
    return grad_x, grad_bias


KERNELS: dict[str, Any] = {"bias_relu": bias_relu, "bias_relu_": bias_relu_, "bias_relu_backward": bias_relu_backward}
