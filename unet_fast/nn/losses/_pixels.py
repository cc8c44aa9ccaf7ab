"""What the pixel-wise losses share: cross-entropies, class weights, and reductions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_fast import checks
from unet_fast.errors import InputError, InputTypeError
from unet_fast.nn.losses._inputs import Case

REDUCTIONS = ("none", "sum", "mean", "weight_mean")


def cross_entropy(case: Case) -> Tensor:
    """(N, *S): -log of the probability of the true class, for a target of whole classes; exact in the tails."""
    logits = case.logits.to(case.wide)
    if case.binary:
        return F.binary_cross_entropy_with_logits(logits.squeeze(1), case.target, reduction="none")
    return F.cross_entropy(logits, case.target.long(), reduction="none")


def binary_cross_entropy(case: Case) -> Tensor:
    """(N, *S): cross-entropy of the sigmoid; for several classes each against the rest, averaged over the classes."""
    logits = case.logits.to(case.wide)
    if case.binary:
        return F.binary_cross_entropy_with_logits(logits.squeeze(1), case.target, reduction="none")
    return -F.logsigmoid(torch.where(case.one_hot(), logits, -logits)).mean(1)


def by_class(case: Case, class_weights: Tensor) -> Tensor:
    """(N, *S): the weight of each pixel's class, between that of background and foreground for a soft target."""
    class_weights = class_weights.to(case.wide)
    if case.binary:
        return torch.lerp(class_weights[0], class_weights[1], case.target)
    return class_weights[case.target.long()]


def reduce(case: Case, loss: Tensor, reduction: str) -> Tensor:
    """Sum or mean of ``loss`` (N, *S) times the weights; 0 where nothing is counted."""
    loss = loss * case.weight
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    divisor = case.counted.sum() if reduction == "mean" else case.weight.sum()
    return total / divisor.masked_fill(divisor == 0, 1)


def check_options(ignore_index: int, reduction: str) -> None:
    """Raise for an unknown reduction or an ``ignore_index`` that is not an integer."""
    checks.check_ignore_index(ignore_index)
    checks.check_choice("reduction", reduction, REDUCTIONS)


def check_class_vector(name: str, value: Tensor, num_classes: int, device: torch.device) -> None:
    """Raise unless ``value`` is a tensor of one number per class on ``device``; one channel counts as two classes."""
    checks.check_tensor(name, value)
    expected = max(num_classes, 2)
    if value.shape != (expected,):
        order = "[background, foreground]" if expected == 2 else "one number per class"
        raise InputError(f"{name} has shape {tuple(value.shape)}, expected ({expected},): {order}")
    if value.device != device:
        raise InputError(f"logits are on {device} but {name} is on {value.device}; move both to the same device")


def class_vector(name: str, value: Sequence[float] | Tensor) -> Tensor:
    """Numbers by class as a float64 vector, for a buffer of a module; finite, at least 0, not all 0."""
    try:
        vector = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise InputTypeError(f"{name} is {value!r}, expected one number per class") from None
    if vector.dim() != 1 or vector.numel() < 2:
        raise InputError(f"{name} has shape {tuple(vector.shape)}, expected one number per class, at least two")
    if not bool((vector.isfinite() & (vector >= 0)).all()) or not bool((vector > 0).any()):
        raise InputError(f"{name} is {vector.tolist()}, expected finite numbers of at least 0, one of them above 0")
    return vector
