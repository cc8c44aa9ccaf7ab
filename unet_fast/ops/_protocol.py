"""How public operators meet tensors that are not torch's own, and code that looks at what is computed.

As torch's own functions do: a subclass of ``torch.Tensor`` is asked (``__torch_function__``), so that its results are of
its kind, and ``torch.fx`` notes one call. Transforms that act on operations one by one (``vmap``, ``grad`` and ``jvp`` of
torch.func, forward-mode derivatives, ``torch.jit.trace``) see the reference, which consists of torch's operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import fx

F = TypeVar("F", bound=Callable[..., Any])


def transformed() -> bool:
    """Whether operations are transformed or traced one by one right now."""
    if torch.compiler.is_compiling():
        return False
    return (
        torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


# nothing to ask and nothing to look into: most calls, whose maps may be small enough for the questions to take as long as the work
_OWN = frozenset((torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str))


def _all_own(values: Iterable[Any]) -> bool:
    return _OWN.issuperset(map(type, values))


def is_watched() -> bool:
    """Whether something sees every call, whatever its arguments are."""
    return torch._C._is_tracing() or torch._C._is_torch_function_mode_enabled()


def public(function: F) -> F:
    """Let a public operator take part in ``__torch_function__`` and ``torch.fx``."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or (_all_own(args) and _all_own(kwargs.values()) and not is_watched()):
            return function(*args, **kwargs)
        values = tuple(_values((*args, *kwargs.values())))
        for value in values:
            if isinstance(value, fx.Proxy):
                return value.tracer.create_proxy("call_function", call, args, kwargs)
        if torch.overrides.has_torch_function(values):
            return torch.overrides.handle_torch_function(call, values, *args, **kwargs)
        if torch._C._is_tracing():  # where the numbers in a shape are tensors
            kwargs = {name: _whole(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _whole(value: Any) -> Any:
    """Sizes as integers."""
    if isinstance(value, tuple | list):
        return type(value)(map(_whole, value)) if type(value) in (tuple, list) else tuple(map(_whole, value))
    if isinstance(value, torch.Tensor) and value.dim() == 0 and value.dtype == torch.int64:
        return int(value)
    return value


def _values(args: tuple[Any, ...]) -> Iterator[Any]:
    """The tensors, or what stands for them, among arguments and in lists of them."""
    for arg in args:
        if isinstance(arg, list | tuple):
            yield from _values(tuple(arg))
        elif isinstance(arg, torch.Tensor | fx.Proxy):
            yield arg
