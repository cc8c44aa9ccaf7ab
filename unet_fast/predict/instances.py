"""Objects out of probabilities: components of the foreground."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from unet_fast.errors import InputError

MIN_SIZE = 20


def foreground_instances(probability: np.ndarray, *, threshold: float = 0.5, min_size: int = MIN_SIZE) -> np.ndarray:
    """Number the objects of a foreground probability (H, W): int32 (H, W), 0 = background, 1 ... n in reading order.

    An object is a 4-connected component of ``probability > threshold`` with at least ``min_size`` pixels. Networks that
    were trained on labels between whose touching objects a ridge of background was cut (as training does here) keep
    neighbours apart; the components themselves are not split.

    Raises:
        InputError: not (H, W), a threshold outside [0, 1], a negative ``min_size``.

    Equivalent to::

        labels = scipy.ndimage.label(probability > threshold)[0]
        sizes = np.bincount(labels.ravel())
        labels[sizes[labels] < min_size] = 0  # and the rest renumbered
    """
    if probability.ndim != 2:
        raise InputError(f"probability has shape {probability.shape}, expected (H, W)")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}, expected a probability from 0 to 1")
    if min_size < 0:
        raise InputError(f"min_size is {min_size}, expected a number of pixels of at least 0")
    labels, _ = ndimage.label(probability > threshold)
    kept = np.bincount(labels.ravel()) >= min_size
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]


def instance_dtype(size: tuple[int, int], min_size: int) -> np.dtype:
    """The unsigned integers that hold all numbers which an image of ``size`` can need: uint16, or uint32."""
    return np.dtype(np.uint16 if size[0] * size[1] // max(min_size, 1) < 2**16 else np.uint32)
