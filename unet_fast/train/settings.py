"""The parts of a run's settings, as records that recipes share: optimizer, budget, checkpoints.

The loss is :class:`unet_fast.train.losses.Loss`, the augmentation :class:`unet_fast.augment.Augmentation`.
"""

from __future__ import annotations

from dataclasses import dataclass

from unet_fast import checks
from unet_fast._settings import Record, setting
from unet_fast.errors import InputError

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("polynomial", "step", "exponential", "constant")
BEST_BY = ("score", "loss")


@dataclass(frozen=True)
class Optimizer(Record):
    """How the weights change, step by step.

    Attributes:
        name: ``adam`` (``betas``, decoupled weight decay) or ``sgd`` (``momentum``).
        learning_rate, momentum, betas, weight_decay: of the optimizer.
        schedule: ``polynomial`` (1 - t)^0.9, ``step`` (times ``decay`` at half and at three quarters), ``exponential``
            (times ``decay`` every ``decay_steps`` steps) or ``constant``, after a linear warm-up over ``warmup`` of the
            budget.
        average_decay: decay of the running average of the weights that is validated and saved; 0 turns it off.
        statistics_until: part of the budget in which batch normalisation takes the statistics of each batch. Then the running average
            takes over, whose statistics stand from there on, so that the network is trained as it will be applied: with a tile or
            a few a step the two differ.
    """

    name: str = setting("adam", "optimizer")
    learning_rate: float = 1e-3
    momentum: float = 0.99
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "polynomial"
    decay: float = 0.1
    decay_steps: int = 500
    warmup: float = 0.02
    average_decay: float = 0.998
    statistics_until: float = 1.0

    def check(self) -> None:  # noqa: D102
        checks.check_choice("optimizer", self.name, OPTIMIZERS)
        checks.check_choice("schedule", self.schedule, SCHEDULES)
        self.check_positive("learning_rate", "decay", "decay_steps")
        self.check_not_negative("weight_decay")
        self.check_fractions("momentum", "average_decay", "warmup")
        if not 0 < self.statistics_until <= 1:
            raise InputError(
                f"statistics_until is {self.statistics_until}, expected a part of the budget above 0 and at most 1"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas is {self.betas}, expected two numbers of at least 0 and below 1")


@dataclass(frozen=True)
class Budget(Record):
    """How long a run trains.

    Attributes:
        minutes, steps: exactly one is set. With ``minutes`` the schedule of the learning rate follows the clock.
    """

    minutes: float | None = None
    steps: int | None = None

    def check(self) -> None:  # noqa: D102
        if (self.minutes is None) == (self.steps is None):
            raise InputError(f"minutes is {self.minutes} and steps is {self.steps}; set exactly one of them")
        self.check_positive("minutes", "steps")

    def __str__(self) -> str:
        return f"{self.minutes:g} minutes" if self.minutes is not None else f"{self.steps} steps"


@dataclass(frozen=True)
class Checkpoints(Record):
    """When a run validates and saves, and which network it keeps.

    Attributes:
        best_by: which network is kept: the best ``score`` (pixel error for masks; 1 - Dice with several classes; for labels that
            number objects 1 - mean average precision, or, where a ridge separates them, the mean of pixel and Rand error) or the
            least ``loss`` on the validation images; of equals the later one.
        validations: how often a run validates, evenly spread over its budget; with a budget in minutes it leaves out those before
            the last one by which they would take more than 3 % of the time so far.
        seconds: a checkpoint at least this often.
        steps: and after this many steps; None: by time alone.
    """

    best_by: str = "score"
    validations: int = 8
    seconds: float = setting(60.0, "checkpoint_seconds")
    steps: int | None = setting(None, "checkpoint_steps")

    def check(self) -> None:  # noqa: D102
        checks.check_choice("best_by", self.best_by, BEST_BY)
        self.check_not_negative("validations")
        self.check_positive("seconds", "steps")
