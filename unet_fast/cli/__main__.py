"""``python -m unet_fast.cli``."""

from __future__ import annotations

from unet_fast.cli import main

if __name__ == "__main__":
    main()
