"""A forward that stands in for that of one module: an attribute of the instance, which its class never hears of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as _module

from unet_fast.models.fusion import untouched
from unet_fast.ops import _protocol

_REPLICATE = "_replicate_for_data_parallel"


class Patch:
    """What lies in ``module.forward`` of a replaced module; copies and pickles with it, and belongs to the copy then.

    ``module.state_dict()``, its hooks and its parameters know nothing of it. Where the fast form has no meaning (a
    transform of torch.func, forward-mode derivatives, tracing, export), the module's own forward runs.
    """

    words: tuple[str, ...] = ()  # what it joins besides layers in a row

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _mode is not None:
            return _mode(self, args, kwargs)
        if wants_plain(args):
            return self.plain(*args, **kwargs)
        return self.fast(*args, **kwargs)

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward."""
        return type(self.module).forward(self.module, *args, **kwargs)

    def fast(self, *args: Any, **kwargs: Any) -> Any:
        """The same, faster."""
        raise NotImplementedError

    def row(self) -> Sequence[nn.Module] | None:
        """The layers that the module calls in a row and does nothing else, or None where it does more."""
        return None

    def rows(self) -> list[Sequence[nn.Module]]:
        """The rows of layers that it joins, for the report."""
        row = self.row()
        return [] if row is None else [row]

    def install(self) -> None:
        """Put it in place."""
        self.module.__dict__["forward"] = self
        self.module.__dict__[_REPLICATE] = self.replica

    def remove(self) -> None:
        """Let the forward of the module's class be seen again."""
        del self.module.__dict__["forward"]
        self.module.__dict__.pop(_REPLICATE, None)

    def replica(self) -> nn.Module:
        """A copy of the module, for nn.DataParallel, which copies its attributes one by one; with a patch of its own."""
        module = type(self.module)._replicate_for_data_parallel(self.module)
        patch = copy.copy(self)
        patch.module = module
        patch.install()
        return module


# what runs in place of a patch inside of :func:`instead`
_mode: Callable[[Patch, Any, Any], Any] | None = None


@contextmanager
def instead(mode: Callable[[Patch, Any, Any], Any] | None) -> Iterator[None]:
    """Call ``mode(patch, args, kwargs)`` in place of every patch inside the ``with`` block; None: the patches."""
    global _mode
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def plainly(patch: Patch, args: Any, kwargs: Any) -> Any:
    """For :func:`instead`: the network as it was."""
    return patch.plain(*args, **kwargs)


def patch_of(module: nn.Module) -> Patch | None:
    """The patch that runs in place of this module's forward."""
    found = module.__dict__.get("forward")
    return found if isinstance(found, Patch) else None


def bypassable(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether ``layer`` is still exactly one of these kinds, with the forward of its class, or ours, not compiled by itself, and nobody listens."""
    forward = layer.__dict__.get("forward")
    return (
        untouched(layer, *kinds)
        and (forward is None or isinstance(forward, Patch))
        and layer._compiled_call_impl is None
        and not _module._has_any_global_hook()
    )


def wants_plain(args: Sequence[Any]) -> bool:
    """Whether somebody looks at, or transforms, what is computed, so that torch's own operations should be seen."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return (
        _protocol.transformed()
        or any(isinstance(arg, fx.Proxy) for arg in args)
        or any(isinstance(arg, Tensor) and arg.is_sparse for arg in args)
    )
