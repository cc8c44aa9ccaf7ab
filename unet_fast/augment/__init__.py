"""Random training tiles on the device of the images: one fused warp, then a grey-value curve."""

from __future__ import annotations

from unet_fast.augment.augmenter import Augmenter
from unet_fast.augment.settings import Augmentation

__all__ = ["Augmentation", "Augmenter"]
