"""Peers that are compared with where they are installed; a missing one is named aloud, once."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch

_stubs: list[torch.library.Library] = []


@cache
def optional(module: str) -> ModuleType | None:
    """The module, or None (and a line that says so) when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"{module.split('.')[0]} is not compared with: {error}", flush=True)
        return None


@cache
def let_torchvision_load() -> None:
    """Give a torchvision that was built for CUDA, beside a torch for CPUs, the two names that it misses at its import.

    Peers import it for plain layers; the operators behind these names are never called.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError:
        stub = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            stub.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _stubs.append(stub)
