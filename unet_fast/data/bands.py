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


def regrouped(bands: Iterator[np.ndarray], rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, block) of whole multiples of ``rows`` rows, the last one of what is left, from bands of any height."""
    held: list[np.ndarray] = []
    top = 0
    for band in bands:
        held.append(band)
        count = sum(map(len, held))
        if count >= rows:
            block = np.concatenate(held)
            whole = count // rows * rows
            yield top, block[:whole]
            top, held = top + whole, [block[whole:]]
    rest = np.concatenate(held) if held else None
    if rest is not None and len(rest):
        yield top, rest


def every(bands: Iterator[np.ndarray], step: int) -> Iterator[np.ndarray]:
    """Every ``step``-th pixel of both axes, counted from the first row of the first band; labels stay labels."""
    top = 0
    for band in bands:
        yield band[-top % step :: step, ::step]
        top += len(band)
