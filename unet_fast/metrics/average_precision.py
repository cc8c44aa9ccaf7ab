"""Average precision of instances: which objects were found, at one IoU or at several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError
from unet_fast.metrics._inputs import check_same_shape, label_stack
from unet_fast.metrics._instances import Overlaps, compact, overlaps

IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)

# an object belongs to what holds more than half of it: no object can belong to two
_HALF = 0.5


@dataclass(frozen=True)
class Detections:
    """Objects found, invented and missed, by IoU and slice, and what makes them so.

    Attributes:
        ious: (K,) the thresholds.
        true_positives, false_positives, false_negatives: (K, N) objects of each slice.
        splits: (N,) true objects that hold more than half of each of two or more predicted ones.
        merges: (N,) predicted objects that hold more than half of each of two or more true ones.
    """

    ious: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]
    splits: NDArray[np.int64]
    merges: NDArray[np.int64]

    @property
    def average_precision(self) -> NDArray[np.float64]:
        """(K,) TP / (TP + FP + FN) of the counts summed over the slices; 1 where nothing is to be found and nothing was."""
        return _precision(*(x.sum(1) for x in (self.true_positives, self.false_positives, self.false_negatives)))

    @property
    def per_slice(self) -> NDArray[np.float64]:
        """(K, N) the same of each slice."""
        return _precision(self.true_positives, self.false_positives, self.false_negatives)


def _precision(tp: NDArray[Any], fp: NDArray[Any], fn: NDArray[Any]) -> NDArray[np.float64]:
    everything = tp + fp + fn
    return np.where(everything > 0, tp / np.maximum(everything, 1), 1.0)


@dataclass(frozen=True)
class Pairing:
    """The overlapping pairs of objects of one slice, and who belongs to whom.

    Attributes:
        table: pairs of a true and a predicted object that share a pixel, labels compact.
        iou: (pairs,) of each.
        true_sizes, predicted_sizes: pixels by label, 0 for labels that do not occur; entry 0 is the background's.
    """

    table: Overlaps
    iou: NDArray[np.float64]
    true_sizes: NDArray[np.int64]
    predicted_sizes: NDArray[np.int64]

    def matches(self, iou: float) -> int:
        """The most pairs with at least ``iou`` in which no object occurs twice."""
        enough = self.iou >= iou
        true, predicted = self.table.true[enough], self.table.predicted[enough]
        if iou > _HALF:  # then no object has two partners
            return len(true)
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import maximum_bipartite_matching

        shape = (len(self.true_sizes), len(self.predicted_sizes))
        graph = coo_array((np.ones(len(true), bool), (true, predicted)), shape=shape).tocsr()
        return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())

    @property
    def parts(self) -> NDArray[np.bool_]:
        """(pairs,) whether more than half of the predicted object lies in the true one."""
        return self.table.counts > _HALF * self.predicted_sizes[self.table.predicted]

    @property
    def wholes(self) -> NDArray[np.bool_]:
        """(pairs,) whether more than half of the true object lies in the predicted one."""
        return self.table.counts > _HALF * self.true_sizes[self.table.true]

    def split(self) -> NDArray[np.int64]:
        """Labels of the true objects that hold more than half of each of several predicted ones."""
        return np.flatnonzero(np.bincount(self.table.true[self.parts]) > 1)

    def merged(self) -> NDArray[np.int64]:
        """Labels of the predicted objects that hold more than half of each of several true ones."""
        return np.flatnonzero(np.bincount(self.table.predicted[self.wholes]) > 1)


def pairing(predicted: NDArray[Any], truth: NDArray[Any]) -> Pairing:
    """The pairs of two compact label maps (H, W)."""
    table = overlaps(predicted, truth)
    both = table.predicted > 0
    table = Overlaps(table.true[both], table.predicted[both], table.counts[both])
    true_sizes, predicted_sizes = (np.bincount(x.ravel().astype(np.int64)) for x in (truth, predicted))
    union = true_sizes[table.true] + predicted_sizes[table.predicted] - table.counts
    return Pairing(table, table.counts / union, true_sizes, predicted_sizes)


def _pairings(prediction: ArrayLike, truth: ArrayLike) -> Iterator[Pairing]:
    predicted, labels = label_stack("prediction", prediction), label_stack("truth", truth)
    check_same_shape("prediction", predicted, "truth", labels)
    return (pairing(compact(p), compact(t)) for p, t in zip(predicted, labels, strict=True))


def detections(prediction: ArrayLike, truth: ArrayLike, *, ious: ArrayLike = IOUS) -> Detections:
    """Objects found, invented and missed at each IoU, with splits and merges; see :func:`average_precision`.

    Args:
        prediction, truth: as for :func:`average_precision`.
        ious: increasing, above 0 and at most 1; default 0.5, 0.6, ... 0.9.
    """
    levels = np.atleast_1d(np.asarray(ious, dtype=np.float64))
    valid = levels.ndim == 1 and levels.size > 0 and bool((levels > 0).all() and (levels <= 1).all())
    if not valid or not bool((np.diff(levels) > 0).all()):
        raise InputError(f"iou is {ious!r}, expected a number above 0 and at most 1, or several that increase")
    counts, apart = [], []
    for pair in _pairings(prediction, truth):
        found = np.array([pair.matches(level) for level in levels])
        true, predicted = (np.count_nonzero(sizes[1:]) for sizes in (pair.true_sizes, pair.predicted_sizes))
        counts.append([found, predicted - found, true - found])
        apart.append([len(pair.split()), len(pair.merged())])
    tp, fp, fn = np.array(counts).transpose(1, 2, 0)
    splits, merges = np.array(apart).T
    return Detections(levels, tp, fp, fn, splits, merges)


def average_precision(prediction: ArrayLike, truth: ArrayLike, *, iou: float = 0.5) -> float:
    """TP / (TP + FP + FN) of objects: which were found, by an IoU of at least ``iou`` with a true one.

    Each object has one partner at most, and as many pairs are formed as possible: above 0.5 a partner is unique anyway; at
    0.5 and below, objects compete. The counts are summed over the slices first.

    Args:
        prediction: instances ``(N, H, W)`` or ``(H, W)``, integer, 0 = background. Objects of each slice are their own.
        truth: instances of the same shape.
        iou: above 0, at most 1.

    Returns:
        0 to 1 (perfect); 1 where nothing is to be found and nothing was. :func:`detections` gives several IoUs, the
        slices, splits and merges.

    Raises:
        InputError: shapes that differ or have another rank, an empty stack, negative labels, an IoU out of range.
        InputTypeError: floating-point arguments (label the components of a probability map first).

    Source: the measure of the Data Science Bowl 2018, as StarDist matches objects (Schmidt et al., "Cell detection with
    star-convex polygons", MICCAI 2018), which calls it accuracy and gives 0 where nothing is to be found and nothing was.

    Equivalent to, for one slice with labels 1 ... n::

        iou_ij = (pixels of true i and predicted j) / (pixels of true i or predicted j)
        rows, columns = scipy.optimize.linear_sum_assignment(-(iou_ij >= iou).astype(float))
        tp = (iou_ij[rows, columns] >= iou).sum()
        tp / (n_true + n_predicted - tp)
    """
    return float(detections(prediction, truth, ious=iou).average_precision[0])
