"""What a recipe is: how a system of the literature was trained, in the records of a run's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from unet_fast.augment import Augmentation
from unet_fast.train.losses import Loss
from unet_fast.train.settings import Optimizer


def plain_augmentation(**changes: Any) -> Augmentation:
    """Shift and flips alone, but for the changes."""
    return Augmentation(**{"rotation": 0.0, "elastic_sigma": 0.0, "grey": False, **changes})


def constant_rate(learning_rate: float, **changes: Any) -> Optimizer:
    """Adam at a constant rate, without an average of the weights, but for the changes."""
    plain = {"momentum": 0.0, "schedule": "constant", "warmup": 0.0, "average_decay": 0.0}
    return Optimizer(learning_rate=learning_rate, **{**plain, **changes})


def plain_loss(name: str = "weighted_cross_entropy", **changes: Any) -> Loss:
    """A loss in which all pixels count alike, but for the changes."""
    return Loss(name, **{"w0": 0.0, "balance": False, **changes})


@dataclass(frozen=True)
class Recipe:
    """How one system of the literature was trained.

    Attributes:
        name: what ``unet-fast train --recipe`` calls it.
        source: the system.
        said: what its description says about the training.
        ours: what the description leaves open and this recipe decides.
        model, options: the network, see :func:`unet_fast.models.create`.
        split: parts of the images for training, validation and test, in this order; they sum up to 1.
        epochs, tiles_per_epoch: the training time described, where it is: passes, and tiles a pass (None: the number of
            training images).
        loss, optimizer, augmentation, best_by, batch_size, tile, tta, threshold: as in
            :class:`unet_fast.train.TrainConfig`.
    """

    name: str
    source: str
    said: str
    ours: str
    model: str = "unet"
    options: dict[str, Any] = field(default_factory=dict)
    split: tuple[float, float, float] = (0.8, 0.2, 0.0)
    epochs: float | None = None
    tiles_per_epoch: int | None = None
    loss: Loss = plain_loss()
    optimizer: Optimizer = constant_rate(1e-3)
    augmentation: Augmentation = plain_augmentation()
    best_by: str = "score"
    batch_size: int = 1
    tile: int = 256
    tta: int = 1
    threshold: float | None = 0.5

    def settings(self) -> dict[str, Any]:
        """What the recipe sets in a :class:`unet_fast.train.TrainConfig`, under flat names: all but network and budget."""
        alone = {name: getattr(self, name) for name in ("best_by", "batch_size", "tile", "tta", "threshold")}
        return {**self.loss.flat(), **self.optimizer.flat(), **self.augmentation.flat(), **alone}

    def split_slices(self, count: int) -> tuple[list[int], list[int]]:
        """(validation, test): indices of ``count`` images, taken from the end, test last.

        Each part that is not 0 gets at least one image, as long as one is left for training.
        """
        test = min(_share(self.split[2], count), max(0, count - 1))
        validation = min(_share(self.split[1], count), max(0, count - test - 1))
        end = count - test
        return list(range(end - validation, end)), list(range(end, count))


def _share(part: float, count: int) -> int:
    return 0 if part == 0 else max(1, math.floor(part * count + 0.5))
