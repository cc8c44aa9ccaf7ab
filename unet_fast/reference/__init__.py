"""Slow, obvious truth for every op, in plain PyTorch and NumPy. Tests and benchmarks compare with it."""

from __future__ import annotations

from unet_fast.reference.crop_concat import crop_concat

__all__ = [
    "crop_concat",
]
