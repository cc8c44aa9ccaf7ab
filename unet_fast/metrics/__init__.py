"""Scores for segmentations: NumPy arrays or torch tensors in, one file a metric.

The function that has a metric's name returns a plain ``float``. Where there is more to know, a second function returns
a small frozen dataclass (:func:`pixel_scan`, :func:`rand_scan`: threshold, curve, slices; :func:`v_rand_scores`,
:func:`v_info_scores`, :func:`variation_of_information_scores`: split and merge; :func:`adapted_rand_scores`: precision,
recall; :func:`detections`: several IoUs, slices) or an array (:func:`dice_per_class`, :func:`iou_per_class`,
:func:`seg_per_object`, :func:`warping_error_per_slice`). For errors lower is better, for scores higher is better.
"""

from __future__ import annotations

from unet_fast.metrics._foreground import VScores, thin_borders
from unet_fast.metrics.adapted_rand_error import AdaptedRand, adapted_rand_error, adapted_rand_scores
from unet_fast.metrics.average_precision import Detections, average_precision, detections
from unet_fast.metrics.best_threshold import BestThreshold, best_threshold
from unet_fast.metrics.dice import dice, dice_per_class
from unet_fast.metrics.iou import iou, iou_per_class
from unet_fast.metrics.pixel_error import PixelScan, pixel_error, pixel_scan, squared_difference
from unet_fast.metrics.rand_error import RandScan, rand_error, rand_scan
from unet_fast.metrics.seg import seg, seg_per_object
from unet_fast.metrics.v_info import v_info, v_info_scores
from unet_fast.metrics.v_rand import v_rand, v_rand_scores
from unet_fast.metrics.variation_of_information import (
    Variation,
    variation_of_information,
    variation_of_information_scores,
)
from unet_fast.metrics.warping_error import warping_error, warping_error_per_slice

__all__ = [
    "AdaptedRand",
    "BestThreshold",
    "Detections",
    "PixelScan",
    "RandScan",
    "VScores",
    "Variation",
    "adapted_rand_error",
    "adapted_rand_scores",
    "average_precision",
    "best_threshold",
    "detections",
    "dice",
    "dice_per_class",
    "iou",
    "iou_per_class",
    "pixel_error",
    "pixel_scan",
    "rand_error",
    "rand_scan",
    "seg",
    "seg_per_object",
    "squared_difference",
    "thin_borders",
    "v_info",
    "v_info_scores",
    "v_rand",
    "v_rand_scores",
    "variation_of_information",
    "variation_of_information_scores",
    "warping_error",
    "warping_error_per_slice",
]
