"""Pixel error: how well the pixels of the bright phase (cell interior) are found, at the best threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.metrics._inputs import check_same_shape, check_thresholds, label_stack, probability_stack
from unet_fast.metrics._scan import STEP_TENTHS, Scan, best_of


@dataclass(frozen=True)
class PixelScan(Scan):
    """The scan of thresholds behind the pixel error."""

    squared_difference: float  #: mean of (probability - truth)^2


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of each slice at each threshold."""

    hits: NDArray[np.float64]  #: (T, N) predicted bright and truly bright
    predicted: NDArray[np.float64]  #: (T, N) predicted bright
    true: NDArray[np.float64]  #: (N,) truly bright
    counted: NDArray[np.float64]  #: (N,) all counted pixels
    squared: NDArray[np.float64]  #: (N,) summed squared difference


def count_pixels(
    prediction: ArrayLike, truth: ArrayLike, thresholds: NDArray[np.float64], ignore_index: int | None
) -> PixelCounts:
    """One pass over the pixels, whatever the number of thresholds.

    A threshold is rounded to the dtype of the prediction first: a float32 probability of 0.1 is not above 0.1.
    """
    probabilities = probability_stack("prediction", prediction)
    labels = label_stack("truth", truth, ignore_index)
    check_same_shape("prediction", probabilities, "truth", labels)
    levels = thresholds.astype(probabilities.dtype)
    shape = (levels.size, labels.shape[0])
    hits, predicted = np.zeros(shape), np.zeros(shape)
    true, counted, squared = np.zeros(shape[1]), np.zeros(shape[1]), np.zeros(shape[1])
    for n, (slice_probabilities, slice_labels) in enumerate(zip(probabilities, labels, strict=True)):
        values, bright = slice_probabilities.ravel(), slice_labels.ravel() != 0
        if ignore_index is not None:
            kept = slice_labels.ravel() != ignore_index
            values, bright = values[kept], bright[kept]
        # side="left" counts the thresholds strictly below a value, so the value passes threshold k when below > k
        below = np.searchsorted(levels, values, side="left")
        everything = np.bincount(below, minlength=levels.size + 1)
        bright_only = np.bincount(below[bright], minlength=levels.size + 1)
        predicted[:, n] = everything[::-1].cumsum()[::-1][1:]
        hits[:, n] = bright_only[::-1].cumsum()[::-1][1:]
        true[n], counted[n] = bright_only.sum(), values.size
        difference = values.astype(np.float64) - bright
        squared[n] = difference @ difference
    return PixelCounts(hits, predicted, true, counted, squared)


def pixel_scan(
    prediction: ArrayLike, truth: ArrayLike, *, thresholds: ArrayLike = STEP_TENTHS, ignore_index: int | None = None
) -> PixelScan:
    """The pixel error with its threshold, curve, precision, recall and values per slice; see :func:`pixel_error`."""
    levels = check_thresholds(thresholds)
    counts = count_pixels(prediction, truth, levels, ignore_index)
    squared = float(counts.squared.sum() / max(counts.counted.sum(), 1.0))
    true = np.broadcast_to(counts.true, counts.hits.shape)
    return PixelScan(**best_of(counts.hits, counts.predicted, true, levels), squared_difference=squared)


def pixel_error(
    prediction: ArrayLike, truth: ArrayLike, *, thresholds: ArrayLike = STEP_TENTHS, ignore_index: int | None = None
) -> float:
    """1 - best F of the bright phase (every true label but 0) over a scan of thresholds, as in ISBI 2012.

    ``F = 2 P R / (P + R) = 2 hits / (predicted + true)`` with pixels counted over the whole stack and the
    prediction binarised by ``prediction > threshold``. Where nothing is bright in either, F is 1.

    Args:
        prediction: probability of the bright phase, ``(N, H, W)`` or ``(H, W)``, floating point in [0, 1] (or
            boolean).
        truth: class map, mask or instances of the same shape, integer or boolean; 0 is the dark phase.
        thresholds: increasing, in [0, 1]; default 0.0, 0.1, ..., 1.0.
        ignore_index: label of pixels to leave out.

    Returns:
        The error, 0 (perfect) to 1. :func:`pixel_scan` gives threshold, curve and slices, and the mean
        squared difference.

    Raises:
        InputError: shapes that differ or have another rank, an empty stack, NaN, values outside [0, 1],
            negative labels.
        InputTypeError: an integer prediction, or a floating-point truth.
    """
    return pixel_scan(prediction, truth, thresholds=thresholds, ignore_index=ignore_index).error


def squared_difference(prediction: ArrayLike, truth: ArrayLike, *, ignore_index: int | None = None) -> float:
    """Mean over pixels of (probability - truth)^2, truth 1 where its label is not 0; see :func:`pixel_error`."""
    return pixel_scan(prediction, truth, thresholds=[0.5], ignore_index=ignore_index).squared_difference
