"""The re-implementation in Keras."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unet_fast.recipes.base import Recipe


@dataclass(frozen=True)
class Keras(Recipe):
    """A Keras re-implementation of the U-Net for the ISBI 2012 stack."""

    name: str = "keras"
    source: str = "U-Net re-implementation (Keras)"
    said: str = "Adam 1e-4; shift, rotation, flip; the binarisation threshold is chosen by a scan"
    ours: str = "zero-padded convolutions and dropout 0.5; cross-entropy; batch 2, 256x256 tiles; the scan is on Dice"
    options: dict[str, Any] = field(
        default_factory=lambda: {"base_channels": 64, "depth": 4, "padding": "same", "norm": None, "dropout": 0.5}
    )
    learning_rate: float = 1e-4
    batch_size: int = 2
    rotation: float = 180.0
    threshold: float | None = None
