"""Prediction: overlap-tile for one image or stack, and page by page for stacks that do not fit into memory."""

from __future__ import annotations

from unet_fast.predict.instances import foreground_instances
from unet_fast.predict.overlap_tile import OverlapTile
from unet_fast.predict.predictor import Predictor
from unet_fast.predict.stack import predict_stack

__all__ = ["OverlapTile", "Predictor", "foreground_instances", "predict_stack"]
