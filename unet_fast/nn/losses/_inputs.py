"""What every loss does first: check its arguments, and mask ignored pixels before anything is computed.

No shape here depends on a value and no value is read back from a GPU, so the losses run under
``torch.compile(fullgraph=True)`` and inside CUDA graphs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unet_fast import checks
from unet_fast.dtypes import wide
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops._targets import DTYPES, from_one_hot, has_values, of_pixels

_OF_LOGITS = "that of the logits without the classes"


class Case(NamedTuple):
    """Checked arguments. ``S`` are one to three spatial dimensions."""

    logits: Tensor  # (N, K, *S) in the dtype of the caller, 0 at ignored pixels: not even a NaN there may spread
    target: Tensor  # (N, *S), 0 at ignored pixels; ``wide`` for K = 1, classes in an integer dtype for K >= 2
    counted: Tensor  # (N, *S) bool
    weight: Tensor  # (N, *S) in ``wide``, 0 at ignored pixels
    soft: bool  # whether a target of K = 1 may lie between 0 and 1
    wide: torch.dtype  # what sums and transcendental functions are computed in

    @property
    def binary(self) -> bool:
        """Whether there is a single channel, read by a sigmoid."""
        return self.logits.shape[1] == 1

    def one_hot(self, first: int = 0) -> Tensor:
        """(N, K - first, *S) bool: whether the pixel is of that class. Ignored pixels read as class 0."""
        classes = torch.arange(first, self.logits.shape[1], device=self.target.device)
        return self.target.unsqueeze(1) == classes.view(-1, *[1] * (self.target.dim() - 1))


def prepare(logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Case:
    """Check the arguments that all losses share, and mask them."""
    pixels = (logits.shape[0], *logits.shape[2:]) if isinstance(logits, Tensor) and logits.dim() > 1 else ()
    if pixels and isinstance(target, Tensor):
        target = from_one_hot(target, logits.shape[1], pixels)
    _check_types(logits, target, weight, ignore_index)
    binary = logits.shape[1] == 1
    target = of_pixels("target", target, pixels, _OF_LOGITS)
    floats = wide(logits.dtype)
    ignored = _ignored(target, ignore_index)
    counted = ~ignored
    target = target.masked_fill(ignored, 0)
    _check_values(target, logits.shape[1], ignore_index)
    soft = target.dtype.is_floating_point
    if binary:
        target = target.to(floats)
    if weight is None:
        weight = counted.to(floats)
    else:
        weight = of_pixels("weight", weight, pixels, _OF_LOGITS).to(floats).masked_fill(ignored, 0)
    return Case(logits.masked_fill(ignored.unsqueeze(1), 0), target, counted, weight, soft, floats)


def check_number(name: str, value: float, low: float, high: float = float("inf"), *, above: bool = False) -> None:
    """Raise unless ``value`` is a finite number from ``low`` (or, with ``above``, greater than ``low``) to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputTypeError(f"{name} is {value!r}, expected a number")
    if not (low <= value <= high and value < float("inf")) or (above and value == low):
        bounds = f"{'above' if above else 'of at least'} {low:g}" + (
            "" if high == float("inf") else f", at most {high:g}"
        )
        raise InputError(f"{name} is {value!r}, expected a number {bounds}")


def _check_types(logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> None:
    checks.check_tensor("logits", logits)
    checks.check_tensor("target", target)
    checks.check_dtype("logits", logits, checks.FLOATING)
    checks.check_rank("logits", logits, (3, 4, 5), "(N, K, H, W), or one or three spatial dimensions")
    checks.check_same_device("logits", logits, "target", target)
    checks.check_ignore_index(ignore_index)
    if logits.shape[1] == 0:
        raise InputError(f"logits of shape {tuple(logits.shape)} have no channels, expected at least one")
    if logits.shape[1] == 1:
        checks.check_dtype("target", target, (*checks.FLOATING, *DTYPES))
    elif target.dtype.is_floating_point:
        raise InputTypeError(
            f"target has dtype {str(target.dtype).removeprefix('torch.')}, but logits with {logits.shape[1]} classes "
            "expect an integer class map; pass target.long(), or use one output channel for a soft mask"
        )
    else:
        checks.check_dtype("target", target, DTYPES)
    if weight is not None:
        checks.check_weight("weight", weight, "logits", logits)


def _ignored(target: Tensor, ignore_index: int) -> Tensor:
    dtype = target.dtype
    if dtype == torch.bool:
        return torch.zeros_like(target)
    if not dtype.is_floating_point and not torch.iinfo(dtype).min <= ignore_index <= torch.iinfo(dtype).max:
        # the comparison would wrap: -100 as a uint8 is 156
        return torch.zeros_like(target, dtype=torch.bool)
    return target == ignore_index


def _check_values(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Look for labels outside the classes, where that needs no synchronisation and no graph is being traced."""
    if not has_values(target):
        return
    target = target.as_subclass(Tensor)
    largest = max(num_classes - 1, 1)
    if target.numel() == 0 or target.dtype == torch.bool:
        return
    low, high = (value.item() for value in target.aminmax())
    if 0 <= low and high <= largest:
        return
    value = low if not 0 <= low else high
    if target.dtype.is_floating_point:
        expected = "probabilities of the foreground, 0 to 1,"
    else:
        expected = f"classes 0 to {largest}"
    more = "one channel tells two classes; " if num_classes == 1 else ""
    raise InputError(
        f"target contains {value:.7g}, expected {expected} or ignore_index ({ignore_index}); {more}"
        "check the labels, or give the network more classes"
    )
