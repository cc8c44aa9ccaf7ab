"""Multi-scale structural similarity of the probability map and the truth, as a loss."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_fast import checks
from unet_fast.errors import InputError, InputTypeError
from unet_fast.nn.losses import _regions
from unet_fast.nn.losses._inputs import Case, prepare
from unet_fast.nn.losses._module import FunctionLoss

WINDOW = 11
SIGMA = 1.5
_BELL = [math.exp(-((offset - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for offset in range(WINDOW)]
GAUSSIAN = [value / sum(_BELL) for value in _BELL]
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = 0.01**2, 0.03**2  # for values that span 1, as probabilities do

# Below this mean similarity a gentle line replaces the power, whose gradient has no bound at 0 and which negative
# numbers (a map of noise has some) do not have: the loss stays defined, and always pulls towards the truth.
FLOOR = 1e-3


def ms_ssim_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    scales: int = 5,
    include_background: bool = True,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``1 - cs_1^b_1 ... cs_(M-1)^b_(M-1) ssim_M^b_M``: dissimilar structure of probability p and target t at M
    scales.

    With means m, variances v and covariance v_pt under an 11 x 11 Gaussian window of 1.5 pixels' standard deviation
    that stays inside the image, ``cs = (2 v_pt + C2) / (v_p + v_t + C2)`` and
    ``ssim = cs (2 m_p m_t + C1) / (m_p^2 + m_t^2 + C1)``, each averaged over the image; C1 = 0.01^2, C2 = 0.03^2; from
    one scale to the next both maps are averaged over 2 x 2 pixels (an odd last row or column is dropped). The
    exponents are 0.0448, 0.2856, 0.3001, 0.2363, 0.1333; the SSIM of the last scale enters once. Where an average is
    below 1e-3 (or negative) its power goes on as a line with slope, so that the loss is defined and has a gradient.

    Args:
        logits: (N, K, H, W); float32, float64, float16 or bfloat16. K = 1: p is the sigmoid and t the foreground. K >=
            2: p is the softmax, with one value a class.
        target: K = 1: (N, H, W) or (N, 1, H, W), the foreground as integers or booleans 0 and 1, or as floating
            probabilities from 0 to 1. K >= 2: (N, H, W) integer class map.
        weight: shape of the target, floating: how much the window around a pixel counts in the averages; None counts
            as 1. A constant: it gets no gradient.
        scales: M, 1 to 5; with fewer than 5, the first M exponents divided by their sum. The smallest side of an image
            is 11 * 2^(M - 1): 176 pixels for 5 scales, 88 for 4, 44 for 3, 22 for 2, 11 for 1.
        include_background: whether class 0 counts for K >= 2.
        ignore_index: pixels with this target are 0 in both maps and their windows count for nothing.
        reduction: "mean" or "sum" over samples and classes; "none".

    Returns:
        The loss, a scalar, or (N, C) for "none" with C counted classes; float64 for float64 logits, else float32, in
        which the arithmetic is done, autocast or not. 0 where no window counts.

    Raises:
        InputError: an image that is too small (the message names the legal size), shapes or devices do not match, an
            option out of range, a weight that requires gradients, a target outside its range (looked for on the CPU
            only, and not under ``torch.compile``).
        InputTypeError: not tensors, or another dtype; a floating target for K >= 2.

    Source: Wang, Simoncelli, Bovik, Multiscale structural similarity (2003), as used by UNet 3+.
    """
    check_ms_ssim_options(scales, include_background, ignore_index, reduction)
    case = prepare(logits, target, weight, ignore_index)
    return _regions.reduce(1 - ms_ssim(case, scales, include_background), "sample", reduction)


def ms_ssim(case: Case, scales: int, include_background: bool) -> Tensor:
    """(N, C) similarities, 1 = equal."""
    _check_size(case.logits, scales)
    probability, true = _regions.probabilities(case, include_background)
    counted = case.counted.unsqueeze(1)
    p, t = probability * counted, true.to(case.wide) * counted
    weight = case.weight.unsqueeze(1)
    exponents = [value / sum(EXPONENTS[:scales]) for value in EXPONENTS[:scales]] if scales < 5 else EXPONENTS
    result = torch.ones(p.shape[:2], dtype=case.wide, device=p.device)
    for scale, exponent in enumerate(exponents):
        if scale > 0:
            p, t, weight = (F.avg_pool2d(value, 2) for value in (p, t, weight))
        similarity = _similarity(p, t, luminance=scale == scales - 1)
        result = result * _power(_average(similarity, weight), exponent)
    return result


def _similarity(p: Tensor, t: Tensor, *, luminance: bool) -> Tensor:
    """(N, C, h, w) contrast and structure, times luminance if asked for, at every place of the window."""
    mean_p, second_p, mixed = _Blur.apply(torch.cat([p, p.square(), p * t], 1)).chunk(3, 1)
    mean_t, second_t = _Blur.apply(torch.cat([t, t.square()], 1)).chunk(2, 1)  # apart: no backward pass
    product, squares = mean_p * mean_t, mean_p.square() + mean_t.square()
    similarity = (2 * (mixed - product) + C2) / (second_p + second_t - squares + C2)
    if luminance:
        similarity = similarity * (2 * product + C1) / (squares + C1)
    return similarity


def _power(x: Tensor, exponent: float) -> Tensor:
    """``x ** exponent``, and below FLOOR ``FLOOR ** exponent * (1 + exponent * (x - FLOOR))``, positive for x >= -1."""
    above = x.clamp_min(FLOOR)
    return above**exponent * (1 + exponent * (x - above))


def _average(similarity: Tensor, weight: Tensor) -> Tensor:
    """(N, C) mean over the windows, each with the weight of its central pixel; 1 where all weigh nothing."""
    edge = WINDOW // 2
    inner = weight[:, :, edge : weight.shape[2] - edge, edge : weight.shape[3] - edge]
    return _regions.ratio((similarity * inner).sum((2, 3)), inner.sum((2, 3)).expand(similarity.shape[:2]))


class _Blur(torch.autograd.Function):
    """(N, C, H, W) -> (N, C, H - 10, W - 10): the Gaussian window, one dimension after the other.

    Sums of shifted views rather than a convolution or a matrix product: these may run in TF32 on a GPU, and a variance,
    the difference of two means, would then be wrong by as much as C2. Nothing is kept for the backward pass.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        for dim in (2, 3):
            size = x.shape[dim] - WINDOW + 1
            result = x.narrow(dim, 0, size) * GAUSSIAN[0]
            for offset in range(1, WINDOW):
                result.add_(x.narrow(dim, offset, size), alpha=GAUSSIAN[offset])
            x = result
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        for dim in (3, 2):
            shape = list(grad.shape)
            shape[dim] += WINDOW - 1
            result = grad.new_zeros(shape)
            for offset in range(WINDOW):
                result.narrow(dim, offset, grad.shape[dim]).add_(grad, alpha=GAUSSIAN[offset])
            grad = result
        return grad


def _check_size(logits: Tensor, scales: int) -> None:
    checks.check_rank("logits", logits, (4,), "(N, K, H, W)")
    height, width = logits.shape[2:]
    smallest = WINDOW * 2 ** (scales - 1)
    if height >= smallest and width >= smallest:
        return
    fitting = [count for count in range(1, scales) if min(height, width) >= WINDOW * 2 ** (count - 1)]
    advice = f"or use scales={fitting[-1]}" if fitting else f"the least, with scales=1, is {WINDOW} x {WINDOW}"
    raise InputError(
        f"logits are {height} x {width} pixels, too small for MS-SSIM with scales={scales}: "
        f"expected at least {smallest} x {smallest}; use larger tiles, {advice}"
    )


def check_ms_ssim_options(scales: int, include_background: bool, ignore_index: int, reduction: str = "mean") -> None:
    """Raise for an option outside its range."""
    if isinstance(scales, bool) or not isinstance(scales, int):
        raise InputTypeError(f"scales is {scales!r}, expected an integer from 1 to {len(EXPONENTS)}")
    if not 1 <= scales <= len(EXPONENTS):
        raise InputError(f"scales is {scales}, expected 1 to {len(EXPONENTS)}")
    if not isinstance(include_background, bool):
        raise InputTypeError(f"include_background is {include_background!r}, expected True or False")
    checks.check_ignore_index(ignore_index)
    checks.check_choice("reduction", reduction, _regions.REDUCTIONS)


class MSSSIMLoss(FunctionLoss):
    """:func:`unet_fast.nn.losses.ms_ssim_loss` as a module, with its keywords: ``forward(logits, target, weight=None)``."""

    function = staticmethod(ms_ssim_loss)
    check = staticmethod(check_ms_ssim_options)
