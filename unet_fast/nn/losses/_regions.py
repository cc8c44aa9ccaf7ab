"""Sums over regions, which the Dice and the IoU loss share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unet_fast import checks
from unet_fast.errors import InputTypeError
from unet_fast.nn.losses._inputs import Case, check_number
from unet_fast.ops.dice_cross_entropy import ratio as ratio

OVER = ("sample", "batch")
REDUCTIONS = ("none", "sum", "mean")


class Overlap(NamedTuple):
    """Weighted sums over pixels, (N, C), or (1, C) over the batch; C: the classes that count."""

    both: Tensor  # probability on the true pixels
    predicted: Tensor  # probability
    true: Tensor  # target


def probabilities(case: Case, include_background: bool) -> tuple[Tensor, Tensor]:
    """(N, C, *S) probabilities in the wide dtype, and the target beside them, bool for several classes.

    One channel: the sigmoid, and C = 1. More: the softmax, without class 0 unless ``include_background``.
    """
    if case.binary:
        return case.logits.to(case.wide).sigmoid(), case.target.unsqueeze(1)
    first = 0 if include_background else 1
    return case.logits.softmax(1, dtype=case.wide)[:, first:], case.one_hot(first)


def overlap(case: Case, include_background: bool, over: str) -> Overlap:
    """The three sums of every sample or of the batch, and of every class."""
    probability, true = probabilities(case, include_background)
    weight = case.weight.unsqueeze(1)
    axes = tuple(range(2, probability.dim()))
    weighted = probability * weight
    # masking keeps a bool for the backward pass, where a product would keep a floating copy
    both = weighted.masked_fill(~true, 0) if true.dtype == torch.bool else weighted * true
    sums = Overlap(both.sum(axes), weighted.sum(axes), (true * weight).sum(axes))
    return sums if over == "sample" else Overlap(*(value.sum(0, keepdim=True) for value in sums))


def reduce(values: Tensor, over: str, reduction: str) -> Tensor:
    """Mean or sum over samples and classes; "none": (N, C) or, over the batch, (C,)."""
    if reduction == "none":
        return values if over == "sample" else values.squeeze(0)
    return values.sum() if reduction == "sum" else values.sum() / max(values.numel(), 1)


def check_options(
    smooth: float, over: str, include_background: bool, ignore_index: int, reduction: str = "mean"
) -> None:
    """Raise for an option outside its range."""
    check_number("smooth", smooth, 0.0)
    checks.check_choice("over", over, OVER)
    if not isinstance(include_background, bool):
        raise InputTypeError(f"include_background is {include_background!r}, expected True or False")
    checks.check_ignore_index(ignore_index)
    checks.check_choice("reduction", reduction, REDUCTIONS)
