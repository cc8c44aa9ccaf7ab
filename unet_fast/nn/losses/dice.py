"""Soft Dice loss."""

from __future__ import annotations

from torch import Tensor

from unet_fast.nn.losses import _regions
from unet_fast.nn.losses._inputs import Case, prepare
from unet_fast.nn.losses._module import FunctionLoss


def dice_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: float = 1.0,
    over: str = "sample",
    include_background: bool = True,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``1 - (2 sum(w p t) + smooth) / (sum(w p) + sum(w t) + smooth)``, p the probability and t the target of a class.

    Args:
        logits: (N, K, *S) with one to three spatial dimensions; float32, float64, float16 or bfloat16. K = 1: p is the
            sigmoid and t the foreground. K >= 2: p is the softmax, with one value a class.
        target: K = 1: (N, *S) or (N, 1, *S), the foreground as integers or booleans 0 and 1, or as floating
            probabilities from 0 to 1. K >= 2: (N, *S) integer class map.
        weight: w, shape of the target, floating; None counts as 1. A constant: it gets no gradient.
        smooth: at least 0, in pixels. With 0, a class that is neither predicted nor there has loss 0.
        over: "sample": sums over each sample of the batch; "batch": over all of them, steadier where masks are small.
        include_background: whether class 0 counts for K >= 2.
        ignore_index: pixels with this target count for nothing, whatever their logits and weights, NaN included.
        reduction: "mean" or "sum" over samples and classes; "none".

    Returns:
        The loss, a scalar, or (N, C) for "none" ((C,) over the batch) with C counted classes; float64 for float64
        logits, else float32, in which the arithmetic is done. Finite for empty and for full masks.

    Raises:
        InputError: shapes or devices do not match, an option out of range, a weight that requires gradients, a target
            outside its range (looked for on the CPU only, and not under ``torch.compile``).
        InputTypeError: not tensors, or another dtype; a floating target for K >= 2.

    Source: Milletari, Navab, Ahmadi, V-Net (2016), with plain instead of squared sums in the denominator.

    Equivalent to, for K = 1 and ``over="batch"``::

        p = logits.sigmoid()
        1 - (2 * (p * target).sum() + smooth) / (p.sum() + target.sum() + smooth)
    """
    _regions.check_options(smooth, over, include_background, ignore_index, reduction)
    case = prepare(logits, target, weight, ignore_index)
    return _regions.reduce(1 - soft_dice(case, smooth, over, include_background), over, reduction)


def soft_dice(case: Case, smooth: float, over: str, include_background: bool) -> Tensor:
    """The soft Dice coefficient, 1 = perfect: (N, C), or (1, C) over the batch."""
    both, predicted, true = _regions.overlap(case, include_background, over)
    return _regions.ratio(2 * both + smooth, predicted + true + smooth)


class DiceLoss(FunctionLoss):
    """:func:`unet_fast.nn.losses.dice_loss` as a module, with its keywords: ``forward(logits, target, weight=None)``."""

    function = staticmethod(dice_loss)
    check = staticmethod(_regions.check_options)
