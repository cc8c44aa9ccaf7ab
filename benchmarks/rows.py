"""Rows of figures as they are measured, for a process that collects them (``benchmarks/gpu_check``) and may end this one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "UNET_FAST_ROWS"  # names the file that each row is appended to, a line of JSON each


def collected() -> bool:
    """Whether somebody collects the rows of this process."""
    return bool(os.environ.get(VARIABLE))


def emit(row: dict[str, Any]) -> None:
    """Hand on a row, so that it is kept whatever becomes of this process."""
    if collected():
        with Path(os.environ[VARIABLE]).open("a") as file:
            file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows in a file; a last line that was cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
