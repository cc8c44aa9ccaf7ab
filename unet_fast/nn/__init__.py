"""Layers and losses that drop into an existing network."""

from __future__ import annotations

from unet_fast.nn.crop_concat import CropConcat

__all__ = ["CropConcat"]
