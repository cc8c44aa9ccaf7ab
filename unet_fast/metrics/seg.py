"""SEG, the instance IoU of the Cell Tracking Challenge."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError
from unet_fast.metrics._inputs import check_same_shape, label_stack
from unet_fast.metrics._instances import compact, overlaps


def seg_per_object(prediction: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """IoU of every true object with its match (0 where none), slice by slice, by rising label; see :func:`seg`."""
    predicted = label_stack("prediction", prediction)
    labels = label_stack("truth", truth)
    check_same_shape("prediction", predicted, "truth", labels)
    scores = []
    for slice_predicted, slice_truth in zip(map(compact, predicted), map(compact, labels), strict=True):
        table = overlaps(slice_predicted, slice_truth)
        true_sizes = table.true_sizes()
        # the whole object counts, also the part of it outside every true object
        predicted_sizes = np.bincount(slice_predicted.ravel())
        # more than half of a true object can lie in one predicted object only, so the match is unique
        match = (table.predicted > 0) & (2 * table.counts > true_sizes[table.true])
        true, both = table.true[match], table.counts[match]
        value = np.zeros(true_sizes.size)
        value[true] = both / (true_sizes[true] + predicted_sizes[table.predicted[match]] - both)
        scores.append(value[true_sizes > 0])
    return np.concatenate(scores)


def seg(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Mean over all true objects of the IoU with the one predicted object that covers more than half of it, else 0.

    Args:
        prediction: instances ``(N, H, W)`` or ``(H, W)``, integer, 0 = background.
        truth: instances of the same shape. Labels count per slice.

    Returns:
        0 to 1 (perfect). Predicted objects that match nothing cost nothing, as the challenge defines it.

    Raises:
        InputError: shapes that differ or have another rank, an empty stack, negative labels, no true object
            at all.
        InputTypeError: floating-point arguments (label the components of a probability map first).
    """
    scores = seg_per_object(prediction, truth)
    if scores.size == 0:
        raise InputError("truth holds no object (all labels are 0), so the mean over true objects is undefined")
    return float(scores.mean())
