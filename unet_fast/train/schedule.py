"""Learning rates as a function of progress, so that a budget in minutes and one in steps follow the same curve."""

from __future__ import annotations

from unet_fast.train.config import TrainConfig


def learning_rate(config: TrainConfig, progress: float) -> float:
    """The learning rate at ``progress`` in [0, 1) of the budget.

    ``polynomial``: lr (1 - t)^0.9; ``step``: lr, a tenth of it from t = 0.5, a hundredth from t = 0.75;
    ``constant``: lr.
    A linear warm-up from zero over the first ``config.warmup`` of the budget multiplies each.
    """
    t = min(max(progress, 0.0), 1.0)
    factor = 1.0
    if config.schedule == "polynomial":
        factor = (1.0 - t) ** 0.9
    elif config.schedule == "step":
        factor = 0.01 if t >= 0.75 else 0.1 if t >= 0.5 else 1.0
    if config.warmup > 0:
        factor *= min(1.0, t / config.warmup)
    return config.learning_rate * factor
