"""Training: configuration, steps, checkpoints, run folders."""

from __future__ import annotations

from unet_fast.train.config import TrainConfig, fast_bfloat16, resolve_device
from unet_fast.train.dataset import default_validation, hold_out, separate_touching
from unet_fast.train.defaults import default_config, describe, legal_tile, steps_for
from unet_fast.train.loop import Summary, train
from unet_fast.train.losses import LOSSES
from unet_fast.train.pictures import write_preview
from unet_fast.train.resume import changed, check_same_data, share_batch
from unet_fast.train.run_folder import load_model, read_config
from unet_fast.train.traits import grey_spread, traits
from unet_fast.train.windows import object_radius

__all__ = [
    "LOSSES",
    "Summary",
    "TrainConfig",
    "changed",
    "check_same_data",
    "default_config",
    "default_validation",
    "describe",
    "fast_bfloat16",
    "grey_spread",
    "hold_out",
    "legal_tile",
    "load_model",
    "object_radius",
    "read_config",
    "resolve_device",
    "separate_touching",
    "share_batch",
    "steps_for",
    "train",
    "traits",
    "write_preview",
]
