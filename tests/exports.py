"""ONNX graphs for the tests of deployment, each made once: to make one takes seconds.

What a process has made, the others and the next run of the tests find in build/onnx, until a source of the package or a
library that makes graphs is another.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import inspect
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.scripts import ROOT
from unet_fast.deploy import onnx_file
from unet_fast.models import SegmentationModel

_GRAPHS: dict[tuple[Any, ...], Any] = {}
_REGISTRIES: dict[type, Callable[..., Any]] = {}  # what reads them, once
_KEPT = ROOT / "build" / "onnx"


def _identity(model: SegmentationModel) -> tuple[Any, ...]:
    """What the graph of a network follows from: its methods, its layers, their weights and its legal sizes."""
    methods = inspect.getmembers(type(model), inspect.isfunction)
    layers = tuple((name, repr(layer)) for name, layer in model.named_children())
    weights = tuple((name, value.numpy().tobytes()) for name, value in model.state_dict().items())
    return tuple(methods), layers, model.geometry, weights


@cache
def _folder() -> Path:
    """Where graphs are kept that the present sources and libraries make; those of others are deleted."""
    state = hashlib.sha256()
    for library in ("torch", "onnx", "onnxscript", "onnx_ir"):
        state.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    for path in sorted((ROOT / "unet_fast").rglob("*.py")):
        state.update(str(path).encode() + path.read_bytes())
    folder = _KEPT / state.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)  # beside others that do so now
    for other in _KEPT.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _file(identity: tuple[Any, ...]) -> Path | None:
    """The file of a graph; None where a method is not of the package or of torch, whose sources are not among those above."""
    methods, layers, geometry, weights = identity
    if any(not method.__module__.startswith(("unet_fast.", "torch.")) for _, method in methods):
        return None
    state = hashlib.sha256(repr(([(name, each.__qualname__) for name, each in methods], layers, geometry)).encode())
    for name, data in weights:
        state.update(name.encode() + data)
    return _folder() / f"{state.hexdigest()[:32]}.onnx"


def _made(make: Callable[[SegmentationModel], Any], model: SegmentationModel, file: Path | None) -> Any:
    onnx = onnx_file.load("onnx", "ONNX")
    onnx_file.load("onnxscript", "ONNX")  # its absence is an error, whatever is kept
    if file is not None and file.exists():
        return onnx.load(file)
    graph = make(model)
    if file is not None:
        unfinished = file.with_suffix(f".{os.getpid()}")
        onnx.save(graph, unfinished)
        unfinished.replace(file)
    return graph


@pytest.fixture(autouse=True)
def graphs_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network with the same weights gives the same graph."""
    make = onnx_file.graph_of

    def graph_of(model: SegmentationModel) -> Any:
        key = _identity(model)
        if key not in _GRAPHS:
            _GRAPHS[key] = _made(make, model, _file(key))
        return copy.deepcopy(_GRAPHS[key])

    monkeypatch.setattr(onnx_file, "graph_of", graph_of)
    # the ONNX forms of torch's operators, which the exporter reads anew for each graph
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if ONNXRegistry not in _REGISTRIES:
        _REGISTRIES[ONNXRegistry] = cache(ONNXRegistry.from_torchlib)
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(_REGISTRIES[ONNXRegistry]))
