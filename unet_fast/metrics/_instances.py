"""From masks to instances, and the table of overlaps that the instance metrics start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.metrics._inputs import (
    as_array,
    as_stack,
    check_kind,
    check_labels,
    check_same_shape,
    is_mask,
    label_stack,
    probability_stack,
)

# A dense table is quicker than sorting as long as it is not much larger than the slice itself.
_DENSE_CELLS_A_PIXEL = 8


def components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """4-connected components of a 2-D mask, numbered from 1."""
    from scipy import ndimage

    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=labels)  # SciPy's default structure joins the four edge neighbours only
    return labels


def compact(labels: NDArray[Any]) -> NDArray[np.int64]:
    """The same instances renumbered with small numbers (0 stays 0), so that a label can serve as an index."""
    if labels.size == 0 or int(labels.max()) <= labels.size:
        return labels.astype(np.int64)
    values = np.unique(labels)
    values = values[values > 0]
    return np.where(labels > 0, np.searchsorted(values, labels) + 1, 0)


def to_instances(labels: NDArray[Any], kind: str) -> NDArray[Any]:
    """``(N, H, W)`` labels as instances, slice by slice.

    ``"mask"`` and ``"classes"``: the 4-connected components of everything but 0. ``"instances"``: as they
    are. ``"auto"``: instances when there are two or more different non-zero labels, else a mask.
    """
    check_kind(kind)
    if kind == "instances" or (kind == "auto" and not is_mask(labels)):
        return np.stack([compact(labels_of_slice) for labels_of_slice in labels])
    return np.stack([components(labels_of_slice != 0) for labels_of_slice in labels])


@dataclass(frozen=True)
class InstancePair:
    """Checked input of an instance metric: either ``probabilities`` or ``predicted`` is given."""

    truth: NDArray[Any]
    probabilities: NDArray[Any] | None
    predicted: NDArray[Any] | None


def instance_pair(prediction: ArrayLike, truth: ArrayLike, kind: str, ignore_index: int | None) -> InstancePair:
    """Check both arguments of an instance metric; ignored pixels become true label 0, which no metric counts."""
    array = as_stack("prediction", as_array("prediction", prediction))
    labels = label_stack("truth", truth, ignore_index)
    check_same_shape("prediction", array, "truth", labels)
    if ignore_index is not None:
        labels = np.where(labels == ignore_index, 0, labels)
    instances = to_instances(labels, kind)
    if array.dtype.kind == "f":
        return InstancePair(instances, probability_stack("prediction", array), None)
    return InstancePair(instances, None, to_instances(check_labels("prediction", array), "auto"))


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
