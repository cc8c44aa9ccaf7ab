"""Losses as functions; the modules beside them are also in :mod:`unet_fast.nn`.

All take ``(logits, target, weight=None)`` with one channel (sigmoid) or several (softmax), weights per pixel and an
``ignore_index``. They compute in float32 (float64 for float64 logits), never synchronise with a GPU, and their shapes
never depend on values. The cross-entropy of the U-Net itself is :func:`unet_fast.ops.weighted_cross_entropy`.
"""

from __future__ import annotations

from unet_fast.nn.losses.combined import (
    BCEDiceLoss,
    FocalDiceLoss,
    FocalLogDiceLoss,
    FocalMSSSIMIoULoss,
    bce_dice_loss,
    focal_dice_loss,
    focal_log_dice_loss,
    focal_ms_ssim_iou_loss,
)
from unet_fast.nn.losses.cross_entropy import (
    BCEWithLogitsLoss,
    InverseFrequencyBCELoss,
    bce_with_logits_loss,
    class_counts,
    inverse_frequency_bce_loss,
)
from unet_fast.nn.losses.deep_supervision import DeepSupervision, deep_supervision_loss
from unet_fast.nn.losses.dice import DiceLoss, dice_loss
from unet_fast.nn.losses.dice_cross_entropy import DiceCELoss
from unet_fast.nn.losses.focal import FocalLoss, focal_loss
from unet_fast.nn.losses.iou import IoULoss, iou_loss
from unet_fast.nn.losses.ms_ssim import MSSSIMLoss, ms_ssim_loss
from unet_fast.ops import weighted_cross_entropy

__all__ = [
    "BCEDiceLoss",
    "BCEWithLogitsLoss",
    "DeepSupervision",
    "DiceCELoss",
    "DiceLoss",
    "FocalDiceLoss",
    "FocalLogDiceLoss",
    "FocalLoss",
    "FocalMSSSIMIoULoss",
    "InverseFrequencyBCELoss",
    "IoULoss",
    "MSSSIMLoss",
    "bce_dice_loss",
    "bce_with_logits_loss",
    "class_counts",
    "deep_supervision_loss",
    "dice_loss",
    "focal_dice_loss",
    "focal_log_dice_loss",
    "focal_loss",
    "focal_ms_ssim_iou_loss",
    "inverse_frequency_bce_loss",
    "iou_loss",
    "ms_ssim_loss",
    "weighted_cross_entropy",
]
