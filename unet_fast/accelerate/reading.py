"""Reads the steps off a forward, with ``torch.fx``: see :mod:`unet_fast.accelerate.flow`."""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from unet_fast.accelerate import joined, layers
from unet_fast.accelerate.flow import Call, Flow, Join, Ref, Row, Step, Wait
from unet_fast.accelerate.surroundings import DEPTH, Surroundings, Unreadable, look
from unet_fast.errors import first_line


class _Value(fx.Proxy):
    """What stands for a tensor, and says that it is one; that somebody asked is noted, as it may be something else later."""

    @property
    def __class__(self) -> type:
        tracer = cast(_Tracer, self.tracer)
        if sys._getframe(1).f_code in tracer.codes:
            tracer.tensors.add(self.node.name)
            return torch.Tensor
        return _Value

    @__class__.setter
    def __class__(self, kind: type) -> None:
        raise TypeError(kind)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # their numbers may change

    def __init__(self, codes: frozenset[types.CodeType]) -> None:
        super().__init__()
        self.codes = codes | {torch.is_tensor.__code__}
        self.tensors: set[str] = set()

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not fx.Tracer.trace.__code__:
            if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
                raise Unreadable("its forward recomputes what gradients need, to save memory")
            frame = frame.f_back
        return super().create_node(*args, **kwargs)


def read(block: nn.Module) -> Flow:
    """The flow of ``block`` as it is now; raises :class:`Unreadable`."""
    forward = type(block).forward
    if not isinstance(forward, types.FunctionType):
        raise Unreadable("its forward is not a plain function")
    around, codes = look(block)
    held = [_Held(module.__dict__) for module in block.modules()]
    try:
        tracer = _Tracer(codes)
        graph = tracer.trace(block)
    except Unreadable:
        raise
    except Exception as error:  # whatever somebody's code raises when it is given proxies
        raise Unreadable(f"its forward depends on its inputs ({first_line(error)[:80]})") from None
    finally:
        changed = [name for attributes in held for name in attributes.restore()]
    if changed:
        raise Unreadable(f"its forward changes its attribute {changed[0]}")
    return _flow(block, graph, around, frozenset(tracer.tensors))


class _Held:
    """The attributes of a module, and what was in those that are containers or objects, to be put back after a trace."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.inside: list[tuple[str, Any, Any]] = []  # attribute, what it holds, how that was
        self._hold(attributes, "", 0)

    def _hold(self, holder: Any, name: str, depth: int) -> None:
        kind = next(kind for kind in (dict, list, set) if isinstance(holder, kind))
        self.inside.append((name, holder, kind(holder)))
        for key, value in holder.items() if kind is dict else enumerate(holder):
            inner = _holder(value)
            if inner is not None and depth < DEPTH:
                self._hold(inner, name or str(key), depth + 1)

    def restore(self) -> list[str]:
        """Put everything back; the names of what was not as before."""
        changed = []
        for name, holder, before in self.inside:
            now, then = _flat(holder), _flat(before)
            if len(now) == len(then) and all(map(operator.is_, now, then)):
                continue
            changed += (
                [name] if name else [key for key in {**holder, **before} if holder.get(key) is not before.get(key)]
            )
            holder.clear()
            holder.extend(before) if isinstance(holder, list) else holder.update(before)
        return changed


def _holder(value: Any) -> Any:
    """What holds the items of a container, or the attributes of an object."""
    if isinstance(value, list | dict | set):
        return value
    if isinstance(value, nn.Module | torch.Tensor | types.ModuleType | type) or callable(value):
        return None
    return getattr(value, "__dict__", None)


def _flat(holder: Any) -> list[Any]:
    return [*holder.keys(), *holder.values()] if isinstance(holder, dict) else list(holder)


def _flow(block: nn.Module, graph: fx.Graph, around: Surroundings, tensors: frozenset[str]) -> Flow:
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
    return Flow(tuple(inputs), tuple(steps), result, around, tensors)


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
    if dim != 1 or len(given) != 2 or not isinstance(maps, list | tuple) or len(maps) < 2:
        return None
    if not all(isinstance(map_, fx.Node) for map_ in maps):
        return None
    return maps
