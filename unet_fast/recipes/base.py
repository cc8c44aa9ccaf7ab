"""What a recipe is: how a system of the literature was trained, as settings of a run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

# what describes a recipe but is not a setting of a run
_NOT_SETTINGS = frozenset(("name", "source", "said", "ours", "model", "options", "split", "epochs", "tiles_per_epoch"))


@dataclass(frozen=True)
class Recipe:
    """How one system of the literature was trained.

    Every field that is not text describes the run: the network and its options, then settings of
    :class:`unet_fast.train.TrainConfig` under the same names, with values that the recipes share as defaults.

    Attributes:
        name: what ``unet-fast train --recipe`` calls it.
        source: the system.
        said: what its description says about the training.
        ours: what the description leaves open and this recipe decides.
        model, options: the network, see :func:`unet_fast.models.create`.
        split: parts of the images for training, validation and test, in this order; they sum up to 1.
        epochs, tiles_per_epoch: the training time described, where it is: passes, and tiles a pass (None: the number of
            training images).
    """

    name: str = ""
    source: str = ""
    said: str = ""
    ours: str = ""
    model: str = "unet"
    options: dict[str, Any] = field(default_factory=dict)
    split: tuple[float, float, float] = (0.8, 0.2, 0.0)
    epochs: float | None = None
    tiles_per_epoch: int | None = None

    loss: str = "weighted_cross_entropy"
    loss_options: dict[str, Any] = field(default_factory=dict)
    head_weights: tuple[float, ...] | None = None
    w0: float = 0.0
    sigma: float = 5.0
    balance: bool = False

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    decay: float = 0.1
    decay_steps: int = 500
    warmup: float = 0.0
    batch_size: int = 1
    tile: int = 256
    average_decay: float = 0.0

    shift: bool = True
    rotation: float = 0.0
    quarter_turns: bool = False
    flips: bool = True
    affine: float = 0.0
    elastic_sigma: float = 0.0
    grey: bool = False
    border: str = "mirror"

    best_by: str = "score"
    threshold: float | None = 0.5
    tta: int = 1

    def settings(self) -> dict[str, Any]:
        """The fields of :class:`unet_fast.train.TrainConfig` that the recipe sets (all but network and budget)."""
        return {
            item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in _NOT_SETTINGS
        }

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
