"""What a forward asks besides its arguments, and whether the answers are still the same.

Steps that were read off (reading.py) hold the answers that a forward got then: attributes of modules, globals, which layers a
list holds. So its code, and that of the functions that it calls, is searched for what it asks. Code that does more than
compute (a ``with`` block, a global that is written) cannot be held in steps at all.
"""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Unreadable(Exception):
    """Why a forward cannot be read off."""


# Names in the code of a forward whose answers steps cannot hold: they change from call to call, or ask what an argument is.
_CHANGING = {
    "random", "rand", "randn", "randint", "randperm", "bernoulli", "uniform", "normal", "is_grad_enabled", "set_grad_enabled",
    "is_inference_mode_enabled", "is_autocast_enabled", "is_compiling", "is_tracing", "is_exporting",
    "environ", "getenv", "time", "perf_counter", "print", "open", "next", "globals", "locals",
}  # fmt: skip
_BLOCKS = {"BEFORE_WITH", "SETUP_WITH", "LOAD_SPECIAL", "BEFORE_ASYNC_WITH"}  # by version of Python
_NOT_FOLLOWED = sys.stdlib_module_names | {"torch", "torchvision", "numpy", "unet_fast"}
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.memory_format)
_OF_ALL_MODULES = frozenset(nn.Module().__dict__)
DEPTH = 4  # of configurations in configurations
_MISSING = object()


@dataclass(frozen=True)
class Surroundings:
    """What was found, to be compared.

    Attributes:
        children: of the block itself, by name: whether it was None.
        lists: names of the children of modules that are lists of others, by path.
        kinds: of modules, by path, where the code asks for them.
        attributes: path of a module, name, and what :func:`note` makes of the value; a class may hold it.
        globals: name of a module, name, value.
    """

    children: dict[str, bool]
    lists: dict[str, list[str]]
    kinds: dict[str, type]
    attributes: tuple[tuple[str, str, Any], ...]
    globals: tuple[tuple[str, str, Any], ...]

    def serve(self, block: nn.Module) -> bool:
        """Whether all is as it was."""
        children = block._modules
        if children.keys() != self.children.keys() or any(
            (children[name] is None) != none for name, none in self.children.items()
        ):
            return False
        try:
            return (
                all(_note_of(block, path, name) == value for path, name, value in self.attributes)
                and all(list(block.get_submodule(path)._modules) == names for path, names in self.lists.items())
                and all(type(block.get_submodule(path)) is kind for path, kind in self.kinds.items())
                and all(note(getattr(sys.modules[module], name)) == value for module, name, value in self.globals)
            )
        except (AttributeError, KeyError, Unreadable):  # gone, or of another kind
            return False


def _note_of(block: nn.Module, path: str, name: str) -> Any:
    module = block.get_submodule(path) if path else block
    value = module.__dict__.get(name, _MISSING)
    return note(getattr(type(module), name) if value is _MISSING else value)


def note(value: Any, depth: int = 0) -> Any:
    """Something equal as long as ``value`` says the same; raises :class:`Unreadable` where that cannot be told."""
    if isinstance(value, _PLAIN):
        return value
    if callable(value) or isinstance(value, Tensor | nn.Module):
        return value if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) else id(value)
    if depth < DEPTH:
        if type(value) in (list, tuple, set, frozenset):
            return type(value).__name__, [note(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return type(value).__name__, [(note(key, depth + 1), note(item, depth + 1)) for key, item in value.items()]
        if hasattr(value, "__dict__"):
            return type(value).__name__, note(vars(value), depth + 1)
    raise Unreadable(f"its forward may read a {type(value).__name__}, which may change")


class _Code:
    """The code of a forward and of what it calls: names in it, and functions of which it consists."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.below = [(path, module) for path, module in block.named_modules() if path]
        self.seen: set[types.CodeType] = set()
        self.own: set[str] = set()  # attributes of self
        self.other: set[str] = set()  # of anything else
        self.globals: dict[tuple[str, str], Any] = {}
        self.builtins: set[str] = set()
        self._follow_methods(type(block), "forward")

    def follow(self, function: types.FunctionType) -> None:
        code = function.__code__
        if code in self.seen:
            return
        if hasattr(function, "__wrapped__"):
            raise Unreadable("its forward, or what it calls, is decorated")
        self.seen |= set(_codes(code))
        names, own, other = _asked(code)
        changing = sorted((names | own | other) & _CHANGING)
        if changing:
            raise Unreadable(f"its forward uses {', '.join(changing)}, which may change from call to call")
        self.own |= own
        self.other |= other
        for name in names:
            if name in function.__globals__:
                self._follow_global(function.__globals__, name, other)
            else:
                self.builtins.add(name)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if not self._follow_value(cell.cell_contents, other):
                raise Unreadable(f"its forward reads {name} of the enclosing function, which may change")
        for name in own | other:
            self._follow_methods(type(self.block), name, "super" in names)
            value = self.block.__dict__.get(name)
            if isinstance(value, types.FunctionType):
                self._follow_value(value, other)
        for name in other:
            for _, module in self.below:
                self._follow_methods(type(module), name, "super" in names)

    def _follow_methods(self, kind: type, name: str, every: bool = False) -> None:
        """Follow the method of this name, or every one that it overrides."""
        for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
            member = None if base.__module__.startswith("torch.") else base.__dict__.get(name)
            member = getattr(member, "fget", getattr(member, "__func__", member))
            if isinstance(member, types.FunctionType):
                self.follow(member)
                if not every:
                    return

    def _follow_global(self, scope: dict[str, Any], name: str, attributes: set[str]) -> None:
        value = scope[name]
        if self._follow_value(value, attributes):
            return
        module = scope.get("__name__", "")
        if not isinstance(value, _PLAIN) or getattr(sys.modules.get(module), "__dict__", None) is not scope:
            raise Unreadable(f"its forward reads the global {name}, which may change")
        self.globals[module, name] = value

    def _follow_value(self, value: Any, attributes: set[str]) -> bool:
        """Follow a function, or those of a module; whether ``value`` is something that stays what it is."""
        if isinstance(value, types.FunctionType):
            if value.__module__ is None or value.__module__.split(".")[0] not in _NOT_FOLLOWED:
                self.follow(value)
            return True
        if isinstance(value, types.ModuleType):
            if value.__name__.split(".")[0] not in _NOT_FOLLOWED:
                for name in attributes & set(vars(value)):
                    self._follow_global(vars(value), name, attributes)
            return True
        return callable(value) and not isinstance(value, nn.Module)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def _asked(code: types.CodeType) -> tuple[set[str], set[str], set[str]]:
    """The globals that a function asks for, the attributes of ``self``, and those of anything else."""
    names: set[str] = set()
    own: set[str] = set()
    other: set[str] = set()
    for inner in _codes(code):
        before: Any = None
        for one in dis.get_instructions(inner):
            if one.opname in _BLOCKS:
                raise Unreadable("its forward uses a with block")
            if one.opname == "STORE_GLOBAL":
                raise Unreadable(f"its forward changes the global {one.argval}")
            if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                names.add(one.argval)
            elif one.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
                (own if before == "self" else other).add(one.argval)
            before = one.argval[-1] if isinstance(one.argval, tuple) and one.argval else one.argval
    return names, own, other


def look(block: nn.Module) -> tuple[Surroundings, frozenset[types.CodeType]]:
    """What the forward of ``block`` asks, and the code of it; raises :class:`Unreadable`."""
    code = _Code(block)
    lists = {
        path: list(module._modules)
        for path, module in code.below
        if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential) and _in_lists(block, path)
    }
    kinds: dict[str, type] = {}
    if "type" in code.builtins:
        raise Unreadable("its forward asks for the type of something, which may change from call to call")
    if code.builtins & {"isinstance", "hasattr", "getattr"}:
        kinds = {path: type(module) for path, module in code.below if _in_lists(block, path)}
    every = bool(code.builtins & {"getattr", "hasattr", "vars"}) or "__dict__" in code.own | code.other
    attributes = [("", name, value) for name, value in _notes(block, None if every else code.own | code.other)]
    for path, module in code.below:
        attributes += [(path, name, value) for name, value in _notes(module, code.other)]
        if "training" in code.other:
            attributes.append((path, "training", module.training))
    absent = {name: child is None for name, child in block._modules.items()}
    found = tuple((*key, value) for key, value in code.globals.items())
    return Surroundings(absent, lists, kinds, tuple(attributes), found), frozenset(code.seen)


def _in_lists(block: nn.Module, path: str) -> bool:
    """Whether a module is a child of ``block``, or of lists in it."""
    outer = path.split(".")[:-1]
    return all(
        isinstance(block.get_submodule(".".join(outer[: count + 1])), nn.ModuleList | nn.ModuleDict | nn.Sequential)
        for count in range(len(outer))
    )


def _notes(module: nn.Module, names: set[str] | None) -> Iterator[tuple[str, Any]]:
    """Attributes of these names, or all, that a module or its class has."""
    state = module.__dict__
    bases = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    for name in {*state, *(name for base in bases for name in vars(base))} if names is None else names:
        if name in _OF_ALL_MODULES or name == "forward":
            continue
        if name in state:
            if not isinstance(state[name], Tensor | nn.Module):
                yield name, note(state[name])
            continue
        base = next((base for base in bases if name in vars(base)), None)
        if base is None or base.__module__.startswith("torch.") or name.startswith("__"):
            continue
        if isinstance(vars(base)[name], (*_PLAIN, list, tuple, dict)):
            yield name, note(vars(base)[name])
