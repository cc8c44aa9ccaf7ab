"""The re-implementation for electron microscopy."""

from __future__ import annotations

from dataclasses import dataclass

from unet_fast.recipes.base import Recipe


@dataclass(frozen=True)
class ElectronMicroscopy(Recipe):
    """A PyTorch re-implementation for the ISBI 2012 stack; 512 -> 700 by mirroring -> 512."""

    name: str = "em"
    source: str = "EM re-implementation (PyTorch)"
    said: str = (
        "20 / 5 / 5 slices; 8 versions of each image, affine from three displaced points, elastic of 10 px, 3,360 pairs; "
        "BCE with inverse class frequencies; Adam (0.99, 0.999), 3e-4 times 0.99 every 500 updates, batch 3, 24 epochs, "
        "best by validation loss; threshold 0.5"
    )
    ours: str = "three points moved by up to 20 px; pairs are drawn afresh instead of stored; frequencies of the labels"
    model: str = "unet-em"
    split: tuple[float, float, float] = (2 / 3, 1 / 6, 1 / 6)
    epochs: float | None = 24
    tiles_per_epoch: int | None = 3360
    loss: str = "inverse_frequency_bce"
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.99, 0.999)
    schedule: str = "exponential"
    decay: float = 0.99
    decay_steps: int = 500
    batch_size: int = 3
    tile: int = 512
    shift: bool = False
    quarter_turns: bool = True
    affine: float = 20.0
    elastic_sigma: float = 10.0
    best_by: str = "loss"
