"""How much a file may ask for: the guards against files that decode to far more than they hold.

A few bytes of a compressed file can announce any number of pixels. What a file decodes to may therefore be no more than
:func:`decoded_limit`: 200 times its own size, and in any case :data:`DEFAULT_GB`. Files that are stored without
compression, and ordinary compressed ones, never come near it. ``UNET_FAST_MAX_DECODED_GB`` raises (or lowers) the floor.
"""

from __future__ import annotations

import os
from pathlib import Path

from unet_fast.errors import InputError

VARIABLE = "UNET_FAST_MAX_DECODED_GB"
DEFAULT_GB = 1.0
RATIO = 200


def decoded_limit(file_bytes: int) -> int:
    """Bytes that a file of ``file_bytes`` may decode to at once. Raises ``InputError`` for a variable that is not a number."""
    text = os.environ.get(VARIABLE, "")
    try:
        gigabytes = float(text) if text else DEFAULT_GB
        if not 0 < gigabytes < float("inf"):
            raise ValueError
    except ValueError:
        raise InputError(f"{VARIABLE} is {text!r}, expected a positive number of gigabytes such as 8") from None
    return max(int(gigabytes * 2**30), RATIO * file_bytes)


def check_decoded(path: Path, decoded_bytes: int, file_bytes: int, what: str = "decodes") -> None:
    """Raise ``InputError`` when ``path`` of ``file_bytes`` asks for more than :func:`decoded_limit`."""
    limit = decoded_limit(file_bytes)
    if decoded_bytes > limit:
        raise InputError(
            f"{path} ({file_bytes:,} bytes) {what} to {decoded_bytes:,} bytes, more than the limit of {limit:,} bytes that "
            f"guards against hostile files; if you trust it, set {VARIABLE}={-(-decoded_bytes // 2**30)} and try again"
        )
