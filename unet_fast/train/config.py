"""What a training run does, as one readable record, and the defaults that suit a device and a budget."""

from __future__ import annotations

import dataclasses
import json
import numbers
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unet_fast import checks
from unet_fast.errors import InputError
from unet_fast.files import atomic_path
from unet_fast.ops import _convolution
from unet_fast.train.losses import LOSSES

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("polynomial", "step", "exponential", "constant")
BEST_BY = ("score", "loss")
TTA = (1, 7, 8)
_MOST_CHANNELS = 65536
_LARGEST_INTEGER, _LARGEST_FLOAT = 2**63 - 1, sys.float_info.max
_TUPLES = ("betas", "elastic_grid", "head_weights")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes; saved as ``config.json`` in the run folder.

    Attributes:
        model: arguments of :func:`unet_fast.models.create`: ``name``, ``in_channels``, ``num_classes``, options.
        minutes, steps: the budget; exactly one is set. With ``minutes`` the schedule follows the clock.
        batch_size, tile: tiles per step and side of one *output* tile in pixels; the network's input is larger by its
            margin when its convolutions are valid.
        processes: how many processes train together (see torchrun), each with ``batch_size`` tiles a step; together they
            train as one with ``processes * batch_size``.
        loss, loss_options: a name of :data:`unet_fast.train.losses.LOSSES`, and the options of that loss.
        head_weights: of a network with several heads, one weight per head, the main one first; None: 1 each.
        encoder_weights: a local file with weights of a ``unet-resnet`` encoder to start from.
        optimizer, learning_rate, momentum, betas, weight_decay: ``adam`` (``betas``, decoupled weight decay) or ``sgd``
            (``momentum``).
        schedule: ``polynomial`` (1 - t)^0.9, ``step`` (times ``decay`` at half and at three quarters), ``exponential``
            (times ``decay`` every ``decay_steps`` steps) or ``constant``, after a linear warm-up over ``warmup`` of the
            budget.
        w0, sigma: border term of the weight map, see :func:`unet_fast.ops.weight_map`. The paper's w0 = 10 comes on top
            of weights that balance the classes; where nearly all background lies between two cells, as membranes do,
            both lift the same pixels, and w0 = 4 gives the lower pixel error.
        balance: weight classes by their inverse frequency in the training labels.
        shift, rotation, quarter_turns, flips, affine, elastic_sigma, elastic_grid, field, grey: augmentation, see
            :class:`unet_fast.augment.Augmenter`.
        average_decay: decay of the running average of the weights that is validated and saved; 0 turns it off.
        amp: bfloat16 autocast.
        tta: dihedral versions averaged by ``unet-fast predict`` unless it is told otherwise (1, 7 or 8).
        best_by: which network is kept: the best ``score`` (the mean of pixel and Rand error, or 1 - Dice with several
            classes) or the least ``loss`` on the validation images.
        threshold: what the foreground probability must exceed where labels are wanted; None: the threshold of the best
            Dice coefficient on the validation images.
        border: what lies beyond the image, in training tiles and at prediction: "mirror", "zeros" or "nearest".
        validations: how often a run validates, evenly spread over its budget.
        checkpoint_seconds: a checkpoint at least this often.
        checkpoint_steps: and after this many steps; None: by time alone.
    """

    model: dict[str, Any]
    minutes: float | None = None
    steps: int | None = None
    batch_size: int = 1
    processes: int = 1
    tile: int = 388
    loss: str = "weighted_cross_entropy"
    loss_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    head_weights: tuple[float, ...] | None = None
    encoder_weights: str | None = None
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.99
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "polynomial"
    decay: float = 0.1
    decay_steps: int = 500
    warmup: float = 0.02
    w0: float = 4.0
    sigma: float = 5.0
    balance: bool = True
    shift: bool = True
    rotation: float = 180.0
    quarter_turns: bool = False
    flips: bool = True
    affine: float = 0.0
    elastic_sigma: float = 10.0
    elastic_grid: tuple[int, int] = (3, 3)
    field: str = "bicubic"
    grey: bool = True
    average_decay: float = 0.998
    amp: bool = False
    device: str = "cpu"
    seed: int = 0
    tta: int = 8
    best_by: str = "score"
    threshold: float | None = 0.5
    border: str = "mirror"
    validations: int = 8
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    data: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_types()
        if (self.minutes is None) == (self.steps is None):
            raise InputError(f"minutes is {self.minutes} and steps is {self.steps}; set exactly one of them")
        for name in (
            "minutes",
            "steps",
            "batch_size",
            "processes",
            "tile",
            "learning_rate",
            "decay",
            "decay_steps",
            "checkpoint_seconds",
            "checkpoint_steps",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}, expected a number above 0")
        for name in ("weight_decay", "w0", "affine", "elastic_sigma", "rotation", "validations"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected a number of at least 0")
        if not self.sigma > 0:
            raise InputError(f"sigma is {self.sigma}, expected a number of pixels above 0")
        for name, top in (("momentum", 1.0), ("average_decay", 1.0), ("warmup", 1.0)):
            if not 0 <= getattr(self, name) < top:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 0 and below {top}")
        if self.tta not in TTA:
            raise InputError(f"tta is {self.tta}, expected 1 (off), 7 or 8 (all flips and quarter turns)")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas is {self.betas}, expected two numbers of at least 0 and below 1")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold}, expected a probability from 0 to 1, or None")
        checks.check_choice("loss", self.loss, tuple(LOSSES))
        checks.check_choice("best_by", self.best_by, BEST_BY)
        checks.check_choice("optimizer", self.optimizer, OPTIMIZERS)
        checks.check_choice("schedule", self.schedule, SCHEDULES)

    def _check_types(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if not _is_of(value, hints[item.name]):
                expected = str(item.type).replace(" | ", " or ")
                raise InputError(f"{item.name} is {_short(value)}, expected {expected}")
        for name, kind in (("name", str), ("in_channels", int), ("num_classes", int)):
            value = self.model.get(name)
            if not _is_of(value, kind) or (isinstance(value, int) and not 1 <= value <= _MOST_CHANNELS):
                expected = "a name" if kind is str else f"a number from 1 to {_MOST_CHANNELS}"
                raise InputError(f"{name} of the model is {_short(value)}, expected {expected}")

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
        """Read what :meth:`save` wrote. Raises ``InputError`` when the file is not such a record."""
        try:
            values = json.loads(path.read_text())
            if not isinstance(values, dict):
                raise InputError(f"it holds {_short(values)}, expected a record")
            known = {item.name for item in dataclasses.fields(cls)}
            unknown = sorted(set(values) - known)
            if unknown:
                raise InputError(f"unknown settings {', '.join(unknown)}: was it written by a newer version?")
            for name in _TUPLES:
                if values.get(name) is not None:
                    values[name] = tuple(values[name])
            return cls(**values)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ) as error:  # an InputError is a ValueError
            raise InputError(f"{path} is not the config.json of a training run ({error})") from error


def _is_of(value: object, hint: Any) -> bool:
    """Whether a value is of a type of :class:`TrainConfig`: finite numbers, no truth value for a number."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if origin in (types.UnionType, typing.Union):
        return any(_is_of(value, each) for each in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        return len(value) == len(wanted) and all(map(_is_of, value, wanted))
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(float(value)) <= _LARGEST_FLOAT
    if hint is int:
        return (
            isinstance(value, numbers.Integral) and not isinstance(value, bool) and abs(int(value)) <= _LARGEST_INTEGER
        )
    return isinstance(value, hint)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32 there: GPUs from Ampere on; CPUs with instructions for it, if a layer is
    measured to be faster so (see :func:`precision_reason`)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        has = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        if has is None or not has():
            return False
        times = _convolution.step_times()
        return times[torch.bfloat16] < times[torch.float32]
    return False


def precision_reason(device: torch.device) -> str:
    """What :func:`fast_bfloat16` measured, for a person; nothing where nothing was."""
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if device.type != "cpu" or has is None or not has():
        return ""
    times = {dtype: 1e3 * seconds for dtype, seconds in _convolution.step_times().items()}
    return (
        f" (measured, one layer forward and backward: float32 {times[torch.float32]:.1f} ms, "
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
                f"device is {name!r}, but this machine offers torch {count} CUDA devices; use --device cpu"
            )
    elif device.type != "cpu":
        raise InputError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    return device
