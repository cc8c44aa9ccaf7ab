"""What the forward of a block computes, as steps, read off with ``torch.fx``, and run with the layers in it joined.

A block is one module with its own forward; the modules that it calls are steps. Reading a forward off fixes the branches
that it takes, so the plain attributes of the block, which decide on them, are noted, and the steps serve as long as they
are the same.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from unet_fast.accelerate import layers
from unet_fast.accelerate.layers import Joined
from unet_fast.accelerate.patch import Patch


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


Step = Row | Join | Call


@dataclass(frozen=True)
class Flow:
    """The steps of one forward.

    Attributes:
        inputs: names of the positional arguments.
        steps: in order.
        result: a structure of :class:`Ref`.
        attributes: the plain attributes of the block that the steps were read off with.
        absent: of each child, whether it was None.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    result: Any
    attributes: dict[str, Any]
    absent: dict[str, bool]

    def serves(self, block: nn.Module) -> bool:
        """Whether ``block`` is still what the steps were read off from."""
        now, children = block.__dict__, block._modules
        return (
            all(name in now and now[name] == value for name, value in self.attributes.items())
            and len(children) == len(self.absent)
            and all(name in children and (children[name] is None) == none for name, none in self.absent.items())
        )


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
        return flow if flow is not None and flow.serves(self.module) else None

    def fast(self, *args: Any, **kwargs: Any) -> Any:
        """Run the steps, or the block's own forward where it was called in another way."""
        flow = self.flow()
        if flow is None or kwargs and not set(kwargs) <= set(flow.inputs[len(args) :]):
            return self.plain(*args, **kwargs)
        if len(args) + len(kwargs) != len(flow.inputs) or any(arg is None for arg in (*args, *kwargs.values())):
            return self.plain(*args, **kwargs)
        values: dict[str, Any] = dict(zip(flow.inputs, args, strict=False)) | kwargs
        for step in flow.steps:
            values[step.out] = _run_step(self.module, step, values)
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


def modules_of(block: nn.Module, step: Row) -> list[nn.Module]:
    """The modules of a row, as the block holds them now."""
    return [block.get_submodule(layer) if isinstance(layer, str) else layer for layer in step.layers]


def _run_step(block: nn.Module, step: Step, values: dict[str, Any]) -> Any:
    if isinstance(step, Row):
        return layers.run(modules_of(block, step), values[step.source])
    if isinstance(step, Join):
        return Joined([values[name] for name in step.maps])
    args, kwargs = _fill(step.args, values), _fill(step.kwargs, values)
    if step.kind == "call_method":
        return getattr(args[0], step.target)(*args[1:], **kwargs)
    if step.kind == "call_module":
        return block.get_submodule(step.target)(*args, **kwargs)
    if step.kind == "get_attr":
        return operator.attrgetter(step.target)(block)
    if step.target is F.pad and _pads_nothing(args, kwargs):
        return args[0]
    return step.target(*args, **kwargs)


def _pads_nothing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    amounts = args[1] if len(args) > 1 else kwargs.get("pad", ())
    return all(isinstance(amount, int) and amount == 0 for amount in amounts)


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


class Unreadable(Exception):
    """Why a forward cannot be read off."""


# Names in the code of a forward whose answers steps cannot hold: they change from call to call.
_CHANGING = {
    "random", "rand", "randn", "randint", "randperm", "bernoulli", "uniform", "normal", "is_grad_enabled",
    "is_inference_mode_enabled", "is_autocast_enabled", "is_compiling", "is_tracing", "is_scripting", "is_exporting",
    "checkpoint", "environ", "getenv", "time", "perf_counter", "print", "open", "next",
}  # fmt: skip


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


def read(block: nn.Module) -> Flow:
    """The flow of ``block`` as it is now; raises :class:`Unreadable`."""
    forward = type(block).forward
    if not isinstance(forward, types.FunctionType):
        raise Unreadable("its forward is not a plain function")
    changing = sorted(set(_names(forward.__code__)) & _CHANGING)
    if changing:
        raise Unreadable(f"its forward asks {', '.join(changing)}, which may change from call to call")
    attributes = _attributes(block)
    held = [(module.__dict__, _Held(module.__dict__)) for module in block.modules()]
    try:
        graph = _Tracer().trace(block)
    except Exception as error:  # whatever somebody's code raises when it is given proxies
        raise Unreadable(f"its forward depends on its inputs ({str(error).splitlines()[0][:80]})") from None
    finally:
        changed = [name for _, state in held for name in state.restore()]
    if changed:
        raise Unreadable(f"its forward changes its attribute {changed[0]}")
    return _flow(block, graph, attributes)


class _Held:
    """The attributes of a module, and what was in those that are containers, to be put back after a trace."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes
        self.items = dict(attributes)
        self.inside = [(value, value.copy()) for value in attributes.values() if isinstance(value, list | dict | set)]

    def restore(self) -> list[str]:
        """Put everything back; the names of what was not as before."""
        now, changed = self.attributes, []
        for name in [*self.items, *(name for name in now if name not in self.items)]:
            if name not in self.items or now.get(name, now) is not self.items[name]:
                changed.append(name)
        if changed:
            now.clear()
            now.update(self.items)
        for container, before in self.inside:
            if len(container) == len(before) and all(map(operator.is_, _flat(container), _flat(before))):
                continue
            changed.append(next(name for name, value in now.items() if value is container))
            container.clear()
            container.extend(before) if isinstance(container, list) else container.update(before)
        return changed


def _flat(container: Any) -> list[Any]:
    return [*container.keys(), *container.values()] if isinstance(container, dict) else list(container)


def _names(code: types.CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return [*code.co_names, *inner]


_PLAIN = (bool, int, float, str, type(None))
_OF_ALL_MODULES = frozenset(nn.Module().__dict__)


def _attributes(block: nn.Module) -> dict[str, Any]:
    """The attributes that can decide on a branch: numbers, words, and lists of such."""
    found = {}
    for name, value in block.__dict__.items():
        items = value if isinstance(value, list | tuple) else [value]
        if name not in _OF_ALL_MODULES and all(isinstance(item, _PLAIN) for item in items):
            found[name] = list(value) if isinstance(value, list) else value
    return found


def _flow(block: nn.Module, graph: fx.Graph, attributes: dict[str, Any]) -> Flow:
    nodes = list(graph.nodes)
    inputs: list[str] = []
    steps: list[Step] = []
    result = None
    for index, node in enumerate(nodes):
        if node.op == "placeholder":
            if str(node.target).startswith("*"):
                raise Unreadable("its forward takes any number of arguments")
            inputs.append(node.name)
            continue
        if node.op == "output":
            result = _template(node.args[0])
            continue
        previous = nodes[index - 1]
        layer = _layer(block, node)
        if layer is not None:
            source = node.args[0]
            last = steps[-1] if steps else None
            if isinstance(last, Row) and source is previous and len(source.users) == 1:
                steps[-1] = Row(node.name, last.source, (*last.layers, layer))
            else:
                steps.append(Row(node.name, source.name, (layer,)))
            continue
        following = nodes[index + 1]
        maps = _joined(node)
        if maps and len(node.users) == 1 and following.args[:1] == (node,) and _layer(block, following) is not None:
            steps.append(Join(node.name, tuple(map_.name for map_ in maps)))
            continue
        target = node.target
        steps.append(Call(node.name, node.op, target, _template(node.args), _template(dict(node.kwargs))))
    absent = {name: child is None for name, child in block._modules.items()}
    return Flow(tuple(inputs), tuple(steps), result, attributes, absent)


def _template(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return Ref(value.name)
    if isinstance(value, tuple):
        return tuple(_template(item) for item in value)
    if isinstance(value, list):
        return [_template(item) for item in value]
    if isinstance(value, dict):
        return {key: _template(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_template(item) for item in (value.start, value.stop, value.step)))
    return value


def _layer(block: nn.Module, node: fx.Node) -> str | nn.Module | None:
    """What ``node`` applies to one map, as a layer, or None if it is something else."""
    one = len(node.args) == 1 and isinstance(node.args[0], fx.Node)
    if node.op == "call_module" and one and not node.kwargs:
        return str(node.target)
    if not (node.args and isinstance(node.args[0], fx.Node)):
        return None
    options = dict(node.kwargs)
    if node.op == "call_function" and node.target in (torch.relu, F.relu) and one:
        return None if options.pop("inplace", False) or options else nn.ReLU()
    if node.op == "call_method" and node.target == "relu" and one and not options:
        return nn.ReLU()
    return None


def _joined(node: fx.Node) -> Sequence[fx.Node] | None:
    """The maps that ``node`` concatenates along the channels."""
    if node.op != "call_function" or node.target not in (torch.cat, torch.concat, torch.concatenate):
        return None
    given: dict[str, Any] = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    maps, dim = given.get("tensors"), given.get("dim", 0)
    if dim != 1 or not isinstance(maps, list | tuple) or not all(isinstance(map_, fx.Node) for map_ in maps):
        return None
    return maps
