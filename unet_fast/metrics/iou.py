"""Intersection over union of class maps, over the whole set. (For instances, see :func:`unet_fast.metrics.seg`.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.metrics._classes import ClassOptions, count_classes, foreground_mean
from unet_fast.metrics._scan import ratio

if TYPE_CHECKING:
    from typing_extensions import Unpack


def iou_per_class(prediction: ArrayLike, truth: ArrayLike, **options: Unpack[ClassOptions]) -> NDArray[np.float64]:
    """``|A and B| / |A or B|`` of every class, ``(num_classes,)``; NaN for a class that occurs in neither.

    Arguments and errors as :func:`iou`.
    """
    counts = count_classes(prediction, truth, **options)
    return np.asarray(ratio(counts.both, counts.predicted + counts.true - counts.both, otherwise=np.nan))


def iou(prediction: ArrayLike, truth: ArrayLike, **options: Unpack[ClassOptions]) -> float:
    """Intersection over union over the set: pixels of all slices together, mean over the classes but 0.

    Arguments, result and errors as :func:`unet_fast.metrics.dice`; for two classes ``iou = dice / (2 -
    dice)``.
    """
    return foreground_mean(iou_per_class(prediction, truth, **options))
