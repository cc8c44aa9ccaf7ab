"""What the forward of a block computes, as steps, and how they run with the layers in it joined.

A block is one module with its own forward; the modules that it calls are steps. Reading a forward off (reading.py) fixes the
branches that it takes, so what decides on them is noted (surroundings.py), and the steps serve as long as it is the same.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from unet_fast.accelerate import joined, layers
from unet_fast.accelerate.joined import Joined
from unet_fast.accelerate.patch import Patch
from unet_fast.accelerate.surroundings import Surroundings


@dataclass(frozen=True)
class Ref:
    """The value that a step gave, by its name."""

    name: str


@dataclass(frozen=True)
class Row:
    """Modules called one after the other: paths within the block, or modules of our own in place of functions."""

    out: str
    source: str
    layers: tuple[str | nn.Module, ...]


@dataclass(frozen=True)
class Join:
    """Maps that are concatenated along their channels for nobody but the next step."""

    out: str
    maps: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """A function, a method (by its name) or a module (by its path), with arguments that may hold :class:`Ref`."""

    out: str
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Wait:
    """An up-sampling or a padding for nobody but a join, which may write it at once where it belongs.

    ``target`` is the path of a module, ``F.interpolate`` or ``F.pad``; ``args`` and ``kwargs`` come after ``source``.
    """

    out: str
    source: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Step = Row | Join | Wait | Call


@dataclass(frozen=True)
class Flow:
    """The steps of one forward.

    Attributes:
        inputs: names of the positional arguments.
        steps: in order.
        result: a structure of :class:`Ref`.
        around: what the forward asked besides, and was told.
        tensors: values that the forward asked whether they are tensors, which they are.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    result: Any
    around: Surroundings
    tensors: frozenset[str]


class FlowPatch(Patch):
    """Runs a block by its flow."""

    def __init__(self, module: nn.Module, flows: dict[bool, Flow]) -> None:
        super().__init__(module)
        self.flows = flows
        joins = sum(isinstance(step, Join) for step in flows[module.training].steps)
        self.words = (f"join of maps (x{joins})" if joins > 1 else "join of maps",) if joins else ()

    def flow(self) -> Flow | None:
        """The flow that serves the block as it is now, or None."""
        flow = self.flows.get(self.module.training)
        return flow if flow is not None and flow.around.serve(self.module) else None

    def fast(self, *args: Any, **kwargs: Any) -> Any:
        """Run the steps, or the block's own forward where it was called in another way."""
        flow = self.flow()
        if flow is None or kwargs and not set(kwargs) <= set(flow.inputs[len(args) :]):
            return self.plain(*args, **kwargs)
        if len(args) + len(kwargs) != len(flow.inputs) or any(arg is None for arg in (*args, *kwargs.values())):
            return self.plain(*args, **kwargs)
        values: dict[str, Any] = dict(zip(flow.inputs, args, strict=False)) | kwargs
        if any(type(values[name]) is not Tensor for name in flow.tensors if name in values):
            return self.plain(*args, **kwargs)
        for step in flow.steps:
            values[step.out] = _run_step(self.module, step, values)
            if step.out in flow.tensors and not isinstance(values[step.out], Tensor | Joined | joined.Late):
                return self.plain(*args, **kwargs)
        return _fill(flow.result, values)

    def rows(self) -> list[Sequence[nn.Module]]:
        """The rows among its steps."""
        flow = self.flows[self.module.training]
        return [modules_of(self.module, step) for step in flow.steps if isinstance(step, Row)]

    def row(self) -> Sequence[nn.Module] | None:
        """The modules of a block that does nothing but call them in a row."""
        flow = self.flow()
        if flow is None or len(flow.steps) != 1 or len(flow.inputs) != 1:
            return None
        (step,) = flow.steps
        if isinstance(step, Row) and step.source == flow.inputs[0] and flow.result == Ref(step.out):
            return modules_of(self.module, step)
        return None


class RowPatch(Patch):
    """Runs an ``nn.Sequential`` with its layers joined."""

    def fast(self, x: Any) -> Any:
        """The layers in a row."""
        return layers.run(list(self.module), x)

    def row(self) -> Sequence[nn.Module]:
        """The layers."""
        return list(self.module)


class LayerPatch(Patch):
    """Runs a 3x3 convolution that is called by itself."""

    words = ("3x3 convolution",)

    def fast(self, x: Any) -> Any:
        """The convolution."""
        return layers.convolve(self.module, x, self.module.weight, self.module.bias, [])[0]


class UpsamplingPatch(Patch):
    """Runs an up-sampling by 2 that is called by itself."""

    words = ("up-sampling",)

    def fast(self, x: Any) -> Any:
        """The up-sampled map."""
        waits = joined.late_layer(self.module, x)
        return self.plain(x) if waits is None else waits.tensor()


def modules_of(block: nn.Module, step: Row) -> list[nn.Module]:
    """The modules of a row, as the block holds them now."""
    return [_child(block, layer) if isinstance(layer, str) else layer for layer in step.layers]


def _child(block: nn.Module, path: str) -> Any:
    for name in path.split("."):
        block = block._modules[name]  # type: ignore[assignment]
    return block


def _run_step(block: nn.Module, step: Step, values: dict[str, Any]) -> Any:
    if isinstance(step, Row):
        return layers.run(modules_of(block, step), values[step.source])
    if isinstance(step, Join):
        return Joined([values[name] for name in step.maps])
    args, kwargs = _fill(step.args, values), _fill(step.kwargs, values)
    if isinstance(step, Wait):
        return _run_wait(block, step, values[step.source], args, kwargs)
    if step.kind == "call_method":
        return getattr(args[0], step.target)(*args[1:], **kwargs)
    if step.kind == "call_module":
        return _child(block, step.target)(*args, **kwargs)
    if step.kind == "get_attr":
        return operator.attrgetter(step.target)(block)
    return step.target(*args, **kwargs)


def _run_wait(block: nn.Module, step: Wait, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(step.target, str):
        return layers.run_late([_child(block, step.target)], x)
    if step.target is F.pad:
        return joined.pad(x, *args, **kwargs)
    waits = joined.late_interpolation(x, *args, **kwargs)
    return step.target(joined.written(x), *args, **kwargs) if waits is None else waits


def _fill(template: Any, values: dict[str, Any]) -> Any:
    """The template with values in place of references."""
    if isinstance(template, Ref):
        return values[template.name]
    if isinstance(template, tuple):
        return tuple(_fill(item, values) for item in template)
    if isinstance(template, list):
        return [_fill(item, values) for item in template]
    if isinstance(template, dict):
        return {key: _fill(item, values) for key, item in template.items()}
    if isinstance(template, slice):
        return slice(*(_fill(item, values) for item in (template.start, template.stop, template.step)))
    return template
