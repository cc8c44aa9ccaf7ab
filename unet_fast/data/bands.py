"""Rows of an image that arrive in bands: regrouped for the pieces of a file, and thinned out for a pyramid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PYRAMID_DOWN_TO = 512


def pyramid_levels(height: int, width: int) -> int:
    """Levels of a pyramid: the full size, and halves of it until the longer side has at most 512 pixels."""
    levels = 1
    while max(height, width) > PYRAMID_DOWN_TO << (levels - 1):
        levels += 1
    return levels


class Regrouping:
    """Bands of any height in, blocks of whole multiples of ``rows`` rows out, each with its first row."""

    def __init__(self, rows: int) -> None:
        self._rows, self._top = rows, 0
        self._held: list[np.ndarray] = []

    def add(self, band: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The block that ``band`` completes, if any."""
        self._held.append(band)
        count = sum(map(len, self._held))
        if count >= self._rows:
            block = np.concatenate(self._held)
            whole = count // self._rows * self._rows
            yield self._top, block[:whole]
            self._top, self._held = self._top + whole, [block[whole:]]

    def rest(self) -> Iterator[tuple[int, np.ndarray]]:
        """What is left after the last band."""
        if sum(map(len, self._held)):
            yield self._top, np.concatenate(self._held)


def regrouped(bands: Iterator[np.ndarray], rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, block) of whole multiples of ``rows`` rows, the last one of what is left, from bands of any height."""
    blocks = Regrouping(rows)
    for band in bands:
        yield from blocks.add(band)
    yield from blocks.rest()


def every(bands: Iterator[np.ndarray], step: int) -> Iterator[np.ndarray]:
    """Every ``step``-th pixel of both axes, counted from the first row of the first band; labels stay labels."""
    top = 0
    for band in bands:
        yield thinned(band, top, step)
        top += len(band)


def thinned(band: np.ndarray, top: int, step: int) -> np.ndarray:
    """Every ``step``-th pixel of a band whose first row is ``top``."""
    return band[-top % step :: step, ::step]
