"""An image that is read window by window, normalised as a whole: what a network's tiles are cut from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from unet_fast.data.pages import Windows
from unet_fast.data.stacks import check_finite, match_channels
from unet_fast.data.statistics import GreyStatistics, measure

BAND_PIXELS = 2**23  # rows are read in bands of about this many pixels
_FILE_TILE = 512
_HELD_BYTES = 2**28  # what is kept of the rows that were decoded last


class WindowedImage:
    """Image ``index`` of ``pages`` as an array (C, H, W) of which windows are taken: ``image[:, y0:y1, x0:x1]``.

    A window is decoded, gets as many ``channels`` as the network takes, and is normalised by the statistics of the whole
    image where ``normalized``. The rows that were decoded last are kept, because tiles overlap.

    Raises:
        InputError: NaN or infinite values, or channels that do not fit the network; with the image's name.
    """

    def __init__(
        self,
        pages: Windows,
        index: int,
        channels: int,
        *,
        normalized: bool = True,
        statistics: GreyStatistics | None = None,
    ) -> None:
        self._pages, self._index, self._channels = pages, index, channels
        self.name = pages.names[index]
        _, height, width = pages.shape(index)
        self.shape = (channels, height, width)
        self.ndim = 3
        self._statistics = statistics
        self._normalized = normalized
        self._rows: tuple[int, np.ndarray] | None = None  # first row, and the decoded rows (C, h, W)

    @property
    def statistics(self) -> GreyStatistics:
        """Mean and standard deviation of the whole image; measured when they are first asked for."""
        if self._statistics is None:
            self._statistics = measure(self._blocks)
        return self._statistics

    def _blocks(self) -> Iterator[np.ndarray]:
        _, height, width = self.shape
        rows = max(1, BAND_PIXELS // max(width, 1))
        if rows >= height:  # a small image is decoded once, for this and for its tiles
            self._rows = (0, self._decoded(0, height, 0, width))
            yield self._rows[1]
            return
        for top in range(0, height, rows):
            yield self._decoded(top, min(top + rows, height), 0, width)

    def __getitem__(self, key: tuple[slice, slice, slice]) -> np.ndarray:
        _, rows, columns = key
        top, bottom, _ = rows.indices(self.shape[1])
        left, right, _ = columns.indices(self.shape[2])
        window = self._cached(top, bottom, left, right)
        return self.statistics.apply(window) if self._normalized else window.astype(np.float32)

    def _cached(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """A window out of the rows that are held; all of its rows are decoded at once unless they are too many bytes."""
        _, _, width = self.shape
        item = self._pages.dtype(self._index).itemsize * self._channels
        if (bottom - top) * width * item > _HELD_BYTES:
            return self._decoded(top, bottom, left, right)
        if self._rows is None or not (self._rows[0] <= top and bottom <= self._rows[0] + self._rows[1].shape[1]):
            self._rows = (top, self._next_rows(top, bottom))
        first, held = self._rows
        return held[:, top - first : bottom - first, left:right]

    def _next_rows(self, top: int, bottom: int) -> np.ndarray:
        """Rows top to bottom, and some more; those that are held already are not decoded again."""
        _, height, width = self.shape
        # tiles of a file are decoded whole: end where they are likely to end
        bottom = min(height, -(-bottom // _FILE_TILE) * _FILE_TILE)
        if self._rows is not None:
            first, held = self._rows
            end = first + held.shape[1]
            if first <= top < end < bottom:
                return np.concatenate([held[:, top - first :], self._decoded(end, bottom, 0, width)], axis=1)
        return self._decoded(top, bottom, 0, width)

    def _decoded(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        window: Any = self._pages.window(self._index, (top, left), (bottom - top, right - left))
        check_finite(window, f"the image {self.name}")
        return match_channels(window, self._channels, self.name)
