"""The dental X-ray U-Net."""

from __future__ import annotations

from dataclasses import dataclass

from unet_fast.recipes.base import Recipe


@dataclass(frozen=True)
class Dental(Recipe):
    """The U-Net for seven classes of bitewing radiographs; its text was not available."""

    name: str = "dental"
    source: str = "U-Net for dental X-ray images"
    said: str = (
        "7 classes, 4x4 up-convolutions, zeros instead of the mirror beyond the image, auxiliary softmax losses on the "
        "low-resolution levels of the expanding path"
    )
    ours: str = "all but that: SGD with momentum 0.99 at 1e-4 and the augmentation of the paper, heads weighted alike"
    model: str = "unet-dental"
    optimizer: str = "sgd"
    learning_rate: float = 1e-4
    momentum: float = 0.99
    tile: int = 384
    rotation: float = 180.0
    elastic_sigma: float = 10.0
    grey: bool = True
    border: str = "zeros"
