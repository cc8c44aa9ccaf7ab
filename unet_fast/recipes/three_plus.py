"""UNet 3+."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unet_fast.recipes.base import Recipe


@dataclass(frozen=True)
class ThreePlus(Recipe):
    """UNet 3+ with deep supervision and the classification-guided module."""

    name: str = "unet3+"
    source: str = "UNet 3+ (full-scale skips)"
    said: str = "focal + MS-SSIM + IoU on the heads of all five decoder scales; Adam 1e-3, 18 epochs"
    ours: str = (
        "the losses of the paper (a Keras re-implementation took BCE with logits: --loss bce), its rate and epochs; "
        "batch 2, 256x256 tiles, shift, rotation, flip; the classification is trained by cross-entropy"
    )
    model: str = "unet3+"
    options: dict[str, Any] = field(default_factory=lambda: {"deep_supervision": True, "classification": True})
    epochs: float | None = 18
    loss: str = "focal_ms_ssim_iou"
    batch_size: int = 2
    rotation: float = 180.0
    threshold: float | None = None
