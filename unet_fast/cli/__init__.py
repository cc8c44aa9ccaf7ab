"""The command line: ``unet-fast demo | train | recipes | compare | predict | evaluate | preview | bench | info``."""

from __future__ import annotations

import sys

from unet_fast.cli import bench, look, predict, training
from unet_fast.cli._app import app
from unet_fast.cli._memory import keep_freed_memory
from unet_fast.errors import BackendError, InputError

__all__ = ["app", "bench", "look", "main", "predict", "training"]


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2."""
    keep_freed_memory()
    try:
        app()
    except (InputError, BackendError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
