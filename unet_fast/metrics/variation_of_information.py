"""Variation of information, as CREMI defines it: how much splits and merges leave unknown, in bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.metrics._volumes import overlap_tables


@dataclass(frozen=True)
class Variation:
    """Both sides of the variation of information, in bits.

    Attributes:
        split: H(prediction | truth), what over-segmentation leaves unknown.
        merge: H(truth | prediction), what under-segmentation leaves unknown.
    """

    split: float
    merge: float

    def __float__(self) -> float:
        return self.split + self.merge


def _n_log_n(counts: NDArray[np.float64]) -> float:
    counts = counts[counts > 0]
    return float(counts @ np.log2(counts))


def variation_of_information_scores(
    prediction: ArrayLike, truth: ArrayLike, *, tolerance: float | None = None, volume: bool = True
) -> Variation:
    """The variation of information with its split and merge sides; see :func:`variation_of_information`."""
    tables, _ = overlap_tables(prediction, truth, tolerance, volume)
    pixels = sum(float(table.counts.sum()) for table in tables)
    if pixels == 0:
        return Variation(0.0, 0.0)
    both = sum(_n_log_n(table.counts) for table in tables)
    true, predicted = (
        sum(_n_log_n(np.asarray(sizes(table))) for table in tables)
        for sizes in (type(tables[0]).true_sizes, type(tables[0]).predicted_sizes)
    )
    # H(p | t) = H(p, t) - H(t), and log n cancels
    return Variation(max(true - both, 0.0) / pixels, max(predicted - both, 0.0) / pixels)


def variation_of_information(
    prediction: ArrayLike, truth: ArrayLike, *, tolerance: float | None = None, volume: bool = True
) -> float:
    """H(prediction | truth) + H(truth | prediction) in bits, over the pixels whose true label is not 0.

    Args:
        prediction: segments ``(N, H, W)`` or ``(H, W)``, integer. Label 0 is a segment like any other, as in CREMI.
        truth: segments of the same shape; pixels of label 0 are left out.
        tolerance: leave out true pixels within this many pixels (in the plane, Euclidean) of a border between true labels
            too; 0: those at a border alone; None: none. CREMI's server takes 25 nm.
        volume: the stack is one volume, in which a label means one object in all slices, as in CREMI; else the labels of
            each slice are their own.

    Returns:
        0 (perfect) or more; 0 where no pixel counts. :func:`variation_of_information_scores` gives both sides.

    Raises:
        InputError: shapes that differ or have another rank, an empty stack, negative labels or tolerance.
        InputTypeError: floating-point arguments.

    Source: CREMI (cremi.org), ``cremi.evaluation.voi``; Meila, "Comparing clusterings", 2007.

    Equivalent to, without tolerance::

        split, merge = skimage.metrics.variation_of_information(truth[truth > 0], prediction[truth > 0])
        split + merge
    """
    return float(variation_of_information_scores(prediction, truth, tolerance=tolerance, volume=volume))
