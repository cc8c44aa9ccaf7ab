"""The threshold that turns probabilities into the best mask, by a scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError
from unet_fast.metrics._inputs import check_thresholds, probability_stack
from unet_fast.metrics._scan import best_index, f_score
from unet_fast.metrics.pixel_error import count_pixels
from unet_fast.metrics.rand_error import rand_scan

METRICS = ("f1", "dice", "iou", "accuracy", "rand")

#: 0.00, 0.02, ..., 1.00
STEP_FIFTIETHS: NDArray[np.float64] = np.arange(51) / 50
STEP_FIFTIETHS.setflags(write=False)


@dataclass(frozen=True)
class BestThreshold:
    """Result of a scan; ``float()`` of it is the threshold."""

    threshold: float
    score: float
    curve: tuple[NDArray[np.float64], NDArray[np.float64]]  #: (thresholds, scores), (T,) each

    def __float__(self) -> float:
        return self.threshold


def best_threshold(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    metric: str = "f1",
    thresholds: ArrayLike = STEP_FIFTIETHS,
    ignore_index: int | None = None,
) -> BestThreshold:
    """Scan thresholds on (validation) data for the best score of ``prediction > threshold``.

    Args:
        prediction: probability of the foreground, ``(N, H, W)`` or ``(H, W)``, floating point in [0, 1].
        truth: mask, class map or instances of the same shape; foreground is everything but 0.
        metric: ``"f1"`` (the same as ``"dice"``), ``"iou"``, ``"accuracy"`` or ``"rand"`` (1 - Rand error;
            slower).
        thresholds: increasing, in [0, 1]; default 0.00, 0.02, ..., 1.00.
        ignore_index: true label of pixels to leave out.

    Returns:
        ``.threshold`` (of equally good ones the one nearest 0.5), ``.score`` there, ``.curve`` of the whole
        scan.

    Raises:
        InputError, InputTypeError: as :func:`unet_fast.metrics.pixel_error`; an unknown ``metric``.
    """
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}, expected one of {', '.join(repr(name) for name in METRICS)}")
    levels = check_thresholds(thresholds)
    if metric == "rand":
        probabilities = probability_stack("prediction", prediction)
        scores = rand_scan(probabilities, truth, thresholds=levels, ignore_index=ignore_index).scores
    else:
        counts = count_pixels(prediction, truth, levels, ignore_index)
        hits, predicted, true = counts.hits.sum(1), counts.predicted.sum(1), counts.true.sum()
        scores = f_score(hits, predicted, true)
        if metric == "iou":
            scores = scores / (2 - scores)
        elif metric == "accuracy":
            total = max(counts.counted.sum(), 1.0)
            scores = (total - predicted - true + 2 * hits) / total
    k = best_index(scores, levels)
    return BestThreshold(float(levels[k]), float(scores[k]), (levels, scores))
