"""``python -m unet_fast.cli``, the same as ``python -m unet_fast``."""

from __future__ import annotations

from unet_fast.cli import main

if __name__ == "__main__":
    main()
