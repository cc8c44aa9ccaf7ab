"""Loads the compiled operator libraries, once, and remembers why one could not be loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unet_fast.errors import first_line

_FOLDER = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Library:
    """A compiled library: ``error`` is None when its operators are there, else one line with the cause and the cure."""

    path: Path
    error: str | None


def _load(name: str) -> Library:
    path = _FOLDER / f"{name}.so"
    if not path.exists():
        return Library(path, f"{path.name} was not built; build it with: pip install --no-build-isolation .")
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        cause = first_line(error)
        return Library(
            path,
            f"{path.name} could not be loaded under torch {torch.__version__} ({cause}); "
            f"it was built with torch {build_info().get('torch', 'unknown')}: build it again with: "
            "pip install --no-build-isolation --force-reinstall --no-deps .",
        )
    return Library(path, None)


def _load_cuda() -> Library:
    """The CUDA library, which only a torch with CUDA can load; nothing of CUDA is touched under any other torch."""
    path = _FOLDER / "_torch_cuda.so"
    if torch.version.cuda is None:
        return Library(path, f"torch {torch.__version__} is a CPU build (torch.version.cuda is None)")
    if CPU.error is not None:  # the schemas are there
        return Library(path, CPU.error)
    if not path.exists() and build_info().get("cuda_reason"):
        return Library(
            path,
            f"{path.name} was not built ({build_info()['cuda_reason']}); build it with: UNET_FAST_CUDA=1 pip "
            "install --no-build-isolation --force-reinstall --no-deps .",
        )
    return _load("_torch_cuda")


def has_kernel(op: str, key: str) -> bool:
    """Whether a loaded library has registered ``unet_fast::op`` for this dispatch key, such as "CPU" or "CUDA"."""
    return CPU.error is None and torch._C._dispatch_has_kernel_for_dispatch_key(f"unet_fast::{op}", key)


def build_info() -> dict[str, Any]:
    """What setup.py wrote down about the build; empty when there was none."""
    path = _FOLDER / "_build_info.json"
    return json.loads(path.read_text()) if path.exists() else {}


CPU = _load("_torch_cpu")
CUDA = _load_cuda()
