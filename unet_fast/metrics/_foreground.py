"""The frame that V_Rand and V_Info share: foreground restriction, border thinning and the scan of thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.labels import components
from unet_fast.metrics._inputs import check_thresholds
from unet_fast.metrics._instances import instance_pair, overlaps
from unet_fast.metrics._scan import STEP_TENTHS, best_index, scan_slices
from unet_fast.numpy import distance_transform, kernels


class ForegroundOptions(TypedDict, total=False):
    """Keywords of both scores; :func:`unet_fast.metrics.v_rand` says what they mean and their defaults."""

    thin: bool
    thresholds: ArrayLike
    kind: str
    ignore_index: int | None


@dataclass(frozen=True)
class VScores:
    """A foreground-restricted score with its two sides, each 0 to 1 (perfect)."""

    score: float  #: F-like mean of the sides, alpha = 0.5
    split: float  #: falls when a true cell is cut into pieces
    merge: float  #: falls when true cells are joined
    threshold: float  #: best threshold of the scan; NaN when the prediction came as instances

    def __float__(self) -> float:
        return self.score


def thin_borders(instances: NDArray[Any]) -> NDArray[np.int32]:
    """Grow the instances of one slice, nearest first, until one pixel of border is left between them.

    (H, W) integer, 0 = background -> (H, W) int32. Instances keep their pixels. Pixels that lie equally far from an
    instance are taken in the order in which they are reached, starting from the instances' pixels row by row.

    Equivalent to, for instances none of which touch::

        distance = scipy.ndimage.distance_transform_edt(instances == 0)
        seeds = instances > 0
        distance[seeds] = np.arange(-seeds.sum(), 0)  # so that the order of equals does not depend on the heap
        skimage.segmentation.watershed(distance, markers=instances, watershed_line=True)
    """
    labels = np.ascontiguousarray(instances, dtype=np.int32)
    if not labels.any():
        return labels.copy()
    return np.asarray(kernels().thin_borders(labels, distance_transform(labels == 0)))


#: sums over the table of one slice -> (3,) additive terms; terms and pixels of the stack -> (score, split,
#: merge)
Terms = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float], NDArray[np.float64]]
Finish = Callable[[NDArray[np.float64], float], tuple[float, float, float]]


def foreground_scores(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    terms: Terms,
    finish: Finish,
    thin: bool = True,
    thresholds: ArrayLike = STEP_TENTHS,
    kind: str = "auto",
    ignore_index: int | None = None,
) -> VScores:
    """Sum ``terms`` over the slices and ``finish`` them for the stack, at the threshold with the best score."""
    pair = instance_pair(prediction, truth, kind, ignore_index)

    def measure(n: int, predicted: NDArray[Any]) -> NDArray[np.float64]:
        table = overlaps(thin_borders(predicted) if thin else predicted, pair.truth[n])
        inside = table.predicted > 0
        return terms(
            table.counts[inside],
            table.predicted_sizes()[1:],
            table.true_sizes()[1:],
            float(table.counts[~inside].sum()),
        )

    if pair.probabilities is not None:
        levels = check_thresholds(thresholds)
        sums = scan_slices(pair.probabilities, levels, lambda n, mask: measure(n, components(mask))).sum(axis=1)
    else:
        assert pair.predicted is not None
        levels = np.array([np.nan])
        sums = np.array([sum(measure(n, predicted) for n, predicted in enumerate(pair.predicted))])
    pixels = float(np.count_nonzero(pair.truth))
    results = [finish(row, pixels) for row in sums]
    k = best_index(np.array([result[0] for result in results]), levels)
    return VScores(*results[k], threshold=float(levels[k]))


def ratio(part: float, whole: float) -> float:
    """``part / whole``, and 1 for 0 / 0: where nothing can be split or merged, nothing was."""
    return part / whole if whole > 0 else 1.0
