"""In inference on a CPU a network's operators are noted once for each size of images, and then called one after the other.

Between two operators a network asks many questions: which junctions to fuse, which algorithm, whether weights or layers
have changed. By the time they are asked again a convolution has emptied the processor's caches, so that they take 5 ms of
the 92 that ``uf.UNet(base_channels=32)`` needs for 380 x 380 pixels; the operators alone, with one look at everything that
the answers depend on, less than 1.

The first forward pass of a size runs as it always does, the second one is noted, and later ones replay what was noted, as
long as nothing changes that can be seen: layers, their attributes, hooks, modes, parameters (identity, version, place) and
wishes. What a network reads out of tensors, such as the fingerprint of weights, is read again and compared.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from unet_fast.nn import folding
from unet_fast.ops import _backends, _convolution, _protocol
from unet_fast.ops._tensors import autocasts

Output = TypeVar("Output")

MOST_SIZES = 8  # of one network that are remembered
_OURS = ("torch.nn.modules.", "unet_fast.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CONTENTS = ("_modules", "_parameters", "_buffers")


class _Changed(Exception):
    """A number that was read from a tensor is another one now."""


class _Step:
    """A call of an operator: which values it takes, and where its results go."""

    def __init__(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.places: list[tuple[int, int]] = []  # (argument, value)
        self.lists: list[tuple[int, list[int]]] = []  # (argument, values of a list of tensors)
        self.results: list[int] = []
        self.guard: Any = None  # what it read, if it did
        self.last: list[int] = []  # values that nobody needs any more

    def used(self) -> list[int]:
        """The values that it takes."""
        return [value for _, value in self.places] + [value for _, values in self.lists for value in values]


class _Notes(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self, image: Tensor, constants: dict[int, Tensor]) -> None:
        super().__init__()
        self.constants = constants  # by id: tensors that are there before the forward pass and after it
        self.values: list[Tensor | None] = [None]  # the constants at their places, after the image
        self.place = WeakIdKeyDictionary()
        self.place[image] = 0
        self.steps: list[_Step] = []
        self.clear = True

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        step = _Step(function, list(args), kwargs or {})
        for index, argument in enumerate(args):
            if isinstance(argument, Tensor):
                step.places.append((index, self._value(argument)))
                step.args[index] = None
            elif isinstance(argument, list | tuple) and any(isinstance(item, Tensor) for item in argument):
                step.lists.append((index, [self._value(item) for item in argument]))
                step.args[index] = None
        self.clear &= not any(isinstance(argument, Tensor) for argument in step.kwargs.values())
        results = function(*args, **step.kwargs)
        if any(results is argument for argument in args) and not function._schema.is_mutable:
            return results  # such as a dropout that does nothing
        listed = results if isinstance(results, list | tuple) else [results]
        if all(isinstance(result, Tensor) for result in listed):
            step.results = [self._new(result) for result in listed]
        elif results is not None:
            step.guard = results
        self.steps.append(step)
        return results

    def _value(self, tensor: Any) -> int:
        found = self.place.get(tensor) if isinstance(tensor, Tensor) else None
        if found is not None:
            return int(found)
        self.clear &= id(tensor) in self.constants
        value = self._new(tensor) if isinstance(tensor, Tensor) else 0
        if id(tensor) in self.constants:
            self.values[value] = tensor
        return value

    def _new(self, tensor: Tensor) -> int:
        self.place[tensor] = len(self.values)
        self.values.append(None)
        return len(self.values) - 1


class _Replay:
    """What was noted, ready to be called."""

    def __init__(self, notes: _Notes, result: int) -> None:
        self.values, self.result, self.steps = notes.values, result, notes.steps
        needed = {result, *(value for value, tensor in enumerate(self.values) if tensor is not None)}
        for step in reversed(self.steps):
            step.last = [value for value in {*step.used(), *step.results} if value not in needed]
            needed.update(step.last)

    def __call__(self, image: Tensor) -> Tensor:
        values: list[Any] = self.values.copy()
        values[0] = image
        with torch._C._AutoDispatchBelowAutograd():  # nothing is differentiated
            for step in self.steps:
                args = step.args.copy()
                for index, value in step.places:
                    args[index] = values[value]
                for index, items in step.lists:
                    args[index] = [values[value] for value in items]
                results = step.function(*args, **step.kwargs)
                if len(step.results) == 1:
                    values[step.results[0]] = results[0] if type(results) in (list, tuple) else results
                elif step.results:
                    for value, tensor in zip(step.results, results, strict=True):
                        values[value] = tensor
                elif step.guard is not None and results != step.guard:
                    raise _Changed
                del args, results
                for value in step.last:
                    values[value] = None
        found: Tensor = values[self.result]
        return found


class _Network:
    """A network as it was, and what was noted of it. Holds its parts, never the network itself, whose end is its own."""

    def __init__(self, net: nn.Module) -> None:
        self.parts = [module for module in net.modules() if module is not net]
        self.kinds = [type(net), *map(type, self.parts)]
        states = [module.__dict__ for module in net.modules()]
        self.hooks = [state[name] for state in states for name in _HOOKS]
        self.states = states + [state[name] for state in states for name in _CONTENTS]
        self.before = [state.copy() for state in self.states]
        self.tensors = [*net.parameters(), *net.buffers()]
        self.versions = _convolution.versions_of(self.tensors)
        self.fit = (
            self.versions is not None
            and all(kind.__module__.startswith(_OURS) for kind in self.kinds)
            and not any(state["training"] or "forward" in state for state in states)
        )
        self.replays: dict[Any, _Replay | None] = {}  # None: of the next forward pass
        self.headers: list[Any] = []

    def is_same(self, net: nn.Module) -> bool:
        """Whether nothing has changed since."""
        try:
            same = all(map(operator.eq, self.states, self.before))
        except (RuntimeError, ValueError):  # other tensors or arrays than before
            return False
        return (
            same
            and [type(net), *map(type, self.parts)] == self.kinds
            and not any(header[_convolution.STALE] for header in self.headers)
            and self.versions == _convolution.versions_of(self.tensors)
        )

    def note(self, compute: Callable[[Tensor], Output], image: Tensor) -> tuple[Output, _Replay | None]:
        """The result, and how to get it again; None where that cannot be told."""
        kept = _convolution.kept()
        constants = [*self.tensors, *(made for made, _ in kept), *folding.kept()]
        with _Notes(image, {id(tensor): tensor for tensor in constants}) as notes:
            result = compute(image)
        place = notes.place.get(cast(Tensor, result))
        if not notes.clear or place is None:
            return result, None
        used = {id(tensor) for tensor in notes.values if tensor is not None}
        self.headers += [header for made, header in kept if id(made) in used]
        return result, _Replay(notes, int(place))


_networks: WeakKeyDictionary[nn.Module, _Network] = WeakKeyDictionary()


def replayed(net: nn.Module, compute: Callable[[Tensor], Output], image: Tensor) -> Output:
    """``compute(image)``, which is a forward pass of ``net``, by replaying one that was noted where there is one.

    Outside of training mode the result must be one tensor.
    """
    if (
        type(image) is not Tensor
        or image.device.type != "cpu"
        or net.training
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or autocasts("cpu")
        or _protocol.transformed()
        or _protocol.is_watched()
        or torch._C._len_torch_dispatch_stack()
        or nn.modules.module._has_any_global_hook()
    ):
        return compute(image)
    network = _networks.get(net)
    if network is None or not network.is_same(net):
        network = _networks[net] = _Network(net)
    if not network.fit or any(network.hooks):  # somebody listens
        return compute(image)
    key = (
        image.shape, image.stride(), image.dtype, _convolution.wish(), _backends.wish(),
        os.environ.get("UNET_FAST_CPU_LEVEL"), torch.get_default_dtype(),
    )  # fmt: skip
    if key not in network.replays:
        if len(network.replays) >= MOST_SIZES:
            network.replays.pop(next(iter(network.replays)))
        network.replays[key] = None  # so that weights are transformed and folded before they are noted
        return compute(image)
    replay = network.replays[key]
    if replay is None:
        result, network.replays[key] = network.note(compute, image)
        network.fit = network.replays[key] is not None
        return result
    try:
        return cast(Output, replay(image))
    except _Changed:
        _networks.pop(net, None)
        return compute(image)
