"""Sums of losses, as the variants of the U-Net use them. The parts share the checks and the masking."""

from __future__ import annotations

from torch import Tensor

from unet_fast import ops
from unet_fast.nn.losses import _pixels, _regions
from unet_fast.nn.losses._inputs import Case, check_number, prepare
from unet_fast.nn.losses._module import FunctionLoss
from unet_fast.nn.losses.dice import soft_dice
from unet_fast.nn.losses.focal import check_focal_options, focal_pixels
from unet_fast.nn.losses.iou import soft_iou
from unet_fast.nn.losses.ms_ssim import check_ms_ssim_options, ms_ssim


def focal_dice_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    gamma: float = 0.9,
    smooth: float = 1.0,
    over: str = "sample",
    include_background: bool = True,
    ignore_index: int = -100,
) -> Tensor:
    """Equal parts of focal and Dice loss: ``focal_loss(gamma) + dice_loss``, each a mean; a scalar.

    Arguments, dtypes and errors: as :func:`~unet_fast.nn.losses.focal_loss` and :func:`~unet_fast.nn.losses.dice_loss`; the weights per pixel go to both.

    Source: a batch-norm U-Net written from scratch, one of several losses tried there, with gamma 0.9.
    """
    _check_focal_dice(gamma, smooth, over, include_background, ignore_index)
    case = prepare(logits, target, weight, ignore_index)
    dice = soft_dice(case, smooth, over, include_background)
    return _focal_mean(case, gamma) + _regions.reduce(1 - dice, over, "mean")


def focal_log_dice_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    alpha: float = 10.0,
    gamma: float = 2.0,
    smooth: float = 1.0,
    over: str = "sample",
    include_background: bool = True,
    ignore_index: int = -100,
) -> Tensor:
    """``alpha * focal - log(dice)``: a scalar, 0 for a perfect prediction.

    Args:
        alpha: how much the focal loss counts, at least 0. The source gives no number; with 10 both parts are of
            similar size.
        smooth: above 0, so that the logarithm is finite where nothing is right.
        the others: as for :func:`~unet_fast.nn.losses.focal_loss` and :func:`~unet_fast.nn.losses.dice_loss`; the weights per pixel go to both. The logarithm is
            taken of every Dice coefficient (of each sample or the batch, and of each class), then averaged.

    Raises:
        InputError, InputTypeError: as those two.

    Source: a U-Net with a pretrained ResNet encoder.
    """
    _check_focal_log_dice(alpha, gamma, smooth, over, include_background, ignore_index)
    case = prepare(logits, target, weight, ignore_index)
    dice = soft_dice(case, smooth, over, include_background)
    return alpha * _focal_mean(case, gamma) - _regions.reduce(dice.log(), over, "mean")


def bce_dice_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: float = 1.0,
    over: str = "sample",
    include_background: bool = True,
    ignore_index: int = -100,
) -> Tensor:
    """``0.5 * BCE - soft Dice``, the loss of each head of UNet++: a scalar, -1 for a perfect prediction.

    For K >= 2 the cross-entropy is that of the softmax (:func:`unet_fast.ops.weighted_cross_entropy`), the same
    probabilities that the Dice coefficient takes. Arguments, dtypes and errors: as :func:`~unet_fast.nn.losses.bce_with_logits_loss` and
    :func:`~unet_fast.nn.losses.dice_loss`; the weights per pixel go to both.

    Source: Zhou et al., UNet++ (2018, 2020).
    """
    _regions.check_options(smooth, over, include_background, ignore_index)
    case = prepare(logits, target, weight, ignore_index)
    if case.binary:
        cross_entropy = _pixels.reduce(case, _pixels.binary_cross_entropy(case), "mean")
    else:
        cross_entropy = ops.weighted_cross_entropy(logits, target, weight, ignore_index=ignore_index)
    return 0.5 * cross_entropy - _regions.reduce(soft_dice(case, smooth, over, include_background), over, "mean")


def focal_ms_ssim_iou_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    scales: int = 5,
    smooth: float = 1.0,
    over: str = "sample",
    include_background: bool = True,
    ignore_index: int = -100,
) -> Tensor:
    """``focal + MS-SSIM + IoU``, the loss of each head of UNet 3+ (for pixels, patches and the whole map): a scalar.

    Arguments, dtypes and errors: as :func:`~unet_fast.nn.losses.focal_loss`, :func:`~unet_fast.nn.losses.ms_ssim_loss` (logits of four dimensions and a least
    size that ``scales`` sets) and :func:`~unet_fast.nn.losses.iou_loss`; the weights per pixel go to all three.

    Source: Huang et al., UNet 3+ (2020).
    """
    _check_focal_ms_ssim_iou(gamma, scales, smooth, over, include_background, ignore_index)
    case = prepare(logits, target, weight, ignore_index)
    structure = ms_ssim(case, scales, include_background)
    iou = soft_iou(case, smooth, over, include_background)
    return (
        _focal_mean(case, gamma)
        + _regions.reduce(1 - structure, "sample", "mean")
        + _regions.reduce(1 - iou, over, "mean")
    )


def _check_focal_dice(gamma: float, smooth: float, over: str, include_background: bool, ignore_index: int) -> None:
    check_focal_options(gamma, None)
    _regions.check_options(smooth, over, include_background, ignore_index)


def _check_focal_log_dice(
    alpha: float, gamma: float, smooth: float, over: str, include_background: bool, ignore_index: int
) -> None:
    check_number("alpha", alpha, 0.0)
    check_number("smooth", smooth, 0.0, above=True)
    _check_focal_dice(gamma, smooth, over, include_background, ignore_index)


def _check_focal_ms_ssim_iou(
    gamma: float, scales: int, smooth: float, over: str, include_background: bool, ignore_index: int
) -> None:
    check_ms_ssim_options(scales, include_background, ignore_index)
    _check_focal_dice(gamma, smooth, over, include_background, ignore_index)


def _focal_mean(case: Case, gamma: float) -> Tensor:
    return _pixels.reduce(case, focal_pixels(case, gamma, None), "mean")


class FocalDiceLoss(FunctionLoss):
    """:func:`unet_fast.nn.losses.focal_dice_loss` as a module, with its keywords: ``forward(logits, target, weight=None)``."""

    function = staticmethod(focal_dice_loss)
    check = staticmethod(_check_focal_dice)


class FocalLogDiceLoss(FunctionLoss):
    """:func:`unet_fast.nn.losses.focal_log_dice_loss` as a module, with its keywords: ``forward(logits, target, weight=None)``."""

    function = staticmethod(focal_log_dice_loss)
    check = staticmethod(_check_focal_log_dice)


class BCEDiceLoss(FunctionLoss):
    """:func:`unet_fast.nn.losses.bce_dice_loss` as a module, with its keywords: ``forward(logits, target, weight=None)``."""

    function = staticmethod(bce_dice_loss)
    check = staticmethod(_regions.check_options)


class FocalMSSSIMIoULoss(FunctionLoss):
    """:func:`unet_fast.nn.losses.focal_ms_ssim_iou_loss` as a module, with its keywords: ``forward(logits, target, weight=None)``."""

    function = staticmethod(focal_ms_ssim_iou_loss)
    check = staticmethod(_check_focal_ms_ssim_iou)
