"""UNet++."""

from __future__ import annotations

from dataclasses import dataclass

from unet_fast.recipes.base import Recipe


@dataclass(frozen=True)
class PlusPlus(Recipe):
    """UNet++ with deep supervision."""

    name: str = "unet++"
    source: str = "UNet++ (nested U-Net with deep supervision)"
    said: str = "one loss a head on X(0, 1..4), each 0.5 * BCE - soft Dice; the heads are averaged at prediction"
    ours: str = "Adam 1e-4 and shift, rotation, flip as in the Keras re-implementation; batch 2, 256x256 tiles"
    model: str = "unet++"
    loss: str = "bce_dice"
    learning_rate: float = 1e-4
    batch_size: int = 2
    rotation: float = 180.0
    threshold: float | None = None
