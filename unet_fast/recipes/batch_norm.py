"""The U-Net from scratch with batch normalisation."""

from __future__ import annotations

from dataclasses import dataclass

from unet_fast.recipes.base import Recipe


@dataclass(frozen=True)
class BatchNorm(Recipe):
    """A PyTorch U-Net from scratch with batch normalisation, for HeLa, U373 and DRIVE."""

    name: str = "batch-norm"
    source: str = "U-Net from scratch with batch normalisation (PyTorch)"
    said: str = (
        "256x256 inputs, Adam 1e-3 times 0.75 at half and three quarters of the training; of several losses equal parts "
        "of Dice and focal (gamma 0.9); sigmoid output"
    )
    ours: str = "batch 4; random 256x256 windows with flips; a fifth of the images for validation"
    model: str = "unet-bn"
    loss: str = "focal_dice"
    schedule: str = "step"
    decay: float = 0.75
    batch_size: int = 4
