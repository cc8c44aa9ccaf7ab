"""The operators. Each file holds one: its checks, its registration with torch and the choice of its backend."""

from __future__ import annotations

from unet_fast.ops._backends import use_backend
from unet_fast.ops.crop_concat import crop_concat

__all__ = [
    "crop_concat",
    "use_backend",
]
