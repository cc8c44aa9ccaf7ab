"""Adapted Rand error, as SNEMI3D and CREMI define it."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from unet_fast.metrics._volumes import overlap_tables


@dataclass(frozen=True)
class AdaptedRand:
    """The adapted Rand error with its two sides: merges lower ``precision``, splits lower ``recall``."""

    error: float
    precision: float
    recall: float

    def __float__(self) -> float:
        return self.error


def adapted_rand_scores(
    prediction: ArrayLike, truth: ArrayLike, *, tolerance: float | None = None, volume: bool = True
) -> AdaptedRand:
    """The adapted Rand error with precision and recall; see :func:`adapted_rand_error`."""
    tables, pixels = overlap_tables(prediction, truth, tolerance, volume)
    both = predicted = true = alone = 0.0
    for table in tables:
        segment = table.predicted > 0
        both += float((table.counts[segment] ** 2).sum())
        predicted += float((table.predicted_sizes()[1:] ** 2).sum())
        true += float((table.true_sizes() ** 2).sum())
        alone += float(table.counts[~segment].sum())
    if true == 0:
        return AdaptedRand(0.0, 1.0, 1.0)
    both, predicted = both + alone / pixels, predicted + alone / pixels
    precision, recall = both / predicted, both / true
    return AdaptedRand(1 - 2 * precision * recall / (precision + recall), precision, recall)


def adapted_rand_error(
    prediction: ArrayLike, truth: ArrayLike, *, tolerance: float | None = None, volume: bool = True
) -> float:
    """1 - F of precision and recall of pairs of pixels that lie in one segment, over pixels whose true label is not 0.

    With ``c_ij`` pixels of true segment ``i`` in predicted segment ``j``, ``a_i`` pixels of true segment ``i``, ``c_i0`` those
    of it in predicted label 0, each of which counts as a segment of its own, and ``n`` pixels in all::

        both = sum over i, j >= 1 of c_ij^2 + sum over i of c_i0 / n
        P = both / (sum over j >= 1 of (sum over i of c_ij)^2 + sum over i of c_i0 / n)
        R = both / sum over i of a_i^2,  error = 1 - 2 P R / (P + R)

    Args:
        prediction, truth, tolerance, volume: as for :func:`variation_of_information`, but that label 0 of the
            prediction is no segment.

    Returns:
        0 (perfect) to 1; 0 where no pixel counts. :func:`adapted_rand_scores` gives precision and recall.

    Raises:
        InputError, InputTypeError: as :func:`variation_of_information`.

    Source: CREMI (cremi.org), ``cremi.evaluation.rand``, after SNEMI3D's script.

    Equivalent to, but for the pairs of a pixel with itself, which scikit-image leaves out, and where the prediction has no
    label 0::

        skimage.metrics.adapted_rand_error(truth, prediction, ignore_labels=(0,))[0]
    """
    return adapted_rand_scores(prediction, truth, tolerance=tolerance, volume=volume).error
