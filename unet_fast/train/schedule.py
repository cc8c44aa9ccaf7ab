"""Learning rates as a function of progress, so that a budget in minutes and one in steps follow the same curve."""

from __future__ import annotations

from unet_fast.train.settings import Optimizer


def learning_rate(settings: Optimizer, progress: float, step: int = 0) -> float:
    """The learning rate at ``progress`` in [0, 1) of the budget, after ``step`` updates.

    ``polynomial``: lr (1 - t)^0.9; ``step``: lr, times ``decay`` from t = 0.5, times ``decay`` again from t = 0.75;
    ``exponential``: lr decay^(step // decay_steps); ``constant``: lr.
    A linear warm-up from zero over the first ``settings.warmup`` of the budget multiplies each.
    """
    t = min(max(progress, 0.0), 1.0)
    factor = 1.0
    if settings.schedule == "polynomial":
        factor = (1.0 - t) ** 0.9
    elif settings.schedule == "step":
        factor = settings.decay ** ((t >= 0.5) + (t >= 0.75))
    elif settings.schedule == "exponential":
        factor = settings.decay ** (step // settings.decay_steps)
    if settings.warmup > 0:
        factor *= min(1.0, t / settings.warmup)
    return settings.learning_rate * factor
