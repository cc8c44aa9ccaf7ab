"""Where the tiles of an image lie, and how a window that reaches beyond the image is filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

PADDINGS = ("mirror", "zeros", "nearest")


@dataclass(frozen=True)
class AxisPlan:
    """The tiles along one axis: each returns ``size`` pixels, the k-th from ``starts[k]`` on."""

    size: int
    starts: tuple[int, ...]


def plan_axis(length: int, tile: int, smallest: int, step: int) -> AxisPlan:
    """Cover ``length`` pixels with equal tiles of a legal size ``smallest + k * step`` that starts at multiples of
    ``step``.

    Starts at multiples of ``step`` keep the pooling grid of every tile on that of the whole image. ``tile`` is
    rounded up to a legal size at which neighbours meet; then, with the number of tiles that this takes, the tiles are
    made as small as the length allows, so that little is computed outside the image.
    """
    rest = smallest % step
    # a tile advances by whole steps only, so it must hold at least one, unless it is the only one
    largest = max(_round_up(tile, smallest, step), _round_up(step, smallest, step))
    count = 1 if length <= largest else -(-(length - largest) // (largest - rest)) + 1
    # count tiles of steps * step + rest pixels that advance by steps * step reach count * steps * step + rest
    steps = max(-(-(length - rest) // (count * step)), (smallest - rest) // step)
    return AxisPlan(steps * step + rest, tuple(index * steps * step for index in range(count)))


def _round_up(value: int, smallest: int, step: int) -> int:
    """The first of smallest, smallest + step, ... that is at least ``value``."""
    return smallest + max(0, -(-(value - smallest) // step)) * step


def padded_indices(start: int, length: int, size: int, padding: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixel, of a line of ``size``, that each of ``length`` positions from ``start`` on (maybe negative) reads.

    "mirror" is ``d c b | a b c d | c b a`` (SciPy "mirror", NumPy "reflect") and repeats when the window is larger
    than the line; "nearest" takes the last pixel; "zeros" does too and also returns the mask of
    the positions that are inside.
    """
    positions = np.arange(start, start + length)
    if padding == "mirror":
        period = max(2 * (size - 1), 1)
        folded = positions % period
        return np.where(folded < size, folded, period - folded), None
    clamped = positions.clip(0, size - 1)
    return clamped, (positions == clamped) if padding == "zeros" else None


def gather_window(
    image: np.ndarray | Tensor | Any, start: tuple[int, int], size: tuple[int, int], padding: str
) -> Tensor:
    """The window of ``size`` (h, w) from ``start`` (y, x) on, of an image (C, H, W), as float32 on the image's device.

    Only the pixels that the window needs are read and converted: the image may be a memory map.
    """
    rows, rows_inside = padded_indices(start[0], size[0], image.shape[1], padding)
    columns, columns_inside = padded_indices(start[1], size[1], image.shape[2], padding)
    top, left = int(rows.min()), int(columns.min())
    part = image[:, top : int(rows.max()) + 1, left : int(columns.max()) + 1]
    # astype copies into memory that torch may own: the source can be read-only or of foreign byte order
    window = part.float() if isinstance(part, Tensor) else torch.from_numpy(part.astype(np.float32, order="C"))
    for dim, indices, first in ((1, rows, top), (2, columns, left)):
        if indices.size != window.shape[dim] or (np.diff(indices) != 1).any():
            window = window.index_select(dim, torch.from_numpy(indices - first).to(window.device))
    for inside, shape in ((rows_inside, (1, -1, 1)), (columns_inside, (1, 1, -1))):
        if inside is not None and not inside.all():
            window = window * torch.from_numpy(inside).to(window.device).view(shape)
    return window
