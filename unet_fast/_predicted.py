"""A prediction of any kind - probabilities, mask, classes, instances -, told apart and checked for :mod:`evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_fast.errors import InputError
from unet_fast.metrics._inputs import check_probabilities, check_same_shape, is_mask, label_stack
from unet_fast.metrics._instances import compact

# data.detect_kind allows class maps of 64 classes; a uint8 prediction that stays below cannot be told from one
_LARGEST_CLASS = 63


@dataclass(frozen=True)
class Prediction:
    """A prediction of any kind, as foreground probability, as classes (K > 2), and as instances where it came so."""

    foreground: NDArray[Any]  # (N, H, W) float in [0, 1]
    classes: NDArray[Any] | None  # (N, H, W) integer
    instances: NDArray[Any] | None  # (N, H, W) integer
    shown: NDArray[Any]  # what the picture shows: foreground, or (N, K, H, W)

    def without(self, ignored: NDArray[np.bool_]) -> Prediction:
        """The same with background where ``ignored`` (N, H, W)."""
        foreground = np.where(ignored, self.foreground.dtype.type(0), self.foreground)
        classes, instances = (None if x is None else np.where(ignored, 0, x) for x in (self.classes, self.instances))
        shown = foreground
        if self.shown.ndim == 4:
            background = np.arange(self.shown.shape[1])[:, None, None] == 0
            shown = np.where(ignored[:, None], background, self.shown).astype(self.shown.dtype)
        return Prediction(foreground, classes, instances, shown)


def interpret(array: NDArray[Any], truth: NDArray[Any], kind: str, num_classes: int) -> Prediction:
    """Tell probabilities, masks, classes and instances apart, and check them."""
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim not in (3, 4) or array.size == 0:
        raise InputError(f"prediction has shape {array.shape}, expected a non-empty (H, W), (N, H, W) or (N, K, H, W)")
    check_same_shape("prediction", array if array.ndim == 3 else array[:, 0], "labels", truth)
    bytes_like = array.dtype == np.uint8
    if array.dtype.kind == "f" and array.max() > 1 and bool((array == np.rint(array)).all()):
        # whole numbers that went through a float, as readers of image files like to return them
        bytes_like = 0 <= float(array.min()) and float(array.max()) <= 255
        array = array.astype(np.int64)

    if array.ndim == 4:
        if array.dtype.kind != "f":
            array = array.astype(np.float32) / (255 if array.max() > 1 else 1)
        array = check_probabilities("prediction", array)
        if kind == "classes" and array.shape[1] != num_classes:
            raise InputError(f"prediction has {array.shape[1]} channels, but the labels have {num_classes} classes")
        foreground = 1 - array[:, 0]
        classes = array.argmax(axis=1) if kind == "classes" and num_classes > 2 else None
        return Prediction(foreground, classes, None, array if classes is not None else foreground)

    if array.dtype.kind == "f":
        foreground = check_probabilities("prediction", array)
        if kind == "classes" and num_classes > 2:
            raise InputError(
                f"prediction has one channel of probabilities, but the labels have {num_classes} classes; "
                "give (N, K, H, W) probabilities or class numbers"
            )
        return Prediction(foreground, None, None, foreground)
    label_stack("prediction", array)
    largest = int(array.max())
    multiclass = kind == "classes" and num_classes > 2
    if multiclass and largest < num_classes:
        hard = (array != 0).astype(np.float32)
        one_hot = (array[:, None] == np.arange(num_classes)[:, None, None]).astype(np.float32)
        return Prediction(hard, array, None, one_hot)
    if multiclass:
        raise InputError(
            f"prediction holds class {largest}, but the labels have {num_classes} classes, 0..{num_classes - 1}"
        )
    # of a mask, two numbers are background and foreground, whatever they are stored as
    if is_mask(array) and (largest in (0, 1, 255, 65535) or (kind == "mask" and bool((array == 0).any()))):
        hard = (array != 0).astype(np.float32)
        return Prediction(hard, None, None, hard)
    if bytes_like and largest > _LARGEST_CLASS and not _look_like_instances(array):
        foreground = array.astype(np.float32) / 255
        return Prediction(foreground, None, None, foreground)
    if kind == "instances" or _look_like_instances(array):
        hard = (array != 0).astype(np.float32)
        return Prediction(hard, None, np.stack([compact(values) for values in array]), hard)
    raise InputError(
        f"prediction holds integers up to {largest} of dtype {array.dtype}, which are neither probabilities (0..255), "
        f"nor a mask (0/1 or 0/255), nor instances; expected one of these for labels of kind {kind!r}"
    )


def _look_like_instances(array: NDArray[Any]) -> bool:
    from unet_fast.data import detect_kind

    try:
        return detect_kind(array) == "instances"
    except InputError:
        return False
