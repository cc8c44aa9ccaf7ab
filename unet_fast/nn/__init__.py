"""Layers and losses that drop into an existing network."""

from __future__ import annotations

from unet_fast.nn.conv_relu import ConvReLU
from unet_fast.nn.crop_concat import CropConcat
from unet_fast.nn.distance_weight_map import DistanceWeightMap
from unet_fast.nn.elastic_warp import ElasticWarp
from unet_fast.nn.losses import (
    BCEDiceLoss,
    BCEWithLogitsLoss,
    DeepSupervision,
    DiceCELoss,
    DiceLoss,
    FocalDiceLoss,
    FocalLogDiceLoss,
    FocalLoss,
    FocalMSSSIMIoULoss,
    InverseFrequencyBCELoss,
    IoULoss,
    MSSSIMLoss,
)
from unet_fast.nn.norm_activation import BatchNormActivation, GroupNormActivation, InstanceNormActivation
from unet_fast.nn.up_conv_crop_concat import UpConvCropConcat
from unet_fast.nn.upsample_concat import UpsampleConcat
from unet_fast.nn.weighted_cross_entropy import WeightedCrossEntropyLoss
from unet_fast.ops import _flops as _flops

__all__ = [
    "BCEDiceLoss",
    "BCEWithLogitsLoss",
    "BatchNormActivation",
    "ConvReLU",
    "CropConcat",
    "DeepSupervision",
    "DiceCELoss",
    "DiceLoss",
    "DistanceWeightMap",
    "ElasticWarp",
    "FocalDiceLoss",
    "FocalLogDiceLoss",
    "FocalLoss",
    "FocalMSSSIMIoULoss",
    "GroupNormActivation",
    "InstanceNormActivation",
    "InverseFrequencyBCELoss",
    "IoULoss",
    "MSSSIMLoss",
    "UpConvCropConcat",
    "UpsampleConcat",
    "WeightedCrossEntropyLoss",
]
