"""Foreground-restricted Rand score, V_Rand (Arganda-Carreras et al., Front. Neuroanat. 9:142, 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.metrics._foreground import ForegroundOptions, VScores, foreground_scores, ratio
from unet_fast.metrics._scan import STEP_TENTHS

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _terms(
    both: NDArray[np.float64], predicted: NDArray[np.float64], true: NDArray[np.float64], singles: float
) -> NDArray[np.float64]:
    return np.array([both @ both + singles, predicted @ predicted + singles, true @ true])


def _finish(sums: NDArray[np.float64], pixels: float) -> tuple[float, float, float]:
    # the common factor 1 / pixels^2 of all probabilities cancels
    both, predicted, true = (float(value) for value in sums)
    return ratio(both, (predicted + true) / 2), ratio(both, true), ratio(both, predicted)


def v_rand_scores(prediction: ArrayLike, truth: ArrayLike, **options: Unpack[ForegroundOptions]) -> VScores:
    """V_Rand with its split and merge sides and its threshold; ``options`` are those of :func:`v_rand`."""
    return foreground_scores(prediction, truth, terms=_terms, finish=_finish, **options)


def v_rand(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    thin: bool = True,
    thresholds: ArrayLike = STEP_TENTHS,
    kind: str = "auto",
    ignore_index: int | None = None,
) -> float:
    """Foreground-restricted Rand score at the best threshold: higher is better, 1 is perfect.

    With ``p_ij`` the fraction of the pixels of the true foreground in true cell ``i`` and predicted cell
    ``j``, ``s_j`` and ``t_i`` its sums::

        split = sum p_ij^2 / sum t_i^2,   merge = sum p_ij^2 / sum s_j^2
        V     = sum p_ij^2 / (0.5 sum s_j^2 + 0.5 sum t_i^2)

    Predicted background inside the true foreground counts as cells of one pixel each. Slices count together.

    Args:
        prediction, truth, thresholds, kind, ignore_index: as :func:`unet_fast.metrics.rand_error`.
        thin: first grow the predicted cells, nearest first, until one pixel is left between them, so that
            thick predicted borders cost nothing.

    Raises:
        InputError, InputTypeError: as :func:`unet_fast.metrics.rand_error`.
    """
    return v_rand_scores(
        prediction, truth, thin=thin, thresholds=thresholds, kind=kind, ignore_index=ignore_index
    ).score
