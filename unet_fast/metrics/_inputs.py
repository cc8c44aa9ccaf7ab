"""What every metric accepts, and the one clear error for everything else.

Predictions and truth are stacks ``(N, H, W)`` or ``(N, 1, H, W)`` or single slices ``(H, W)``, as NumPy arrays or as torch
tensors on any device; torch itself is not imported for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError, InputTypeError

# Rounding in a softmax, or in a mean over tiles, may leave a probability this far outside [0, 1].
_SLACK = 1e-4


def as_array(name: str, value: Any) -> NDArray[Any]:
    """``value`` as a NumPy array; a torch tensor comes to the host, bfloat16 (which NumPy lacks) as float32."""
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        if "bfloat16" in str(tensor.dtype):
            tensor = tensor.float()
        return tensor.numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise InputTypeError(f"{name} has dtype {array.dtype}, expected a numeric array or tensor")
    return array


def as_stack(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """``(H, W)``, ``(N, H, W)`` or ``(N, 1, H, W)`` as ``(N, H, W)``; anything else, and an empty stack, is an error."""
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (2, 3):
        raise InputError(f"{name} has shape {array.shape}, expected (H, W), (N, H, W) or (N, 1, H, W)")
    if array.size == 0:
        raise InputError(f"{name} is empty, shape {array.shape}; expected at least one slice of at least one pixel")
    return array[None] if array.ndim == 2 else array


def check_probabilities(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """``array`` as float32 or float64 inside [0, 1]; NaN and values outside are errors."""
    if array.dtype.kind == "b":
        return array.astype(np.float32)
    if array.dtype.kind != "f":
        raise InputTypeError(
            f"{name} has dtype {array.dtype}, expected floating-point probabilities in [0, 1]; divide 0..255 by 255"
        )
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    if np.isnan(low) or np.isnan(high):
        count = int(np.isnan(array).sum())
        raise InputError(f"{name} holds NaN ({count} of {array.size} values), expected probabilities in [0, 1]")
    if low < -_SLACK or high > 1 + _SLACK:
        raise InputError(
            f"{name} runs from {low:g} to {high:g}, expected probabilities in [0, 1]; "
            "apply softmax or sigmoid to logits, divide 0..255 by 255"
        )
    return np.clip(array, 0, 1) if low < 0 or high > 1 else array


def probability_stack(name: str, value: ArrayLike) -> NDArray[Any]:
    """Checked probabilities as a float ``(N, H, W)``; a boolean mask counts as 0 and 1."""
    return check_probabilities(name, as_stack(name, as_array(name, value)))


def check_labels(name: str, array: NDArray[Any], ignore_index: int | None = None) -> NDArray[Any]:
    """``array`` if it is boolean or of non-negative integers (``ignore_index`` apart), else an error."""
    if array.dtype.kind not in "biu":
        raise InputTypeError(f"{name} has dtype {array.dtype}, expected integer labels or a boolean mask")
    if array.dtype.kind == "i":
        bad = array < 0
        if ignore_index is not None:
            bad &= array != ignore_index
        if bad.any():
            raise InputError(
                f"{name} holds the negative label {int(array[bad].min())}; labels start at 0, "
                "and pixels to leave out are named by ignore_index"
            )
    return array


def label_stack(name: str, value: ArrayLike, ignore_index: int | None = None) -> NDArray[Any]:
    """Checked labels as an integer or boolean ``(N, H, W)``."""
    return check_labels(name, as_stack(name, as_array(name, value)), ignore_index)


def check_same_shape(first: str, a: NDArray[Any], second: str, b: NDArray[Any]) -> None:
    """Raise unless both stacks have the same shape."""
    if a.shape != b.shape:
        raise InputError(f"{first} has shape {a.shape} but {second} has {b.shape}; both must cover the same pixels")


def check_thresholds(thresholds: ArrayLike) -> NDArray[np.float64]:
    """A non-empty, strictly increasing 1-D array of thresholds in [0, 1]."""
    array = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    in_range = array.ndim == 1 and array.size > 0 and bool((array >= 0).all() and (array <= 1).all())
    if not in_range or not bool((np.diff(array) > 0).all()):
        raise InputError(
            f"thresholds is {thresholds!r}, expected increasing numbers in [0, 1], such as 0.0, 0.1, ... 1.0"
        )
    return array


def is_mask(labels: NDArray[Any]) -> bool:
    """Whether the labels hold one non-zero value at most (0/1, 0/255, boolean), and so say nothing about instances."""
    return labels.dtype.kind == "b" or bool(((labels == 0) | (labels == labels.max())).all())
