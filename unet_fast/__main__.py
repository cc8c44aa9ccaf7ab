"""``python -m unet_fast``: the same command line as ``unet-fast``."""

from __future__ import annotations

from unet_fast.cli import main

if __name__ == "__main__":
    main()
