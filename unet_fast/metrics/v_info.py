"""Foreground-restricted information score, V_Info (Arganda-Carreras et al., Front. Neuroanat. 9:142, 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.metrics._foreground import ForegroundOptions, VScores, foreground_scores, ratio

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _n_log_n(counts: NDArray[np.float64]) -> float:
    counts = counts[counts > 0]
    return float(counts @ np.log(counts))


def _terms(
    both: NDArray[np.float64], predicted: NDArray[np.float64], true: NDArray[np.float64], singles: float
) -> NDArray[np.float64]:
    # cells of one pixel add 1 log 1 = 0; they weigh through the number of pixels in _finish
    return np.array([_n_log_n(both), _n_log_n(predicted), _n_log_n(true)])


def _finish(sums: NDArray[np.float64], pixels: float) -> tuple[float, float, float]:
    if pixels == 0:
        return 1.0, 1.0, 1.0
    # H = -sum (c / n) log(c / n) = log n - (sum c log c) / n; rounding may leave -1e-16 where H is 0
    joint, predicted, true = (max(float(np.log(pixels) - value / pixels), 0.0) for value in sums)
    tiny = 1e-12
    predicted, true = (0.0 if entropy < tiny else entropy for entropy in (predicted, true))
    mutual = max(predicted + true - joint, 0.0)
    return ratio(mutual, (predicted + true) / 2), ratio(mutual, predicted), ratio(mutual, true)


def v_info_scores(prediction: ArrayLike, truth: ArrayLike, **options: Unpack[ForegroundOptions]) -> VScores:
    """V_Info with its split and merge sides and its threshold; ``options`` are those of :func:`v_info`."""
    return foreground_scores(prediction, truth, terms=_terms, finish=_finish, **options)


def v_info(prediction: ArrayLike, truth: ArrayLike, **options: Unpack[ForegroundOptions]) -> float:
    """Foreground-restricted information score at the best threshold: higher is better, 1 is perfect.

    With the mutual information ``I`` and the entropies ``H`` of predicted cells ``S`` and true cells ``T``
    over the pixels of the true foreground::

        split = I(S, T) / H(S),   merge = I(S, T) / H(T),   V = I(S, T) / (0.5 H(S) + 0.5 H(T))

    Predicted background inside the true foreground counts as cells of one pixel each, which lowers the score a lot:
    leave ``thin`` on for probability maps. Slices count together. Arguments and errors as
    :func:`unet_fast.metrics.v_rand`.
    """
    return v_info_scores(prediction, truth, **options).score
