"""What the scores of CREMI start from: one table of overlaps of a volume or of independent slices, borders left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError
from unet_fast.metrics._inputs import check_same_shape, label_stack
from unet_fast.metrics._instances import Overlaps, compact, overlaps


def near_borders(labels: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    """Where (H, W) labels are within ``tolerance`` pixels (Euclidean) of a border pixel, itself included.

    A border pixel has a 4-neighbour with another label. Source: ``create_border_mask`` of CREMI's evaluation.
    """
    from scipy import ndimage

    around = np.pad(labels, 1, mode="edge")
    inner = np.ones(labels.shape, bool)
    for neighbours in (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]):
        inner &= neighbours == labels
    if inner.all():
        return ~inner
    return np.asarray(ndimage.distance_transform_edt(inner) <= tolerance)


def overlap_tables(
    prediction: ArrayLike, truth: ArrayLike, tolerance: float | None, volume: bool
) -> tuple[list[Overlaps], int]:
    """The tables of overlaps, one for a volume or one a slice, over pixels whose true label is not 0; and all pixels."""
    predicted, labels = label_stack("prediction", prediction), label_stack("truth", truth)
    check_same_shape("prediction", predicted, "truth", labels)
    if tolerance is not None:
        if not (tolerance >= 0 and math.isfinite(tolerance)):
            raise InputError(f"tolerance is {tolerance!r}, expected a number of pixels of at least 0, or None")
        labels = np.stack([np.where(near_borders(image, tolerance), 0, image) for image in labels])
    if volume:
        return [overlaps(compact(predicted.reshape(-1)), compact(labels.reshape(-1)))], labels.size
    return [overlaps(compact(p), compact(t)) for p, t in zip(predicted, labels, strict=True)], labels.size
