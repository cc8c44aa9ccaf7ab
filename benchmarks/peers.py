"""Peers that are compared with where they are installed; a missing one is named aloud, once."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType


@cache
def optional(module: str) -> ModuleType | None:
    """The module, or None (and a line that says so) when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"{module.split('.')[0]} is not compared with: {error}", flush=True)
        return None
