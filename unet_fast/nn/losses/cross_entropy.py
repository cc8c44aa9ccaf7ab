"""Binary cross-entropy with logits, plain or weighted by inverse class frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unet_fast import checks
from unet_fast.errors import InputError
from unet_fast.nn.losses import _pixels
from unet_fast.nn.losses._inputs import Case, prepare
from unet_fast.nn.losses._module import FunctionLoss, Loss
from unet_fast.ops._targets import DTYPES, calculable


def bce_with_logits_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Binary cross-entropy of ``sigmoid(logits)``, times a weight per pixel.

    Args:
        logits: (N, K, *S) with one to three spatial dimensions; float32, float64, float16 or bfloat16.
        target: K = 1: (N, *S) or (N, 1, *S), the foreground as integers or booleans 0 and 1, or as floating
            probabilities from 0 to 1. K >= 2: (N, *S) or (N, 1, *S) integer class map; each class is separated from the rest by
            its own sigmoid; a pixel's loss is the mean over the classes. (For a softmax: ``weighted_cross_entropy``.)
        weight: shape of the target, floating; None counts as 1. A constant: it gets no gradient.
        ignore_index: pixels with this target count for nothing, whatever their logits and weights, NaN included.
        reduction: "mean": sum of the weighted losses / number of counted pixels; "weight_mean": sum / sum of the
            weights of counted pixels; "sum"; "none".

    Returns:
        The loss, a scalar, or (N, *S) for "none" with 0 at ignored pixels; float64 for float64 logits, else float32,
        in which the arithmetic is done. When no pixel is counted, 0, and so is the gradient.

    Raises:
        InputError: shapes or devices do not match, an unknown reduction, a weight that requires gradients, a target
            outside its range (looked for on the CPU only, and not under ``torch.compile``).
        InputTypeError: not tensors, or another dtype; a floating target for K >= 2.

    Equivalent to, for K = 1::

        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none")
        loss[target != ignore_index].mean()
    """
    _pixels.check_options(ignore_index, reduction)
    case = prepare(logits, target, weight, ignore_index)
    return _pixels.reduce(case, _pixels.binary_cross_entropy(case), reduction)


class BCEWithLogitsLoss(FunctionLoss):
    """:func:`unet_fast.nn.losses.bce_with_logits_loss` as a module, with its keywords: ``forward(logits, target, weight=None)``."""

    function = staticmethod(bce_with_logits_loss)
    check = staticmethod(_pixels.check_options)


def class_counts(target: Tensor, num_classes: int, *, ignore_index: int = -100) -> Tensor:
    """Pixels of each class: (num_classes,) int64 from an integer class map of any shape, without a synchronisation.

    Add them up over a training set and give them to :class:`InverseFrequencyBCELoss`.

    Raises:
        InputError: fewer than two classes.
        InputTypeError: not a tensor of integers or booleans.
    """
    checks.check_tensor("target", target)
    checks.check_dtype("target", target, DTYPES)
    target = calculable(target)
    checks.check_ignore_index(ignore_index)
    if num_classes < 2:
        raise InputError(
            f"num_classes is {num_classes}, expected at least 2; a mask has two: background and foreground"
        )
    return torch.stack(
        [
            (target == k).sum() if k != ignore_index else target.new_zeros((), dtype=torch.int64)
            for k in range(num_classes)
        ]
    )


def inverse_frequency_bce_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    frequencies: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy in which every class has the same say, however few its pixels.

    The loss of a pixel of class c is multiplied by ``w_c = 1 / (C f_c)``, where f_c is the share of the class among
    all pixels and C the number of classes that occur; their mean over the pixels that f was counted on is thus 1. A
    soft target t (K = 1) gets ``(1 - t) w_0 + t w_1``.

    Args:
        frequencies: (2,) for K = 1: [background, foreground]; (K,) otherwise: counts or shares, on any scale, on the
            device of the logits, above 0 for every class that can occur (a class of 0 has no weight). None: those of
            this batch, over counted pixels. :func:`class_counts` counts.
        logits, target, weight, ignore_index, reduction: as for :func:`bce_with_logits_loss`, to which ``weight`` comes
            on top.

    Returns, Raises:
        as :func:`bce_with_logits_loss`; InputError for frequencies of the wrong shape or device.

    Source: a PyTorch re-implementation of the U-Net for EM stacks, which took the frequencies over its training masks.
    """
    _pixels.check_options(ignore_index, reduction)
    case = prepare(logits, target, weight, ignore_index)
    if frequencies is None:
        frequencies = _frequencies(case)
    else:
        _pixels.check_class_vector("frequencies", frequencies, logits.shape[1], logits.device)
    frequencies = frequencies.to(case.wide)
    occurs = frequencies > 0
    weights = frequencies.sum() / (occurs.sum() * frequencies).masked_fill(~occurs, 1)
    weights = weights.masked_fill(~occurs, 0)
    return _pixels.reduce(case, _pixels.binary_cross_entropy(case) * _pixels.by_class(case, weights), reduction)


class InverseFrequencyBCELoss(Loss):
    """:func:`unet_fast.nn.losses.inverse_frequency_bce_loss` as a module: ``forward(logits, target, weight=None)``.

    ``frequencies``: numbers by class (a sequence or a tensor), which become a buffer that moves with the module; None
    takes those of each batch.
    """

    frequencies: Tensor | None

    def __init__(
        self, frequencies: Sequence[float] | Tensor | None = None, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        _pixels.check_options(ignore_index, reduction)
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        given = None if frequencies is None else _pixels.class_vector("frequencies", frequencies)
        self.register_buffer("frequencies", None if given is None else (given / given.sum()).float())

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the reduced loss."""
        return inverse_frequency_bce_loss(logits, target, weight, frequencies=self.frequencies, **self.options)


def _frequencies(case: Case) -> Tensor:
    """Counted pixels of each class, of background and foreground for one channel."""
    total = case.counted.sum()
    if case.binary:
        foreground = case.target.sum()  # 0 at ignored pixels
        return torch.stack([total - foreground, foreground])
    classes = range(case.logits.shape[1])
    return torch.stack([((case.target == k) & case.counted).sum() for k in classes])
