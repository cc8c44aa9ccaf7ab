"""Soft Dice loss."""

from __future__ import annotations

from torch import Tensor

from unet_fast.dtypes import wide
from unet_fast.nn.losses import _regions
from unet_fast.nn.losses._inputs import Case
from unet_fast.nn.losses._module import FunctionLoss
from unet_fast.ops.dice_cross_entropy import add_up, dice_cross_entropy, prepare, region_dice


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
            probabilities from 0 to 1. K >= 2: (N, *S) or (N, 1, *S) integer class map, or (N, K, *S), the truth of each
            class, as integers 0 and 1 or floating.
        weight: w, (N, *S) or (N, 1, *S), floating; None counts as 1. A constant: it gets no gradient.
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
            outside its range (on a GPU the loss is NaN instead; under ``torch.compile`` a RuntimeError says it).
        InputTypeError: not tensors, or another dtype; a floating class map for K >= 2.

    Sums, loss and gradient are those of :func:`unet_fast.ops.dice_cross_entropy`: one pass over the logits for the loss, one for
    its gradient.

    Source: Milletari, Navab, Ahmadi, V-Net (2016), with plain instead of squared sums in the denominator.

    Equivalent to, for K = 1 and ``over="batch"``::

        p = logits.sigmoid()
        1 - (2 * (p * target).sum() + smooth) / (p.sum() + target.sum() + smooth)
    """
    _regions.check_options(smooth, over, include_background, ignore_index, reduction)
    if reduction == "none":
        case = prepare(logits, target, weight, None, None, ignore_index)
        dice = region_dice(add_up(case), include_background, over, smooth)
        return _regions.reduce(1 - dice, over, reduction).to(wide(logits.dtype))
    return dice_cross_entropy(
        logits, target, weight, lambda_ce=0.0, include_background=include_background, over=over, smooth_nr=smooth,
        smooth_dr=smooth, ignore_index=ignore_index, reduction=reduction,
    )  # fmt: skip


def soft_dice(case: Case, smooth: float, over: str, include_background: bool) -> Tensor:
    """The soft Dice coefficient, 1 = perfect: (N, C), or (1, C) over the batch."""
    both, predicted, true = _regions.overlap(case, include_background, over)
    return _regions.ratio(2 * both + smooth, predicted + true + smooth)


class DiceLoss(FunctionLoss):
    """:func:`unet_fast.nn.losses.dice_loss` as a module, with its keywords: ``forward(logits, target, weight=None)``."""

    function = staticmethod(dice_loss)
    check = staticmethod(_regions.check_options)
