"""What a training run does, as one readable record, and the defaults that suit a device and a budget."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unet_fast import checks
from unet_fast.errors import InputError
from unet_fast.files import atomic_path

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("polynomial", "step", "constant")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes; saved as ``config.json`` in the run folder.

    Attributes:
        model: arguments of :func:`unet_fast.models.create`: ``name``, ``in_channels``, ``num_classes``, options.
        minutes, steps: the budget; exactly one is set. With ``minutes`` the schedule follows the clock.
        batch_size, tile: tiles per step and side of one *output* tile in pixels; the network's input is larger by its
            margin when its convolutions are valid.
        optimizer, learning_rate, momentum, weight_decay: ``adam`` (decoupled weight decay) or ``sgd``.
        schedule: ``polynomial`` (1 - t)^0.9, ``step`` (times 0.1 at half and at three quarters) or ``constant``,
            after a linear warm-up over ``warmup`` of the budget.
        w0, sigma: border term of the weight map, see :func:`unet_fast.ops.weight_map`. The paper's w0 = 10 comes on top
            of weights that balance the classes; where nearly all background lies between two cells, as membranes do,
            both lift the same pixels, and w0 = 4 gives the lower pixel error.
        balance: weight classes by their inverse frequency in the training labels.
        shift, rotation, flips, elastic_sigma, elastic_grid, field, grey: augmentation, see
            :class:`unet_fast.augment.Augmenter`.
        average_decay: decay of the running average of the weights that is validated and saved; 0 turns it off.
        amp: bfloat16 autocast.
        tta: dihedral versions averaged by ``unet-fast predict`` unless it is told otherwise (1 or 8).
        validations: how often a run validates, evenly spread over its budget.
        checkpoint_seconds, checkpoint_steps: a checkpoint at least this often, whichever comes first.
    """

    model: dict[str, Any]
    minutes: float | None = None
    steps: int | None = None
    batch_size: int = 1
    tile: int = 388
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.99
    weight_decay: float = 0.0
    schedule: str = "polynomial"
    warmup: float = 0.02
    w0: float = 4.0
    sigma: float = 5.0
    balance: bool = True
    shift: bool = True
    rotation: float = 180.0
    flips: bool = True
    elastic_sigma: float = 10.0
    elastic_grid: tuple[int, int] = (3, 3)
    field: str = "bicubic"
    grey: bool = True
    average_decay: float = 0.998
    amp: bool = False
    device: str = "cpu"
    seed: int = 0
    tta: int = 8
    validations: int = 8
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int = 500
    data: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise InputError(f"minutes is {self.minutes} and steps is {self.steps}; set exactly one of them")
        for name in (
            "minutes",
            "steps",
            "batch_size",
            "tile",
            "learning_rate",
            "checkpoint_seconds",
            "checkpoint_steps",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}, expected a number above 0")
        for name in ("weight_decay", "w0", "elastic_sigma", "rotation", "validations"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected a number of at least 0")
        if not self.sigma > 0:
            raise InputError(f"sigma is {self.sigma}, expected a number of pixels above 0")
        for name, top in (("momentum", 1.0), ("average_decay", 1.0), ("warmup", 1.0)):
            if not 0 <= getattr(self, name) < top:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 0 and below {top}")
        if self.tta not in (1, 8):
            raise InputError(f"tta is {self.tta}, expected 1 (off) or 8 (all flips and quarter turns)")
        checks.check_choice("optimizer", self.optimizer, OPTIMIZERS)
        checks.check_choice("schedule", self.schedule, SCHEDULES)

    @property
    def num_classes(self) -> int:
        """Output channels of the network."""
        return int(self.model["num_classes"])

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read what :meth:`save` wrote. Raises ``InputError`` when the file is no such record."""
        try:
            values = json.loads(path.read_text())
            known = {item.name for item in dataclasses.fields(cls)}
            unknown = sorted(set(values) - known)
            if unknown:
                raise InputError(
                    f"{path} has unknown settings {', '.join(unknown)}: was it written by a newer version?"
                )
            values["elastic_grid"] = tuple(values["elastic_grid"])
            return cls(**values)
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is not the config.json of a training run ({error})") from error


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32 there: GPUs from Ampere on, CPUs with instructions for it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        has = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return bool(has is not None and has())
    return False


def default_config(
    device: str,
    *,
    in_channels: int = 1,
    num_classes: int = 2,
    minutes: float | None = None,
    steps: int | None = None,
    base_channels: int | None = None,
    depth: int | None = None,
    padding: str | None = None,
    norm: str | None = None,
    dropout: float | None = None,
    **overrides: Any,
) -> TrainConfig:
    """The record that suits ``device`` and the budget; every keyword that is not None overrides its default.

    A GPU gets the paper's network (64 base channels, depth 4, valid convolutions, 572 -> 388 tiles). A CPU gets half its
    width, one level less, and same padding: a valid network of depth 4 computes (380 / 196)^2 = 3.8 times the pixels
    that it is scored on, which same padding spends on more steps. The context that same padding lacks at the rim of a
    tile is there again at prediction, whose tiles overlap by the receptive field.
    """
    target = resolve_device(device)
    gpu = target.type == "cuda"
    if minutes is None and steps is None:
        minutes = 30.0 if gpu else 10.0
    model: dict[str, Any] = {
        "name": "unet",
        "in_channels": in_channels,
        "num_classes": num_classes,
        "base_channels": base_channels or (64 if gpu else 32),
        "depth": depth or (4 if gpu else 3),
        "padding": padding or ("valid" if gpu else "same"),
        "norm": norm,
        "dropout": dropout if dropout is not None else (0.5 if gpu else 0.0),
    }
    values: dict[str, Any] = {
        "model": model,
        "minutes": minutes,
        "steps": steps,
        "device": str(target),
        "amp": fast_bfloat16(target),
        "tile": 388 if gpu else 192,
        "batch_size": 4 if gpu else 1,
        "learning_rate": 3e-4 if gpu else 1e-3,
    }
    unknown = sorted(set(overrides) - {item.name for item in dataclasses.fields(TrainConfig)})
    if unknown:
        raise InputError(f"unknown setting {', '.join(unknown)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    if given.get("optimizer") == "sgd" and "learning_rate" not in given:
        # momentum 0.99 adds up a hundred gradients: the paper names none, 1e-3 diverges with weights of up to 10
        values["learning_rate"] = 1e-4
    return TrainConfig(**{**values, **given})


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
                f"device is {name!r}, but this machine offers torch {count} CUDA devices; use --device cpu"
            )
    elif device.type != "cpu":
        raise InputError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    return device


def describe(config: TrainConfig, training: int, validation: int) -> str:
    """One line for a person: what will be trained, on what, for how long."""
    model = config.model
    budget = f"{config.minutes:g} minutes" if config.minutes is not None else f"{config.steps} steps"
    return (
        f"training {model['name']} (base {model['base_channels']}, depth {model['depth']}, {model['padding']}) on "
        f"{training} images, validating on {validation}, for {budget} on {config.device}: tiles of {config.tile} px, "
        f"batch {config.batch_size}, {config.optimizer} {config.learning_rate:g}, "
        f"{'bfloat16' if config.amp else 'float32'}"
    )
