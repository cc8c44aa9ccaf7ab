"""Focal loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_fast.nn.losses import _pixels
from unet_fast.nn.losses._inputs import Case, check_number, prepare
from unet_fast.nn.losses._module import Loss


def focal_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    alpha: float | Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``-alpha_c (1 - p)^gamma log p``, p the probability of the pixel's true class c, times a weight per pixel.

    Args:
        logits: (N, K, *S) with one to three spatial dimensions; float32, float64, float16 or bfloat16. K = 1: p from
            the sigmoid; K >= 2: from the softmax.
        target: K = 1: (N, *S) or (N, 1, *S), the foreground as integers or booleans 0 and 1, or as floating
            probabilities t from 0 to 1: the loss is then t times that of foreground plus 1 - t times that of
            background. K >= 2: (N, *S) or (N, 1, *S) integer class map.
        weight: shape of the target, floating; None counts as 1. A constant: it gets no gradient.
        gamma: at least 0; 0 is the cross-entropy. Any value has a finite gradient, those below 1 included.
        alpha: None: 1 for all. A number from 0 to 1: alpha for the foreground (all classes but 0), 1 - alpha for class
            0. A tensor on the device of the logits: one number per class, for K = 1 [background, foreground].
        ignore_index: pixels with this target count for nothing, whatever their logits and weights, NaN included.
        reduction: "mean": sum of the weighted losses / number of counted pixels; "weight_mean": sum / sum of the
            weights of counted pixels (alpha does not count as a weight); "sum"; "none".

    Returns:
        The loss, a scalar, or (N, *S) for "none" with 0 at ignored pixels; float64 for float64 logits, else float32,
        in which the arithmetic is done. When no pixel is counted, 0, and so is the gradient.

    Raises:
        InputError: shapes or devices do not match, an option out of range, a weight that requires gradients, a target
            outside its range (looked for on the CPU only, and not under ``torch.compile``).
        InputTypeError: not tensors, or another dtype; a floating target for K >= 2.

    Source: Lin, Goyal, Girshick, He, Dollar, Focal Loss for Dense Object Detection (2017), equation 5.

    Equivalent to, for K >= 2 and alpha None::

        log_p = -F.cross_entropy(logits, target, reduction="none")
        (-((1 - log_p.exp()) ** gamma) * log_p).mean()
    """
    check_focal_options(gamma, alpha)
    _pixels.check_options(ignore_index, reduction)
    case = prepare(logits, target, weight, ignore_index)
    return _pixels.reduce(case, focal_pixels(case, gamma, alpha), reduction)


def focal_pixels(case: Case, gamma: float, alpha: float | Tensor | None) -> Tensor:
    """(N, *S) without the weights per pixel."""
    if case.soft:
        logits = case.logits.to(case.wide).squeeze(1)
        background, foreground = _focal(-F.logsigmoid(-logits), gamma), _focal(-F.logsigmoid(logits), gamma)
        if alpha is not None:
            low, high = _two(case, alpha)
            background, foreground = background * low, foreground * high
        return torch.lerp(background, foreground, case.target)
    loss = _focal(_pixels.cross_entropy(case), gamma)
    if alpha is None:
        return loss
    if isinstance(alpha, Tensor):
        _pixels.check_class_vector("alpha", alpha, case.logits.shape[1], case.logits.device)
        return loss * _pixels.by_class(case, alpha)
    return torch.where(case.target > 0, loss * alpha, loss * (1 - alpha))


class _Focal(torch.autograd.Function):
    """``(1 - p)^gamma cross_entropy`` with p = exp(-cross_entropy), which alone is kept for the backward pass.

    The derivative is written so that for gamma < 1 it does not meet the infinite slope of the power at p = 1.
    """

    @staticmethod
    def forward(cross_entropy: Tensor, gamma: float) -> Tensor:
        return cross_entropy * (-torch.expm1(-cross_entropy)).pow(gamma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        cross_entropy, ctx.gamma = inputs
        ctx.save_for_backward(cross_entropy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (cross_entropy,) = ctx.saved_tensors
        q = -torch.expm1(-cross_entropy)
        ratio = cross_entropy / q.clamp_min(torch.finfo(q.dtype).tiny)  # 1 at p = 1, where the power is 0 anyway
        return grad * q.pow(ctx.gamma) * (1 + ctx.gamma * ratio * (1 - q)), None


def _focal(cross_entropy: Tensor, gamma: float) -> Tensor:
    return cross_entropy if gamma == 0 else _Focal.apply(cross_entropy, gamma)


def _two(case: Case, alpha: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
    """The factors of background and foreground."""
    if isinstance(alpha, Tensor):
        _pixels.check_class_vector("alpha", alpha, 1, case.logits.device)
        return alpha[0], alpha[1]
    return 1 - alpha, alpha


def check_focal_options(gamma: float, alpha: float | Tensor | None) -> None:
    """Raise for gamma or a number alpha out of range."""
    check_number("gamma", gamma, 0.0)
    if alpha is not None and not isinstance(alpha, Tensor):
        check_number("alpha", alpha, 0.0, 1.0)


class FocalLoss(Loss):
    """:func:`unet_fast.nn.losses.focal_loss` as a module: ``forward(logits, target, weight=None)``.

    ``alpha`` may also be a sequence, one number per class; a sequence or a tensor becomes a buffer that moves with the
    module.
    """

    alpha_by_class: Tensor | None

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        number = alpha if isinstance(alpha, (int, float)) else None
        check_focal_options(gamma, number)
        _pixels.check_options(ignore_index, reduction)
        super().__init__(gamma=gamma, ignore_index=ignore_index, reduction=reduction)
        self.alpha = number
        vector = None if alpha is None or isinstance(alpha, (int, float)) else _pixels.class_vector("alpha", alpha)
        self.register_buffer("alpha_by_class", None if vector is None else vector.float())

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the reduced loss."""
        alpha = self.alpha if self.alpha_by_class is None else self.alpha_by_class
        return focal_loss(logits, target, weight, alpha=alpha, **self.options)

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        alpha = self.alpha if self.alpha_by_class is None else self.alpha_by_class.tolist()
        return f"alpha={alpha!r}, {super().extra_repr()}"
