"""Rand error: how well pairs of pixels are sorted into the same or different cells, at the best threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.labels import components
from unet_fast.metrics._inputs import check_thresholds
from unet_fast.metrics._instances import instance_pair, overlaps
from unet_fast.metrics._scan import STEP_TENTHS, Scan, best_of, scan_slices


@dataclass(frozen=True)
class RandScan(Scan):
    """The scan of thresholds behind the Rand error.

    ``threshold`` is NaN when the prediction came as instances, ``per_slice`` where a slice has no true cell.
    """


def _pairs(sizes: NDArray[np.float64]) -> float:
    return float((sizes * (sizes - 1)).sum() / 2)


def pair_counts(predicted: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """(pairs together in both, pairs together in the prediction, pairs together in truth) of one slice, float64."""
    table = overlaps(predicted, truth)
    return np.array(
        [
            _pairs(table.counts[table.predicted > 0]),
            _pairs(table.predicted_sizes()[1:]),  # predicted background is no cell
            _pairs(table.true_sizes()[1:]),
        ]
    )


def rand_scan(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    thresholds: ArrayLike = STEP_TENTHS,
    kind: str = "auto",
    ignore_index: int | None = None,
) -> RandScan:
    """The Rand error with its threshold, curve, precision, recall and values per slice; see :func:`rand_error`."""
    pair = instance_pair(prediction, truth, kind, ignore_index)
    if pair.probabilities is not None:
        levels = check_thresholds(thresholds)
        counts = scan_slices(pair.probabilities, levels, lambda n, mask: pair_counts(components(mask), pair.truth[n]))
    else:
        assert pair.predicted is not None
        levels = np.array([np.nan])
        counts = np.array([[pair_counts(p, t) for p, t in zip(pair.predicted, pair.truth, strict=True)]])
    together, predicted, true = counts[..., 0], counts[..., 1], counts[..., 2]
    scored = np.asarray((pair.truth > 0).any(axis=(1, 2)))
    return RandScan(**best_of(together, predicted, true, levels, scored=scored))


def rand_error(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    thresholds: ArrayLike = STEP_TENTHS,
    kind: str = "auto",
    ignore_index: int | None = None,
) -> float:
    """1 - best F over pairs of pixels and a scan of thresholds, as in ISBI 2012.

    The prediction is binarised by ``prediction > threshold`` and split into the 4-connected components ``j``
    of its bright phase; ``c_ij`` counts the pixels of true cell ``i`` in component ``j`` (``j = 0``: no
    component), over pixels whose true label is not 0. With ``pairs(n) = n (n - 1) / 2``::

        TP        = sum over i, j >= 1 of pairs(c_ij)
        predicted = sum over j >= 1    of pairs(sum over i of c_ij)
        true      = sum over i >= 1    of pairs(sum over all j of c_ij)
        P = TP / predicted,  R = TP / true,  F = 2 P R / (P + R)

    in float64, the three counts summed over all slices first. F is 1 where no pair is to be found and none
    was.

    Args:
        prediction: probabilities of the bright phase, ``(N, H, W)`` or ``(H, W)``, floating point in [0, 1].
            Or labels (integer, boolean): instances are scored as they are; a mask (one non-zero value) by its
            components.
        truth: instances, or a mask or class map whose components are the cells; integer or boolean, same
            shape. Labels count per slice: label 3 of slice 0 and label 3 of slice 1 are different cells.
        thresholds: increasing, in [0, 1]; default 0.0, 0.1, ..., 1.0.
        kind: what ``truth`` is: ``"mask"``, ``"classes"``, ``"instances"``, or ``"auto"`` (instances when it
            has two or more different non-zero labels, else a mask).
        ignore_index: true label of pixels to leave out.

    Returns:
        The error, 0 (perfect) to 1. :func:`rand_scan` gives threshold, curve, precision, recall and slices.

    Raises:
        InputError: shapes that differ or have another rank, an empty stack, NaN, values outside [0, 1],
            negative labels.
        InputTypeError: a floating-point truth.
    """
    return rand_scan(prediction, truth, thresholds=thresholds, kind=kind, ignore_index=ignore_index).error
