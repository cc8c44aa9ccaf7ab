"""The U-Net with a pretrained encoder."""

from __future__ import annotations

from dataclasses import dataclass

from unet_fast.recipes.base import Recipe


@dataclass(frozen=True)
class Pretrained(Recipe):
    """A U-Net on a ResNet encoder that starts from ImageNet weights (``--weights``, a local file)."""

    name: str = "pretrained-encoder"
    source: str = "U-Net with a pretrained ResNet encoder"
    said: str = (
        "ResNet encoder with ImageNet weights (--weights FILE); flips and rotations only; alpha * focal - log(dice)"
    )
    ours: str = "ResNet-34; alpha 10, focal gamma 2; Adam 1e-4, constant; batch 4, 256x256 windows; turns by any angle"
    model: str = "unet-resnet34"
    loss: str = "focal_log_dice"
    learning_rate: float = 1e-4
    batch_size: int = 4
    rotation: float = 180.0
