"""Counts of classes, which Dice and IoU share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError
from unet_fast.metrics._inputs import (
    as_array,
    as_stack,
    check_labels,
    check_probabilities,
    check_same_shape,
    is_mask,
    label_stack,
)


class ClassOptions(TypedDict, total=False):
    """Keywords of the scores of classes; :func:`unet_fast.metrics.dice` says what they mean and their defaults."""

    num_classes: int | None
    ignore_index: int | None
    threshold: float


@dataclass(frozen=True)
class ClassCounts:
    """Pixels of each class over the set, (K,) each."""

    both: NDArray[np.float64]
    predicted: NDArray[np.float64]
    true: NDArray[np.float64]


def class_map(name: str, value: ArrayLike, threshold: float) -> NDArray[Any]:
    """Predicted classes ``(N, H, W)`` from labels, foreground probabilities or ``(N, K, H, W)`` probabilities."""
    array = as_array(name, value)
    if array.dtype.kind != "f":
        return check_labels(name, as_stack(name, array))
    if array.ndim == 4:
        if array.size == 0:
            raise InputError(f"{name} is empty, shape {array.shape}; expected at least one slice of at least one pixel")
        probabilities = check_probabilities(name, array)
        return probabilities.argmax(axis=1) if array.shape[1] > 1 else probabilities[:, 0] > threshold
    probabilities = check_probabilities(name, as_stack(name, array))
    return probabilities > probabilities.dtype.type(threshold)


def _mask_to_classes(labels: NDArray[Any]) -> NDArray[Any]:
    """A 0/255 mask as the classes 0 and 1."""
    return labels != 0 if labels.dtype.kind != "b" and labels.max() == 255 and is_mask(labels) else labels


def count_classes(
    prediction: ArrayLike,
    truth: ArrayLike,
    num_classes: int | None = None,
    ignore_index: int | None = None,
    threshold: float = 0.5,
) -> ClassCounts:
    """Count pixels by class; a boolean or 0/255 mask on either side holds the classes 0 and 1."""
    predicted = class_map("prediction", prediction, threshold)
    labels = label_stack("truth", truth, ignore_index)
    check_same_shape("prediction", predicted, "truth", labels)
    if ignore_index is not None:
        kept = labels != ignore_index
        predicted, labels = predicted[kept], labels[kept]
    if labels.size == 0:
        raise InputError(f"every pixel of truth is ignore_index {ignore_index}; nothing is left to score")
    predicted, labels = _mask_to_classes(predicted), _mask_to_classes(labels)
    largest = max(int(predicted.max()), int(labels.max()))
    k = max(largest + 1, 2) if num_classes is None else num_classes
    if largest >= k:
        side = "truth" if int(labels.max()) == largest else "prediction"
        raise InputError(f"{side} holds class {largest}, expected 0..{k - 1}; raise num_classes or set ignore_index")
    predicted, labels = predicted.astype(np.int64), labels.astype(np.int64)
    return ClassCounts(
        both=np.bincount(labels[predicted == labels], minlength=k).astype(np.float64),
        predicted=np.bincount(predicted.ravel(), minlength=k).astype(np.float64),
        true=np.bincount(labels.ravel(), minlength=k).astype(np.float64),
    )


def foreground_mean(per_class: NDArray[np.float64]) -> float:
    """Mean over the classes but 0 that occur in the prediction or in the truth; 1 when none occurs (all agree on 0)."""
    values = per_class[1:]
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else 1.0
