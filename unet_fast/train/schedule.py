"""Learning rates as a function of progress, so that a budget in minutes and one in steps follow the same curve."""

from __future__ import annotations

from unet_fast.train.config import TrainConfig


def learning_rate(config: TrainConfig, progress: float, step: int = 0) -> float:
    """The learning rate at ``progress`` in [0, 1) of the budget, after ``step`` updates.

    ``polynomial``: lr (1 - t)^0.9; ``step``: lr, times ``decay`` from t = 0.5, times ``decay`` again from t = 0.75;
    ``exponential``: lr decay^(step // decay_steps); ``constant``: lr.
    A linear warm-up from zero over the first ``config.warmup`` of the budget multiplies each.
    """
    t = min(max(progress, 0.0), 1.0)
    factor = 1.0
    if config.schedule == "polynomial":
        factor = (1.0 - t) ** 0.9
    elif config.schedule == "step":
        factor = config.decay ** ((t >= 0.5) + (t >= 0.75))
    elif config.schedule == "exponential":
        factor = config.decay ** (step // config.decay_steps)
    if config.warmup > 0:
        factor *= min(1.0, t / config.warmup)
    return config.learning_rate * factor
