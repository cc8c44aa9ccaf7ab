"""Dice coefficient of class maps, over the whole set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.metrics._classes import ClassOptions, count_classes, foreground_mean
from unet_fast.metrics._scan import ratio

if TYPE_CHECKING:
    from typing_extensions import Unpack


def dice_per_class(prediction: ArrayLike, truth: ArrayLike, **options: Unpack[ClassOptions]) -> NDArray[np.float64]:
    """``2 |A and B| / (|A| + |B|)`` of every class, ``(num_classes,)``; NaN for a class that occurs in neither.

    Arguments and errors as :func:`dice`.
    """
    counts = count_classes(prediction, truth, **options)
    return np.asarray(ratio(2 * counts.both, counts.predicted + counts.true, otherwise=np.nan))


def dice(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    num_classes: int | None = None,
    ignore_index: int | None = None,
    threshold: float = 0.5,
) -> float:
    """Dice coefficient over the set: pixels of all slices together, mean over the classes but 0.

    Args:
        prediction: class map ``(N, H, W)`` or ``(H, W)`` (integer or boolean); or foreground probabilities of
            that shape (floating point), binarised by ``> threshold``; or class probabilities ``(N, K, H,
            W)``, of which the largest counts.
        truth: class map or mask (0/1, 0/255, boolean) of the same slices.
        num_classes: K; default: as many as occur, at least 2.
        ignore_index: true label of pixels to leave out.
        threshold: see ``prediction``.

    Returns:
        0 to 1 (perfect); classes that occur in neither do not count; 1 when everything is class 0 in both.

    Raises:
        InputError: shapes that differ or have another rank, an empty stack, NaN, probabilities outside [0,
            1], labels that are negative or not below ``num_classes``.
        InputTypeError: a floating-point truth.
    """
    return foreground_mean(
        dice_per_class(prediction, truth, num_classes=num_classes, ignore_index=ignore_index, threshold=threshold)
    )
