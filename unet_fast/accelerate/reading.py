"""Reads the steps off a forward, with ``torch.fx``: see :mod:`unet_fast.accelerate.flow`."""

from __future__ import annotations

import operator
import types
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from unet_fast.accelerate import joined, layers
from unet_fast.accelerate.flow import Call, Flow, Join, Ref, Row, Step, Wait
from unet_fast.errors import first_line


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
        raise Unreadable(f"its forward depends on its inputs ({first_line(error)[:80]})") from None
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
        if _waits(block, node):
            target, rest = node.target, node.args[1:]
            steps.append(Wait(node.name, node.args[0].name, target, _template(rest), _template(dict(node.kwargs))))
            continue
        layer = _layer(block, node)
        if layer is not None:
            source = node.args[0]
            last = steps[-1] if steps else None
            if isinstance(last, Row) and source is previous and len(source.users) == 1:
                steps[-1] = Row(node.name, last.source, (*last.layers, layer))
            else:
                steps.append(Row(node.name, source.name, (layer,)))
            continue
        if _is_join(block, node, nodes[index + 1]):
            steps.append(Join(node.name, tuple(map_.name for map_ in _joined(node) or ())))
            continue
        target = node.target
        steps.append(Call(node.name, node.op, target, _template(node.args), _template(dict(node.kwargs))))
    absent = {name: child is None for name, child in block._modules.items()}
    return Flow(tuple(inputs), tuple(steps), result, attributes, absent)


def _waits(block: nn.Module, node: fx.Node) -> bool:
    """Whether ``node`` up-samples or pads for nobody but a join, besides those who ask for its size."""
    if not (node.args and isinstance(node.args[0], fx.Node)):
        return False
    if node.op == "call_module":
        if node.args[1:] or node.kwargs or not _ends_with_upsampling(block.get_submodule(str(node.target))):
            return False
    elif node.op != "call_function" or node.target not in (F.interpolate, F.pad):
        return False
    readers = [user for user in node.users if not _asks_for_size(user)]
    if len(readers) != 1:
        return False
    reader = readers[0]
    maps = _joined(reader)
    if maps:
        return list(maps).count(node) == 1 and _is_join(block, reader, reader.next)
    return node.target is not F.pad and reader.target is F.pad and reader.args[:1] == (node,) and _waits(block, reader)


def _ends_with_upsampling(module: nn.Module) -> bool:
    last = layers.expand([module])[-1:]
    return bool(last) and isinstance(last[0], joined.UPSAMPLINGS)


def _asks_for_size(node: fx.Node) -> bool:
    return (node.op == "call_method" and node.target == "size") or (
        node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
    )


def _is_join(block: nn.Module, node: fx.Node, following: fx.Node) -> bool:
    """Whether ``node`` concatenates maps along their channels for nobody but the layer ``following`` it."""
    own = bool(_joined(node)) and len(node.users) == 1 and following.args[:1] == (node,)
    return own and _layer(block, following) is not None


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
