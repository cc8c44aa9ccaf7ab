"""What the scans over thresholds share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: the scan of ISBI 2012; divided rather than stepped, so that 0.3 is the float 0.3
STEP_TENTHS: NDArray[np.float64] = np.arange(11) / 10
STEP_TENTHS.setflags(write=False)


@dataclass(frozen=True)
class Scan:
    """An error over a scan of T thresholds and N slices; ``float()`` of it is the error."""

    error: float  #: 1 - best F
    threshold: float  #: where the best F is
    precision: float  #: at that threshold
    recall: float
    thresholds: NDArray[np.float64]  #: (T,)
    scores: NDArray[np.float64]  #: (T,) F of the whole stack
    per_slice: NDArray[np.float64]  #: (N,) 1 - F of each slice at ``threshold``
    slice_scores: NDArray[np.float64]  #: (T, N) F of each slice at each threshold

    def __float__(self) -> float:
        return self.error


def best_of(
    hits: NDArray[np.float64],
    predicted: NDArray[np.float64],
    true: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    scored: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """The fields of a :class:`Scan` from counts (T, N); slices that are not ``scored`` (N,) have no F of their own."""
    whole = [counts.sum(axis=1) for counts in (hits, predicted, true)]
    scores, slice_scores = f_score(*whole), f_score(hits, predicted, true)
    if scored is not None:
        slice_scores[:, ~scored] = np.nan
    k = best_index(scores, thresholds)
    found, of_predicted, of_true = (float(counts[k]) for counts in whole)
    return {
        "error": float(1 - scores[k]),
        "threshold": float(thresholds[k]),
        "precision": float(ratio(found, of_predicted, otherwise=1.0)),
        "recall": float(ratio(found, of_true, otherwise=1.0)),
        "thresholds": thresholds,
        "scores": scores,
        "per_slice": 1 - slice_scores[k],
        "slice_scores": slice_scores,
    }


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

    Raising a threshold only removes pixels, so an unchanged pixel count means an unchanged mask, which is not measured
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
