"""Warping error: the mismatches that no deformation of the truth can explain, which are splits, mergers, holes and specks.

The truth is deformed towards the prediction by flipping *simple* pixels, whose flip changes no topology. A
pixel with the eight neighbours ``a b c / d . e / f g h`` is simple when the 4-connected components of the
foreground among the neighbours that touch the pixel by an edge, and the 8-connected components of the
background among them, are exactly one each (topological numbers of the (4, 8) adjacency).

Sweep order (V. Jain et al., "Boundary learning by optimization with topological constraints", CVPR 2010):
mismatches by falling |p - t|, equal ones row by row, each flipped if simple at its turn, sweeps repeated until
one changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError
from unet_fast.metrics._inputs import check_same_shape, label_stack, probability_stack
from unet_fast.numpy import kernels


def warp_truth(probabilities: NDArray[Any], truth: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_]:
    """``truth`` (H, W) deformed as close to ``probabilities > threshold`` as it gets without changing its topology."""
    wanted = probabilities > probabilities.dtype.type(threshold)
    distance = np.abs(probabilities.astype(np.float64) - truth)
    return np.asarray(kernels().flip_simple_pixels(wanted, distance, truth))


def warping_error_per_slice(prediction: ArrayLike, truth: ArrayLike, *, threshold: float = 0.5) -> NDArray[np.float64]:
    """The warping error of every slice, ``(N,)``; see :func:`warping_error`."""
    probabilities = probability_stack("prediction", prediction)
    labels = label_stack("truth", truth)
    check_same_shape("prediction", probabilities, "truth", labels)
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold!r}, expected a number in [0, 1]")
    errors = []
    for p, t in zip(probabilities, labels != 0, strict=True):
        wanted = p > p.dtype.type(threshold)
        errors.append(np.count_nonzero(warp_truth(p, t, threshold) != wanted) / t.size)
    return np.array(errors)


def warping_error(prediction: ArrayLike, truth: ArrayLike, *, threshold: float = 0.5) -> float:
    """Mismatching pixels left after the best topology-preserving deformation of the truth that greedy flips find.

    Each slice, padded by one pixel of 0: pixels where ``prediction > threshold`` and truth differ are visited
    by falling ``|prediction - truth|``, equal ones row by row; one that is simple in its 3x3 neighbourhood is
    flipped in the truth; this is repeated until the number of mismatches no longer changes. Error = mismatches left / (H * W),
    mean over slices. Shifted borders cost nothing.

    Args:
        prediction: probability of the bright phase, ``(N, H, W)`` or ``(H, W)``, floating point in [0, 1] (or
            boolean).
        truth: mask or class map of the same shape, integer or boolean; 0 is the dark phase.
        threshold: in [0, 1].

    Raises:
        InputError: shapes that differ or have another rank, an empty stack, NaN, values outside [0, 1],
            negative labels.
        InputTypeError: an integer prediction, or a floating-point truth.
    """
    return float(warping_error_per_slice(prediction, truth, threshold=threshold).mean())
