"""The U-Net of 2015."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unet_fast.recipes.base import Recipe


@dataclass(frozen=True)
class Paper(Recipe):
    """Ronneberger, Fischer and Brox, "U-Net" (MICCAI 2015)."""

    name: str = "paper-2015"
    source: str = "U-Net, Ronneberger, Fischer and Brox, 2015"
    said: str = (
        "SGD with momentum 0.99, one large tile a step; cross-entropy weighted by class frequencies and the border term "
        "(w0 = 10, sigma about 5 px); shift, rotation, grey values, elastic deformation of 10 px on a 3x3 grid; dropout; "
        "seven rotated inputs averaged for EM"
    )
    ours: str = "learning rate 1e-4, constant; dropout 0.5; flips; a fifth of the images for validation"
    options: dict[str, Any] = field(
        default_factory=lambda: {"base_channels": 64, "depth": 4, "padding": "valid", "norm": None, "dropout": 0.5}
    )
    w0: float = 10.0
    balance: bool = True
    optimizer: str = "sgd"
    learning_rate: float = 1e-4
    momentum: float = 0.99
    tile: int = 388
    rotation: float = 180.0
    elastic_sigma: float = 10.0
    grey: bool = True
    tta: int = 7
