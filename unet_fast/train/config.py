"""What a training run does, as one readable record, and the devices that it can run on."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unet_fast._settings import Record, from_json, is_of, short
from unet_fast.augment import Augmentation
from unet_fast.checks import check_choice
from unet_fast.data.cores import NUM_CLASSES
from unet_fast.errors import InputError
from unet_fast.files import atomic_path
from unet_fast.ops import _convolution
from unet_fast.predict.predictor import SEPARATE
from unet_fast.train.losses import Loss
from unet_fast.train.settings import Budget, Checkpoints, Optimizer

TTA = (1, 7, 8)
_MOST_CHANNELS = 65536


@dataclass(frozen=True)
class TrainConfig(Record):
    """Everything that decides what a run computes; saved as ``config.json`` in the run folder.

    Attributes:
        model: arguments of :func:`unet_fast.models.create`: ``name``, ``in_channels``, ``num_classes``, options.
        budget: see :class:`unet_fast.train.settings.Budget`.
        batch_size, tile: tiles per step and side of one *output* tile in pixels; the network's input is larger by its
            margin when its convolutions are valid.
        processes: how many processes train together (see torchrun), each with ``batch_size`` tiles a step; together they
            train as one with ``processes * batch_size``.
        encoder_weights: a local file with weights of a ``unet-resnet`` encoder to start from.
        loss: see :class:`unet_fast.train.losses.Loss`.
        optimizer: see :class:`unet_fast.train.settings.Optimizer`.
        checkpoints: see :class:`unet_fast.train.settings.Checkpoints`.
        augmentation: see :class:`unet_fast.augment.Augmentation`.
        amp: bfloat16 autocast.
        tta: dihedral versions averaged by ``unet-fast predict`` unless it is told otherwise (1, 7 or 8).
        threshold: what the foreground probability must exceed where labels are wanted; None: the threshold of the best
            Dice coefficient on the validation images.
        separate: how the network keeps touching objects apart: ``ridge``, a ridge of background between them, as in the paper;
            ``cores``: its three classes are background, rim and core of an object, and predicted instances grow out of the cores
            (see :mod:`unet_fast.data.cores`).
        min_size: pixels that a predicted instance must have; None: found out in the training labels where ``separate`` is
            ``cores`` (three quarters of what all but 1 % of the objects have), else 20.
        data: what the run was trained on, in words and checksums.

    Example::

        config = default_config("cpu", steps=100, learning_rate=1e-3)  # flat names
        config.optimizer.learning_rate, config.augmentation.elastic_sigma
    """

    model: dict[str, Any]
    budget: Budget
    batch_size: int = 1
    processes: int = 1
    tile: int = 388
    encoder_weights: str | None = None
    loss: Loss = dataclasses.field(default_factory=Loss)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    checkpoints: Checkpoints = dataclasses.field(default_factory=Checkpoints)
    amp: bool = False
    device: str = "cpu"
    seed: int = 0
    tta: int = 8
    threshold: float | None = 0.5
    separate: str = "ridge"
    min_size: int | None = None
    data: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self) -> None:  # noqa: D102
        for name, kind in (("name", str), ("in_channels", int), ("num_classes", int)):
            value = self.model.get(name)
            if not is_of(value, kind) or (isinstance(value, int) and not 1 <= value <= _MOST_CHANNELS):
                expected = "a name" if kind is str else f"a number from 1 to {_MOST_CHANNELS}"
                raise InputError(f"{name} of the model is {short(value)}, expected {expected}")
        self.check_positive("batch_size", "processes", "tile", "min_size")
        check_choice("separate", self.separate, SEPARATE)
        if self.separate == "cores" and self.num_classes != NUM_CLASSES:
            raise InputError(
                f"separate is 'cores', which takes a network of {NUM_CLASSES} classes (background, rim, core), but num_classes is "
                f"{self.num_classes}"
            )
        if self.tta not in TTA:
            raise InputError(f"tta is {self.tta}, expected 1 (off), 7 or 8 (all flips and quarter turns)")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold}, expected a probability from 0 to 1, or None")

    @property
    def num_classes(self) -> int:
        """Output channels of the network."""
        return int(self.model["num_classes"])

    @property
    def padding(self) -> str:
        """What lies beyond the image, in training tiles and at prediction; see :class:`unet_fast.augment.Augmentation`."""
        return self.augmentation.padding

    def save(self, path: Path) -> None:
        """Write the record as JSON, every setting under its flat name, that of :func:`default_config`."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.flat(), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read what :meth:`save` wrote, or what a version did that wrote the records inside as records.

        Raises:
            InputError: the file is not such a record.
        """
        try:
            values = json.loads(path.read_text())
            if not isinstance(values, dict):
                raise InputError(f"it holds {short(values)}, expected a record")
            return from_json(cls, values, flat="budget" not in values)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ) as error:  # an InputError is a ValueError
            raise InputError(f"{path} is not the config.json of a training run ({error})") from error


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32 there: GPUs from Ampere on; CPUs with instructions for it, if a layer is
    measured to be faster so (see :func:`precision_reason`)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if not _has_bfloat16(device):
        return False
    times = _convolution.step_times()
    return times[torch.bfloat16] < times[torch.float32]


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a CPU has instructions for it, so that a measurement decides."""
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and has is not None and bool(has())


def precision_reason(device: torch.device) -> str:
    """What :func:`fast_bfloat16` measured, for a person; nothing where nothing was."""
    if not _has_bfloat16(device):
        return ""
    times = {dtype: 1e3 * seconds for dtype, seconds in _convolution.step_times().items()}
    return (
        f" (processor time of one layer, forward and backward, measured on this machine: float32 {times[torch.float32]:.1f} ms, "
        f"bfloat16 {times[torch.bfloat16]:.1f} ms)"
    )


def resolve_device(name: str) -> torch.device:
    """The device of ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``; ``InputError`` if absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise InputError(
                f"device is {name!r}, but torch finds {count} CUDA devices on this machine; use --device cpu"
            )
    elif device.type != "cpu":
        raise InputError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    return device
