"""What the scans over thresholds share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: the scan of ISBI 2012; divided rather than stepped, so that 0.3 is the float 0.3
STEP_TENTHS: NDArray[np.float64] = np.arange(11) / 10
STEP_TENTHS.setflags(write=False)


def f_score(hits: Any, predicted: Any, true: Any) -> Any:
    """``2 hits / (predicted + true)``, which is 2PR / (P + R); 1 for 0 / 0 (nothing to find, nothing found)."""
    return ratio(2 * hits, predicted + true, otherwise=1.0)


def ratio(part: Any, whole: Any, otherwise: float) -> Any:
    """``part / whole``, elementwise in float64; ``otherwise`` where the whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), otherwise)


def best_index(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> int:
    """Index of the best score; of equally good thresholds the one nearest 0.5 (a hard mask ties from 0.0 to 0.9)."""
    tied = np.flatnonzero(scores == np.nanmax(scores))
    return int(tied[np.argmin(np.abs(thresholds[tied] - 0.5))])


def scan_slices(
    probabilities: NDArray[Any],
    thresholds: NDArray[np.float64],
    measure: Callable[[int, NDArray[np.bool_]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """``measure(n, probabilities[n] > threshold)`` for every threshold and slice, shape ``(T, N, values)``.

    Raising a threshold only removes pixels, so an unchanged pixel count means an unchanged mask, which is not
    measured
    again: saturated predictions cost a few labellings instead of one a threshold.
    """
    levels = thresholds.astype(probabilities.dtype)
    rows: list[list[NDArray[np.float64]]] = [[] for _ in levels]
    for n, slice_probabilities in enumerate(probabilities):
        previous_count, value = -1, np.zeros(0)
        for k, level in enumerate(levels):
            mask = slice_probabilities > level
            count = int(np.count_nonzero(mask))
            if count != previous_count:
                previous_count, value = count, measure(n, mask)
            rows[k].append(value)
    return np.array(rows)
