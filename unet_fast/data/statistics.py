"""Mean and standard deviation of the channels of an image, from blocks of rows: the same numbers however it is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from unet_fast.errors import InputError

_TABLE_BITS = 16  # integers up to this wide are normalised by a table


@dataclass
class GreyStatistics:
    """Mean and standard deviation a channel, float64 (C,); a constant channel has 0."""

    mean: np.ndarray
    std: np.ndarray
    _tables: dict[np.dtype, np.ndarray] = field(default_factory=dict, repr=False)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """``image`` (C, ...) minus the mean, divided by the standard deviation, as float32; 0 where that is 0.

        Computed in float64 and rounded once, so that a pixel's value does not depend on the window that it is in.
        """
        out = np.empty(image.shape, np.float32)
        if image.dtype.kind in "ui" and 8 * image.dtype.itemsize <= _TABLE_BITS and image.size >= 2**_TABLE_BITS:
            table = self._table(image.dtype)
            unsigned = image.view(np.dtype(f"u{image.dtype.itemsize}")) if image.dtype.isnative else None
            if unsigned is not None:
                for channel in range(len(image)):
                    np.take(table[channel], unsigned[channel], out=out[channel])
                return out
        for channel, pixels in enumerate(image):
            out[channel] = self._scaled(pixels.astype(np.float64), channel)
        return out

    def _scaled(self, values: np.ndarray, channel: int) -> np.ndarray:
        std = self.std[channel]
        return (values - self.mean[channel]) / std if std > 0 else np.zeros_like(values)

    def _table(self, dtype: np.dtype) -> np.ndarray:
        """(C, 256 or 65536) float32: the value of every integer, by its bits."""
        if dtype not in self._tables:
            values = np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype).astype(np.float64)
            self._tables[dtype] = np.stack([self._scaled(values, c) for c in range(len(self.mean))]).astype(np.float32)
        return self._tables[dtype]


def measure(blocks: Callable[[], Iterable[np.ndarray]]) -> GreyStatistics:
    """The statistics of an image that ``blocks()`` gives as blocks of whole rows (C, h, W), each time from the start.

    Integers up to 16 bits are summed exactly in one pass. Other dtypes take two, mean first; every row is summed by
    itself in float64, and the sums of the rows exactly, so that the height of the blocks makes no difference.

    Raises:
        InputError: NaN or infinite values, or no pixels.

    Equivalent to::

        GreyStatistics(image.mean(axis=(1, 2)), image.std(axis=(1, 2)))
    """
    exact: list[list[int]] | None = None  # pixels, sum, sum of squares a channel
    rows: list[list[float]] = []
    count = 0
    for block in blocks():
        count += block[0].size
        if block.dtype.kind in "bui" and block.dtype.itemsize <= 2:
            exact = exact or [[0, 0] for _ in block]
            for sums, pixels in zip(exact, block, strict=True):
                total, squares = _exact_sums(pixels)
                sums[0] += total
                sums[1] += squares
        else:
            rows = rows or [[] for _ in block]
            for sums_of_rows, pixels in zip(rows, block, strict=True):
                sums_of_rows += np.ascontiguousarray(pixels).sum(axis=1, dtype=np.float64).tolist()
    if count == 0:
        raise InputError("the image is empty; expected at least one pixel")
    if exact is not None:
        mean = [float(Fraction(total, count)) for total, _ in exact]
        variance = [float(Fraction(count * squares - total**2, count**2)) for total, squares in exact]
        return GreyStatistics(np.array(mean), np.sqrt(variance))
    mean = [_sum(values) / count for values in rows]
    squared: list[list[float]] = [[] for _ in rows]
    for block in blocks():
        for channel, pixels in enumerate(block):
            apart = pixels.astype(np.float64) - mean[channel]
            squared[channel] += np.square(apart, out=apart).sum(axis=1).tolist()
    std = np.sqrt([_sum(values) / count for values in squared])
    # a constant channel can leave a rounding error of its mean behind, which must not be blown up to 1
    return GreyStatistics(np.array(mean), np.where(std <= 1e-12 * np.abs(mean), 0.0, std))


def _exact_sums(pixels: np.ndarray) -> tuple[int, int]:
    """(sum, sum of squares) of integers of at most 16 bits; where there are more pixels than values, each value is counted."""
    if pixels.size < 2 ** (8 * pixels.dtype.itemsize):
        wide = pixels.astype(np.int64)
        return int(wide.sum()), int(np.square(wide).sum())
    bits = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("=")).view(f"u{pixels.dtype.itemsize}")
    counts = np.bincount(bits.ravel())
    values = np.arange(len(counts), dtype=bits.dtype)
    values = values.view(pixels.dtype.newbyteorder("=")) if pixels.dtype.kind == "i" else values
    wide = values.astype(np.int64)
    return int(counts @ wide), int(counts @ np.square(wide))


def _sum(values: list[float]) -> float:
    """The exact sum, rounded once."""
    try:
        total = math.fsum(values)
    except (OverflowError, ValueError):  # infinities of both signs, or a sum beyond float64
        total = math.nan
    if not math.isfinite(total):
        raise InputError("the image holds NaN or infinite values; replace them, or leave it out")
    return total
