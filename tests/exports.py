"""ONNX graphs for the tests of deployment, each made once by every process of the tests: to make one takes seconds."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from unet_fast.deploy import onnx_file
from unet_fast.models import SegmentationModel

_GRAPHS: dict[tuple[Any, ...], Any] = {}
_REGISTRIES: dict[type, Callable[..., Any]] = {}  # what reads them, once


def _identity(model: SegmentationModel) -> tuple[Any, ...]:
    """What the graph of a network follows from: its methods, its layers, their weights and its legal sizes."""
    methods = inspect.getmembers(type(model), inspect.isfunction)
    layers = tuple((name, repr(layer)) for name, layer in model.named_children())
    weights = tuple((name, value.numpy().tobytes()) for name, value in model.state_dict().items())
    return tuple(methods), layers, model.geometry, weights


@pytest.fixture(autouse=True)
def graphs_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network with the same weights gives the same graph."""
    make = onnx_file.graph_of

    def graph_of(model: SegmentationModel) -> Any:
        key = _identity(model)
        if key not in _GRAPHS:
            _GRAPHS[key] = make(model)
        return copy.deepcopy(_GRAPHS[key])

    monkeypatch.setattr(onnx_file, "graph_of", graph_of)
    # the ONNX forms of torch's operators, which the exporter reads anew for each graph
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if ONNXRegistry not in _REGISTRIES:
        _REGISTRIES[ONNXRegistry] = cache(ONNXRegistry.from_torchlib)
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(_REGISTRIES[ONNXRegistry]))
