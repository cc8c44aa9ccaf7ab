"""U-Net segmentation as fast as the hardware allows, without changing what is computed.

Everything is loaded on first use: ``import unet_fast`` brings in neither torch nor CUDA nor Triton, so that
``unet_fast.numpy`` works where torch is not installed.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBPACKAGES = (
    "augment",
    "data",
    "metrics",
    "models",
    "nn",
    "numpy",
    "ops",
    "plots",
    "predict",
    "reference",
    "train",
)
_NAMES = {"UNet": "unet_fast.models", "InputError": "unet_fast.errors", "BackendError": "unet_fast.errors"}

__all__ = ["__version__", *_SUBPACKAGES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"unet_fast.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'unet_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
