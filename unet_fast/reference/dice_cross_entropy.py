"""Soft Dice and cross-entropy in plain PyTorch, from one-hot targets and probabilities of every class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_fast.dtypes import wide
from unet_fast.errors import InputError


def dice_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    activation: str | None = None,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    include_background: bool = True,
    over: str = "sample",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """See :func:`unet_fast.ops.dice_cross_entropy`. Differentiable any number of times."""
    sigmoid = activation == "sigmoid" or (activation is None and logits.shape[1] == 1)
    classes = logits.shape[1]
    target = target.squeeze(1) if target.dim() == logits.dim() and target.shape[1] == 1 else target
    weight = weight.squeeze(1) if weight is not None and weight.dim() == logits.dim() else weight
    sums = region_sums(logits, target, weight, class_weight, ignore_index, label_smoothing, sigmoid)
    both, predicted, true, cross_entropy, counted = sums
    if over == "batch":
        both, predicted, true = (value.sum(0, keepdim=True) for value in (both, predicted, true))
    denominator = predicted + true + smooth_dr
    nothing = denominator <= 0
    dice = 1 - ((2 * both + smooth_nr) / denominator.where(~nothing, 1)).where(~nothing, 1)
    first = 0 if include_background or classes == 1 else 1
    dice = dice[:, first:]
    if class_weight is not None and dice.shape[1] > 1:
        dice = dice * class_weight[first:].to(dice.dtype)
    total = cross_entropy.sum()
    if reduction == "mean":
        number = counted.sum() * (classes if sigmoid else 1)
        return (lambda_dice * dice.sum() / max(dice.numel(), 1) + lambda_ce * total / number.where(number != 0, 1)).to(
            wide(logits.dtype)
        )
    return (lambda_dice * dice.sum() + lambda_ce * total).to(wide(logits.dtype))


def region_sums(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    sigmoid: bool,
) -> tuple[Tensor, ...]:
    """As the operator: sums over pixels, float64, from arguments that are checked but for the values of the target."""
    classes = logits.shape[1]
    target = target.squeeze(1) if classes == 1 and target.dim() == logits.dim() else target
    dtype = wide(logits.dtype)
    axes = tuple(range(2, logits.dim()))
    soft = target.dim() == logits.dim() or target.dtype.is_floating_point
    counted = torch.ones(logits.shape[:1] + logits.shape[2:], dtype=torch.bool, device=logits.device)
    if target.dim() < logits.dim() and target.dtype != torch.bool:
        counted = target.to(torch.float64 if soft else torch.int64) != ignore_index
        _check(target, counted, classes, ignore_index)
    if target.dim() == logits.dim():
        truth = target.to(dtype)
    elif classes == 1:
        truth = target.where(counted, 0).to(dtype).unsqueeze(1)
    else:
        truth = F.one_hot(target.where(counted, 0).long(), classes).movedim(-1, 1).to(dtype)
    x = logits.to(dtype).where(counted.unsqueeze(1), 0)
    w = counted.to(dtype) if weight is None else weight.to(dtype).where(counted, 0)
    v = torch.ones(classes, dtype=dtype, device=x.device) if class_weight is None else class_weight.to(dtype)
    by_class = v.view(-1, *[1] * len(axes))
    if sigmoid:
        p = x.sigmoid()
        losses = (1 - truth) * F.softplus(x) + by_class * truth * F.softplus(-x)
    else:
        p = x.softmax(1)
        smoothed = (1 - label_smoothing) * truth + label_smoothing / classes
        losses = -by_class * smoothed * x.log_softmax(1)
    w = w.unsqueeze(1)
    add = lambda values, over: values.sum(over, dtype=torch.float64)  # noqa: E731
    number = counted.to(dtype)
    if not soft and not sigmoid:
        number = (truth * by_class).sum(1) * counted
    return (
        add(w * p * truth, axes),
        add(w * p, axes),
        add((w * truth), axes),
        add(w * losses, (1, *axes)),
        add(number, tuple(range(1, number.dim()))),
    )


def _check(target: Tensor, counted: Tensor, classes: int, ignore_index: int) -> None:
    """Raise for a class that there is not, where the values can be read without waiting for a device."""
    if target.device.type != "cpu" or torch.compiler.is_compiling() or type(target) is not Tensor:
        return
    largest = max(classes - 1, 1)
    wrong = counted & ~((target >= 0) & (target <= largest))
    if wrong.any():
        expected = "probabilities, 0 to 1," if target.dtype.is_floating_point else f"classes 0 to {largest}"
        raise InputError(
            f"target contains {target[wrong][0].item():.7g}, expected {expected} or ignore_index ({ignore_index}); "
            f"{'one channel tells two classes; ' if classes == 1 else ''}check the labels, or give the network more classes"
        )
