"""The command line: ``unet-fast demo | train | recipes | compare | predict | evaluate | preview | bench | info``."""

from __future__ import annotations

import sys

from unet_fast.cli import bench, deploy, look, predict, training
from unet_fast.cli._app import app
from unet_fast.cli._memory import keep_freed_memory
from unet_fast.cli._streams import sturdy_streams
from unet_fast.errors import BackendError, InputError
from unet_fast.files import protecting_inputs

__all__ = ["app", "bench", "deploy", "look", "main", "predict", "training"]


_LONGEST_MESSAGE = 2000


def main() -> None:
    """Run the command line; bad input, and a lack of memory, end in one line and exit code 2."""
    sturdy_streams()
    keep_freed_memory()
    if "" in sys.argv[1:]:  # a path without a name would be the present folder
        _fail("an argument is empty, perhaps from a variable that is not set; give a value, or leave the option out")
    try:
        with protecting_inputs():
            app()
    except (InputError, BackendError, OSError) as error:
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        from unet_fast.train.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or ["no more memory"])[0]
        _fail(f"out of memory ({first[:200]}); use a smaller --tile or --batch-size, fewer images, or a larger machine")
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)


def _fail(message: str) -> None:
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]} ... ({len(message)} characters)"
    _say(f"error: {message}")
    sys.exit(2)


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr)
    except OSError:
        pass  # nobody listens
