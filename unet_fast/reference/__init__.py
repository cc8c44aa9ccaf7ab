"""Slow, obvious truth for every op, in plain PyTorch and NumPy. Tests and benchmarks compare with it."""

from __future__ import annotations

from unet_fast.reference.crop_concat import crop_concat
from unet_fast.reference.distance_transform import distance_transform
from unet_fast.reference.elastic_warp import elastic_warp
from unet_fast.reference.nearest_two import nearest_two
from unet_fast.reference.weight_map import weight_map
from unet_fast.reference.weighted_cross_entropy import weighted_cross_entropy

__all__ = [
    "crop_concat",
    "distance_transform",
    "elastic_warp",
    "nearest_two",
    "weight_map",
    "weighted_cross_entropy",
]
