"""Measurements of this machine that are remembered from one start to the next, in the user's cache folder."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from unet_fast.files import atomic_path


def machine_name(device: str | torch.device) -> str:
    """The processor, or the GPU."""
    target = torch.device(device)
    if target.type == "cuda":
        return torch.cuda.get_device_name(target)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_file(kind: str) -> Path:
    """Where measurements of this kind are: ``$XDG_CACHE_HOME`` or ``~/.cache``, below that ``unet_fast/KIND.json``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "unet_fast" / f"{kind}.json"


def remembered(kind: str) -> dict[str, Any]:
    """All that is remembered of this kind; nothing where the file is missing or none of ours."""
    try:
        known = json.loads(cache_file(kind).read_text())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a user without a home
        return {}
    return known if isinstance(known, dict) else {}


def remember(kind: str, key: str, value: Any) -> None:
    """Remember one measurement; where the folder cannot be written to, it will be measured again next time."""
    known = remembered(kind)
    known[key] = value
    try:
        with atomic_path(cache_file(kind)) as temporary:
            temporary.write_text(json.dumps(known, indent=1) + "\n")
    except (OSError, RuntimeError):
        pass
