"""U-Net segmentation as fast as the hardware allows, without changing what is computed.

Everything is loaded on first use: ``import unet_fast`` brings in neither torch nor CUDA nor Triton, so that
``unet_fast.numpy`` works where torch is not installed. The public names stand in ``__init__.pyi``, where editors and
type checkers read them, too.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
