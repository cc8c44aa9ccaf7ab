"""Which implementation of an op runs: a registry, the user's wish, and the reasons, which ``unet-fast info`` prints.

``UNET_FAST_BACKEND=auto|cpp|cuda|triton|reference`` (or :func:`use_backend`) states the wish. ``auto`` takes the first
backend that can do the work and may fall back to the slow reference, with one warning; a backend that was asked for by
name and cannot do the work raises :class:`~unet_fast.errors.BackendError`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from unet_fast.errors import BackendError, InputError
from unet_fast.ops import _library

NAMES = ("auto", "cpp", "cuda", "triton", "reference")

# op -> the backends that have a kernel for it; every op has a reference
KERNELS: dict[str, tuple[str, ...]] = {}

_wish = os.environ.get("UNET_FAST_BACKEND", "auto")


def register(op: str, *backends: str) -> None:
    """Declare that ``op`` has kernels for these backends, besides the reference."""
    KERNELS[op] = (*backends, "reference")


def why_not(backend: str, op: str, device_type: str) -> str | None:
    """None when ``backend`` can run ``op`` on this kind of device, else the reason why not."""
    if backend not in KERNELS[op]:
        return f"there is no {backend} kernel for {op} in this version"
    if backend == "cpp":
        if device_type != "cpu":
            return f"cpp kernels run on the CPU, the tensors are on {device_type}"
        return _library.CPU.error
    return None


def choose(op: str, device_type: str) -> str:
    """The backend that runs ``op`` for tensors on ``device_type``."""
    if _wish not in NAMES:
        raise InputError(f"UNET_FAST_BACKEND is {_wish!r}, expected one of {', '.join(NAMES)}")
    if _wish != "auto":
        reason = why_not(_wish, op, device_type)
        if reason is not None:
            raise BackendError(f"the backend {_wish!r} was asked for, but {reason}")
        return _wish
    for backend in KERNELS[op]:
        if why_not(backend, op, device_type) is None:
            if backend == "reference":
                _warn_slow(op, device_type)
            return backend
    raise BackendError(f"no backend can run {op} on {device_type}")


@dataclass(frozen=True)
class Choice:
    """The backend that would run an op, and why no faster or asked-for one does."""

    backend: str
    reasons: tuple[str, ...]


def explain(op: str, device_type: str) -> Choice:
    """What :func:`choose` would take, without raising; ``none`` when it would raise."""
    reasons = {backend: why_not(backend, op, device_type) for backend in NAMES[1:]}
    others = tuple(reason for reason in reasons.values() if reason)
    if _wish != "auto":
        return Choice(_wish if reasons.get(_wish, "unknown") is None else "none", others)
    return Choice(next(backend for backend in KERNELS[op] if reasons[backend] is None), others)


def wish() -> str:
    """The backend asked for, ``auto`` by default."""
    return _wish


_warned: set[tuple[str, str]] = set()


def _warn_slow(op: str, device_type: str) -> None:
    if (op, device_type) in _warned:
        return
    _warned.add((op, device_type))
    reasons = [why_not(backend, op, device_type) for backend in KERNELS[op] if backend != "reference"]
    warnings.warn(
        f"unet_fast: {op} on {device_type} runs the slow reference: {'; '.join(r for r in reasons if r)}",
        stacklevel=4,
    )


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the ``with`` block on this backend. Raises ``InputError`` for an unknown name."""
    global _wish
    if name not in NAMES:
        raise InputError(f"backend is {name!r}, expected one of {', '.join(NAMES)}")
    before, _wish = _wish, name
    try:
        yield
    finally:
        _wish = before
