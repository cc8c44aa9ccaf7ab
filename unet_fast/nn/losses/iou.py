"""Soft IoU (Jaccard) loss."""

from __future__ import annotations

from torch import Tensor

from unet_fast.nn.losses import _regions
from unet_fast.nn.losses._inputs import Case, prepare
from unet_fast.nn.losses._module import FunctionLoss


def iou_loss(
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
    """``1 - (sum(w p t) + smooth) / (sum(w p) + sum(w t) - sum(w p t) + smooth)``: the Jaccard index of probabilities.

    Arguments, result and errors: as :func:`unet_fast.nn.losses.dice_loss`.

    Source: Rahman, Wang, Optimizing Intersection-Over-Union in Deep Neural Networks (2016); a part of UNet 3+'s loss.

    Equivalent to, for K = 1 and ``over="batch"``::

        p = logits.sigmoid()
        both = (p * target).sum()
        1 - (both + smooth) / (p.sum() + target.sum() - both + smooth)
    """
    _regions.check_options(smooth, over, include_background, ignore_index, reduction)
    case = prepare(logits, target, weight, ignore_index)
    return _regions.reduce(1 - soft_iou(case, smooth, over, include_background), over, reduction)


def soft_iou(case: Case, smooth: float, over: str, include_background: bool) -> Tensor:
    """The soft Jaccard index, 1 = perfect: (N, C), or (1, C) over the batch."""
    both, predicted, true = _regions.overlap(case, include_background, over)
    return _regions.ratio(both + smooth, predicted + true - both + smooth)


class IoULoss(FunctionLoss):
    """:func:`unet_fast.nn.losses.iou_loss` as a module, with its keywords: ``forward(logits, target, weight=None)``."""

    function = staticmethod(iou_loss)
    check = staticmethod(_regions.check_options)
