"""How a trained network is applied: the one place that turns a run's settings into a predictor."""

from __future__ import annotations

from typing import Any

import torch

from unet_fast.data import normalize
from unet_fast.predict import Predictor
from unet_fast.train.config import TrainConfig, fast_bfloat16

SMALLEST_TILE = 512


def device_of(model: Any) -> torch.device:
    """Where a network or an engine lies."""
    return next(model.parameters()).device if isinstance(model, torch.nn.Module) else model.device


def predictor_of(model: Any, config: Any, **options: Any) -> Predictor:
    """The :class:`unet_fast.predict.Predictor` of a network that was trained by ``config``.

    Grey values are normalised as in training and continued beyond the image as in training (``config.padding``);
    bfloat16 is used where the run used it and the device gains by it; the threshold, the versions that are averaged, and
    how objects are kept apart are those of the run. ``options`` overrides any of it; an option that is None counts as not given.

    ``model`` may be an engine, which has its own precision; ``config`` the description inside an exported file.
    """
    trained = isinstance(config, TrainConfig)
    network = isinstance(model, torch.nn.Module)
    settings: dict[str, Any] = {
        "preprocess": normalize if trained or config.normalized else None,
        "tile": max(config.tile, SMALLEST_TILE),
        "tta": config.tta,
        "threshold": config.threshold,
        "separate": config.separate,
        "padding": config.padding,
        "amp": trained and network and config.amp and fast_bfloat16(device_of(model)),
    }
    if config.min_size is not None:
        settings["min_size"] = config.min_size
    settings.update({name: value for name, value in options.items() if value is not None})
    return Predictor(model, **settings)
