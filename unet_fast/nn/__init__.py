"""Layers and losses that drop into an existing network."""

from __future__ import annotations

from unet_fast.nn.crop_concat import CropConcat
from unet_fast.nn.distance_weight_map import DistanceWeightMap
from unet_fast.nn.weighted_cross_entropy import WeightedCrossEntropyLoss

__all__ = [
    "CropConcat",
    "DistanceWeightMap",
    "WeightedCrossEntropyLoss",
]
