"""From masks to instances, and the table of overlaps that the instance metrics start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast import labels
from unet_fast.labels import components
from unet_fast.metrics._inputs import (
    as_array,
    as_stack,
    check_labels,
    check_same_shape,
    is_mask,
    label_stack,
    probability_stack,
)

KINDS = ("auto", *labels.KINDS)

# A dense table is quicker than sorting as long as it is not much larger than the slice itself.
_DENSE_CELLS_A_PIXEL = 8


def compact(values: NDArray[Any]) -> NDArray[np.int64]:
    """The same instances renumbered with small numbers (0 stays 0), so that a label can serve as an index."""
    if values.size == 0 or int(values.max()) <= values.size:
        return values.astype(np.int64)
    known = np.unique(values)
    known = known[known > 0]
    return np.where(values > 0, np.searchsorted(known, values) + 1, 0)


def scored_instances(values: NDArray[Any], kind: str) -> NDArray[Any]:
    """``(N, H, W)`` labels as the instances that a metric of the foreground scores, slice by slice.

    ``"mask"`` and ``"classes"``: the 4-connected components of everything but 0, since a prediction of the foreground
    cannot tell classes apart (:func:`unet_fast.data.to_instances`, for training, keeps those of each class apart).
    ``"instances"``: as they are. ``"auto"``: instances when there are two or more different non-zero labels, else a mask.
    """
    labels.check_kind(kind, KINDS)
    if kind == "instances" or (kind == "auto" and not is_mask(values)):
        return np.stack([compact(values_of_slice) for values_of_slice in values])
    return np.stack([components(values_of_slice != 0) for values_of_slice in values])


@dataclass(frozen=True)
class InstancePair:
    """Checked input of an instance metric: either ``probabilities`` or ``predicted`` is given."""

    truth: NDArray[Any]
    probabilities: NDArray[Any] | None
    predicted: NDArray[Any] | None


def instance_pair(prediction: ArrayLike, truth: ArrayLike, kind: str, ignore_index: int | None) -> InstancePair:
    """Check both arguments of an instance metric; ignored pixels become true label 0, which no metric counts."""
    array = as_stack("prediction", as_array("prediction", prediction))
    values = label_stack("truth", truth, ignore_index)
    check_same_shape("prediction", array, "truth", values)
    if ignore_index is not None:
        values = np.where(values == ignore_index, 0, values)
    instances = scored_instances(values, kind)
    if array.dtype.kind == "f":
        return InstancePair(instances, probability_stack("prediction", array), None)
    return InstancePair(instances, None, scored_instances(check_labels("prediction", array), "auto"))


@dataclass(frozen=True)
class Overlaps:
    """Non-empty cells of the contingency table of one slice: pixels with true label ``i`` and predicted label ``j``."""

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    counts: NDArray[np.float64]

    def true_sizes(self) -> NDArray[np.float64]:
        """Pixels of each true label, by label."""
        return np.bincount(self.true, weights=self.counts).astype(np.float64)

    def predicted_sizes(self) -> NDArray[np.float64]:
        """Counted pixels of each predicted label, by label."""
        return np.bincount(self.predicted, weights=self.counts).astype(np.float64)


def overlaps(predicted: NDArray[Any], truth: NDArray[Any]) -> Overlaps:
    """Overlaps of two compact label maps of one slice, over the pixels whose true label is not 0."""
    counted = truth > 0
    true = truth[counted].astype(np.int64)
    other = predicted[counted].astype(np.int64)
    if true.size == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return Overlaps(nothing, nothing, np.zeros(0))
    width = int(other.max()) + 1
    cells = (int(true.max()) + 1) * width
    keys = true * width + other
    if cells <= _DENSE_CELLS_A_PIXEL * truth.size:
        table = np.bincount(keys, minlength=cells)
        present = np.flatnonzero(table)
        counts = table[present]
    else:
        present, counts = np.unique(keys, return_counts=True)
    return Overlaps(present // width, present % width, counts.astype(np.float64))
