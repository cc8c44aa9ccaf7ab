"""crop_concat and its backward as copies of boxes between strided tensors.

Both layouts and both directions are one thing: a box of five dimensions (A, B, C, rows, columns) whose last one lies
side by side in memory: (N, C, D, H, W) for planar tensors, (N, D, H, W, C) for channels-last ones.

Elements travel as words: the widest of 1, 2, 4, 8 or 16 bytes that divides every size, stride and address of the call.
So the dtype does not matter, and nearly every real shape (a width and a crop that are multiples of 4 in bfloat16) moves
8 or 16 bytes at a time. All sizes and strides below count words. Triton has no integers of 16 bytes: such a word is two
units of 8, and the factor PER_WORD, a constant, lets the compiler see that it may access both at once.
"""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from unet_fast.ops import _record, _tensors
from unet_fast.triton import _junction

_UNITS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}
_WIDEST = 16
_TILE = 2048  # units of one program: 16 for each of 128 threads, that is eight 16-byte loads in flight for each


@triton.jit
def _place_of(tile, size_b, size_c, size_rows, size_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which a, b, c this tile lies in, and where its rows and columns begin: scalars, once a program."""
    tiles_x = tl.cdiv(size_columns, COLUMNS)
    tiles_y = tl.cdiv(size_rows, ROWS)
    x = tile % tiles_x
    rest = tile // tiles_x
    y = rest % tiles_y
    rest = rest // tiles_y
    c = rest % size_c
    rest = rest // size_c
    b = rest % size_b
    a = rest // size_b
    return a.to(tl.int64), b.to(tl.int64), c.to(tl.int64), y.to(tl.int64) * ROWS, x * COLUMNS


@triton.jit
def _copy_tile(
    tile, source, target, size_b, size_c, size_rows, size_columns, source_a, source_b, source_c, source_row,
    target_a, target_b, target_c, target_row, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PER_WORD: tl.constexpr,
):  # fmt: skip
    units = size_columns * PER_WORD
    a, b, c, first_row, first_column = _place_of(tile, size_b, size_c, size_rows, units, ROWS, COLUMNS)
    rows = (first_row + tl.arange(0, ROWS))[:, None]
    columns = (first_column + tl.arange(0, COLUMNS))[None, :]
    inside = (rows < size_rows) & (columns < units)
    from_row = (a * source_a + b * source_b + c * source_c + rows * source_row) * PER_WORD
    to_row = (a * target_a + b * target_b + c * target_c + rows * target_row) * PER_WORD
    tl.store(target + to_row + columns, tl.load(source + from_row + columns, mask=inside), mask=inside)


# Forward: out[:, :C1] <- the crop of skip, out[:, C1:] <- up, in one launch; the first programs do the first half. The
# crop is part of the pointer and the strides of `skip`.
# Bytes: 2 an output byte (read, written), nothing else; limit: 2 * bytes of the result / copy bandwidth.
# Tile: as wide as the rows allow, since one row is what lies side by side in memory, and as many rows as fill _TILE.
@triton.jit(
    do_not_specialize=[f"{tensor}_{dim}" for tensor in ("skip", "up", "out") for dim in ("a", "b", "c", "row")]
    + ["skip_tiles", "up_start", "size_c", "size_rows", "skip_size_b", "skip_columns", "up_size_b", "up_columns"]
)
def copy_two_boxes(
    skip, up, out, skip_tiles, up_start, size_c, size_rows, skip_size_b, skip_columns, up_size_b, up_columns,
    skip_a, skip_b, skip_c, skip_row, up_a, up_b, up_c, up_row, out_a, out_b, out_c, out_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PER_WORD: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    if tile < skip_tiles:
        _copy_tile(tile, skip, out, skip_size_b, size_c, size_rows, skip_columns, skip_a, skip_b, skip_c, skip_row,
                   out_a, out_b, out_c, out_row, ROWS, COLUMNS, PER_WORD)  # fmt: skip
    else:
        _copy_tile(tile - skip_tiles, up, out + up_start * PER_WORD, up_size_b, size_c, size_rows, up_columns, up_a,
                   up_b, up_c, up_row, out_a, out_b, out_c, out_row, ROWS, COLUMNS, PER_WORD)  # fmt: skip


# Backward: target <- source inside a window of it, 0 around; every element is written once, nothing is cleared first.
# Bytes: 1 a byte of the gradient of `skip` (written) and 1 a byte of its window (read); limit: their sum / bandwidth.
# Tile: as in the forward. Programs outside the window load nothing.
@triton.jit(
    do_not_specialize=[f"{what}_{dim}" for what in ("source", "target") for dim in ("a", "b", "c", "row")]
    + [f"{what}_{dim}" for what in ("size", "start", "window") for dim in ("b", "c", "rows", "columns")]
)
def place_box(
    source, target, size_b, size_c, size_rows, size_columns, start_b, start_c, start_rows, start_columns,
    window_b, window_c, window_rows, window_columns, source_a, source_b, source_c, source_row,
    target_a, target_b, target_c, target_row, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PER_WORD: tl.constexpr,
):  # fmt: skip
    units = size_columns * PER_WORD
    tile = tl.program_id(0)
    a, b, c, first_row, first_column = _place_of(tile, size_b, size_c, size_rows, units, ROWS, COLUMNS)
    rows = (first_row + tl.arange(0, ROWS))[:, None]
    columns = (first_column + tl.arange(0, COLUMNS))[None, :]
    from_b, from_c = b - start_b, c - start_c
    from_rows, from_columns = rows - start_rows, columns - start_columns * PER_WORD
    beside = (from_b < 0) | (from_b >= window_b) | (from_c < 0) | (from_c >= window_c)
    last_row = tl.where(beside, 0, window_rows)  # a scalar, not a mask: the interpreter cannot mix the two
    window = (from_rows >= 0) & (from_rows < last_row)
    window = window & (from_columns >= 0) & (from_columns < window_columns * PER_WORD)
    from_row = (a * source_a + from_b * source_b + from_c * source_c + from_rows * source_row) * PER_WORD
    to_row = (a * target_a + b * target_b + c * target_c + rows * target_row) * PER_WORD
    values = tl.load(source + from_row + from_columns, mask=window, other=0)
    tl.store(target + to_row + columns, values, mask=(rows < size_rows) & (columns < units))


def _box(tensor: Tensor, channels_last: bool) -> Tensor:
    """The tensor with five dimensions and the innermost one last."""
    volume = tensor if tensor.dim() == 5 else tensor.unsqueeze(2)
    return volume.permute(0, 2, 3, 4, 1) if channels_last else volume


def _word(*boxes: Tensor, steps: tuple[int, ...] = ()) -> int:
    """The bytes of the widest word in which all of these boxes, and these steps in elements, can be counted."""
    size = boxes[0].element_size()
    word = math.gcd(_WIDEST, *(step * size for step in steps))
    for box in boxes:
        strides = (stride for stride, n in zip(box.stride()[:4], box.shape[:4], strict=True) if n > 1)
        word = math.gcd(word, box.data_ptr(), box.shape[4] * size, *(stride * size for stride in strides))
    return word


def _strides(box: Tensor, word: int) -> list[int]:
    """The outer four strides in words."""
    outer = zip(box.stride()[:4], box.shape[:4], strict=True)
    return [stride * box.element_size() // word if n > 1 else 0 for stride, n in outer]


def _tiling(rows: int, *widths: int) -> tuple[int, int]:
    columns = _junction.columns(*widths)
    return min(_TILE // columns, triton.next_power_of_2(max(1, rows))), columns


def _tiles(box: Tensor, columns_of_box: int, rows: int, columns: int) -> int:
    a, b, c, height = box.shape[:4]
    return a * b * c * triton.cdiv(height, rows) * triton.cdiv(columns_of_box, columns)


def crop_concat(skip: Tensor, up: Tensor) -> Tensor:
    """As torch.ops.unet_fast.crop_concat."""
    result = _record.allocate("crop_concat", skip, up)
    # a result of one channel or pixel is both, and planar suits
    channels_last = _tensors.is_channels_last(result)
    for dim in range(2, skip.dim()):
        skip = skip.narrow(dim, (skip.shape[dim] - up.shape[dim]) // 2, up.shape[dim])
    skip, up = _tensors.innermost_dense(skip, channels_last), _tensors.innermost_dense(up, channels_last)
    c1, c2 = skip.shape[1], up.shape[1]
    first, second, out = (_box(tensor, channels_last) for tensor in (skip, up, result))
    up_start = c1 * result.stride(1) if c2 else 0
    word = _word(first, second, out, steps=(up_start,))
    per_word, scale = max(1, word // 8), up.element_size()
    unit = word // per_word
    widths = [first.shape[4] * scale // unit, second.shape[4] * scale // unit]
    rows, columns = _tiling(out.shape[3], *widths)
    tiles = [_tiles(box, width, rows, columns) for box, width in zip((first, second), widths, strict=True)]
    if sum(tiles):
        pointers = (triton.reinterpret(tensor, _UNITS[unit]) for tensor in (skip, up, result))
        copy_two_boxes[(sum(tiles),)](
            *pointers, tiles[0], up_start * scale // word, out.shape[2], out.shape[3], first.shape[1],
            first.shape[4] * scale // word, second.shape[1], second.shape[4] * scale // word,
            *_strides(first, word), *_strides(second, word), *_strides(out, word),
            ROWS=rows, COLUMNS=columns, PER_WORD=per_word,
        )  # fmt: skip
    return result


def crop_concat_backward(grad: Tensor, skip_channels: int, skip_size: list[int]) -> Tensor:
    """As torch.ops.unet_fast.crop_concat_backward."""
    result = _record.allocate("crop_concat_backward", grad, skip_channels, skip_size)
    place(grad[:, :skip_channels], result, _tensors.is_channels_last(grad))
    return result


def place(tensor: Tensor, result: Tensor, channels_last: bool) -> None:
    """The centre of ``result``, which may be a part of the channels of another tensor, becomes ``tensor``, the rest 0."""
    tensor = _tensors.innermost_dense(tensor, channels_last)
    source, target = _box(tensor, channels_last), _box(result, channels_last)
    start = [(full - crop) // 2 for full, crop in zip(target.shape, source.shape, strict=True)]
    word = _word(source, target, steps=(start[4],))
    per_word, scale = max(1, word // 8), tensor.element_size()
    width = target.shape[4] * scale // (word // per_word)
    rows, columns = _tiling(target.shape[3], width)
    tiles = _tiles(target, width, rows, columns)
    if tiles:
        unit = _UNITS[word // per_word]
        in_words = lambda box: [*box[1:4], box[4] * scale // word]  # noqa: E731
        place_box[(tiles,)](
            triton.reinterpret(tensor, unit), triton.reinterpret(result, unit),
            *in_words(target.shape), *in_words(start), *in_words(source.shape),
            *_strides(source, word), *_strides(target, word), ROWS=rows, COLUMNS=columns, PER_WORD=per_word,
        )  # fmt: skip


KERNELS: dict[str, Any] = {"crop_concat": crop_concat, "crop_concat_backward": crop_concat_backward}
