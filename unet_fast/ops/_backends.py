"""Which implementation of an op runs: a registry, the user's wish, and the reasons, which ``unet-fast info`` prints.

``UNET_FAST_BACKEND=auto|cpp|cuda|triton|reference`` (or :func:`use_backend`) states the wish. ``auto`` takes the first
backend that can do the work and may fall back to the slow reference, with one warning; a backend that was asked for by
name and cannot do the work raises :class:`~unet_fast.errors.BackendError`.

An op has one name, one schema, one fake and one autograd formula, whatever its backend. The compiled libraries register
their kernels when they are loaded. A Triton kernel takes the place of the CUDA library's (or fills it, where there is
none) while it is the choice, and gives it back: so a call through ``torch.ops``, a compiled graph and an exported
program all run what was chosen, and the compiled kernels are reached without a detour through Python.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unet_fast.errors import BackendError, InputError
from unet_fast.ops import _library, _protocol

NAMES = ("auto", "cpp", "cuda", "triton", "reference")

# op -> the backends that have a kernel for it in this installation, the one that "auto" prefers first
KERNELS: dict[str, tuple[str, ...]] = {}

# What benchmarks/backends.py writes out of the result files.
MEASURED_FILE = Path(__file__).with_name("measured.json")
_TABLE = json.loads(MEASURED_FILE.read_text())
# op -> the faster of "cuda" and "triton" where both were measured on a GPU; for all others the CUDA library goes first
MEASURED: dict[str, str] = {op: entry["fastest"] for op, entry in _TABLE["ops"].items()}
# whether networks of fused layers were measured to be faster on a GPU than torch's own layers
FUSED_IS_FASTER: bool = _TABLE["networks"] is not None and _TABLE["networks"]["fused over plain"] < 1
# from how many tiles on our 3x3 convolution was measured to be faster on a CPU than torch's: least_tiles in _convolution.py
CONVOLUTION: dict[str, Any] = _TABLE["convolution"]

_HAS_TRITON = importlib.util.find_spec("triton") is not None
# as Triton reads it; its kernels then run on the CPU, slowly, which is how they are tested without a GPU
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
_KEYS = {"cuda": "CUDA"} | ({"cpu": "CPU"} if _INTERPRETED else {})

_wish = os.environ.get("UNET_FAST_BACKEND", "auto")
# (op, device type) -> the registrations of its Triton kernels, as long as they are the ones that run
_installed: dict[tuple[str, str], torch.library.Library] = {}


# op -> its entries in torch's dispatcher
_OPERATORS: dict[str, tuple[str, ...]] = {}


def register(op: str, operators: tuple[str, ...]) -> None:
    """Find out which backends have kernels for ``op``, besides the reference, and make the chosen one run.

    ``operators``: its entries in torch's dispatcher, which all change their backend together.
    """
    _OPERATORS[op] = operators
    found = {
        "cpp": _library.CPU.error is not None or _library.has_kernel(op, "CPU"),
        "cuda": _library.has_kernel(op, "CUDA"),
        "triton": importlib.util.find_spec(f"unet_fast.triton.{op}") is not None,
    }
    order = ["cpp", *([MEASURED[op]] if op in MEASURED else []), "cuda", "triton"]
    KERNELS[op] = (*(name for name in dict.fromkeys(order) if found[name]), "reference")
    _install(op)


def why_not(backend: str, op: str, device_type: str) -> str | None:
    """None when ``backend`` can run ``op`` on this kind of device, else the reason why not."""
    if device_type == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device" + (", and this torch is a CPU build" if torch.version.cuda is None else "")
    return _why_no_kernel(backend, op, device_type)


def _why_no_kernel(backend: str, op: str, device_type: str) -> str | None:
    """As :func:`why_not`, for tensors that exist, so that the device does too."""
    if backend == "cuda" and _library.CUDA.error is not None:
        return _library.CUDA.error
    if backend not in KERNELS[op]:
        return f"there is no {backend} kernel for {op} in this version"
    if backend == "cpp":
        if device_type != "cpu":
            return f"cpp kernels run on the CPU, the tensors are on {device_type}"
        return _library.CPU.error
    if backend == "cuda" and device_type != "cuda":
        return f"cuda kernels run on NVIDIA GPUs, the tensors are on {device_type}"
    if backend == "triton":
        if not _HAS_TRITON:
            return "triton is not installed (pip install triton)"
        if device_type == "cpu" and not _INTERPRETED:
            return "Triton kernels run on GPUs; on the CPU only with TRITON_INTERPRET=1"
        if device_type not in _KEYS:
            return f"Triton kernels run on GPUs, the tensors are on {device_type}"
        return _library.CPU.error  # it holds the schemas
    return None


def choose(op: str, device_type: str) -> str:
    """The backend that runs ``op`` for tensors on ``device_type``; the reference where it is transformed or traced."""
    if _wish not in NAMES:
        raise InputError(f"UNET_FAST_BACKEND is {_wish!r}, expected one of {', '.join(NAMES)}")
    if _protocol.transformed():
        return "reference"
    if device_type == "meta" and _library.CPU.error is None:
        return "cpp"  # whose fake it is that answers
    if _wish != "auto":
        reason = _why_no_kernel(_wish, op, device_type)
        if reason is not None:
            raise BackendError(f"the backend {_wish!r} was asked for, but {reason}")
        return _wish
    for backend in KERNELS[op]:
        if _why_no_kernel(backend, op, device_type) is None:
            if backend == "reference":
                _warn_slow(op, device_type)
            return backend
    raise BackendError(f"no backend can run {op} on {device_type}")


def runs_compiled(op: str, device_type: str) -> bool:
    """Whether compiled kernels would run ``op`` for tensors that exist on ``device_type``; asks no driver."""
    wished = KERNELS[op][:-1] if _wish == "auto" else (_wish,)
    return any(name != "reference" and _why_no_kernel(name, op, device_type) is None for name in wished)


@dataclass(frozen=True)
class Choice:
    """The backend that would run an op, and why no faster or asked-for one does."""

    backend: str
    reasons: tuple[str, ...]


def explain(op: str, device_type: str) -> Choice:
    """What :func:`choose` would take, without raising; ``none`` when it would raise."""
    reasons = {backend: why_not(backend, op, device_type) for backend in NAMES[1:]}
    others = tuple(dict.fromkeys(reason for reason in reasons.values() if reason))
    if _wish != "auto":
        return Choice(_wish if reasons.get(_wish, "unknown") is None else "none", others)
    return Choice(next((backend for backend in KERNELS[op] if reasons[backend] is None), "none"), others)


def wish() -> str:
    """The backend asked for, ``auto`` by default."""
    return _wish


_warned: set[tuple[str, str]] = set()


def _warn_slow(op: str, device_type: str) -> None:
    if (op, device_type) in _warned:
        return
    _warned.add((op, device_type))
    reasons = [_why_no_kernel(backend, op, device_type) for backend in NAMES[1:-1]]
    warnings.warn(
        f"unet_fast: {op} on {device_type} runs the slow reference: {'; '.join(r for r in reasons if r)}",
        stacklevel=4,
    )


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the ``with`` block on this backend. Raises ``InputError`` for an unknown name."""
    if name not in NAMES:
        raise InputError(f"backend is {name!r}, expected one of {', '.join(NAMES)}")
    before = _wish
    _set_wish(name)
    try:
        yield
    finally:
        _set_wish(before)


def _set_wish(name: str) -> None:
    global _wish
    _wish = name
    for op in KERNELS:
        _install(op)


def _install(op: str) -> None:
    """Let the Triton kernels of ``op`` run where they are the choice, the compiled ones everywhere else."""
    for device_type, key in _KEYS.items():
        able = [name for name in KERNELS[op][:-1] if _why_no_kernel(name, op, device_type) is None]
        # a wish for the reference leaves the best kernels in place, for the backward of what ran before
        use = (_wish if _wish in able else next(iter(able), None)) == "triton"
        library = _installed.get((op, device_type))
        if use and library is None:
            library = torch.library.Library("unet_fast", "IMPL")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Warning only once for all operators")  # to override is the purpose
                for name in _OPERATORS[op]:
                    library.impl(name, _triton_kernel(op, name), key, allow_override=True)
            _installed[op, device_type] = library
        elif not use and library is not None:
            library._destroy()
            del _installed[op, device_type]


def _triton_kernel(op: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of unet_fast/triton/<op>.py, imported (and Triton with it) at the first call."""
    kernel: Callable[..., Any] | None = None

    def run(*arguments: Any) -> Any:
        nonlocal kernel
        if kernel is None:
            kernel = importlib.import_module(f"unet_fast.triton.{op}").KERNELS[name]
        first = arguments[0][0] if isinstance(arguments[0], list | tuple) else arguments[0]
        if first.device.type == "cuda" and first.device.index != torch.cuda.current_device():
            with torch.cuda.device(first.device):  # Triton launches on the current device
                return kernel(*arguments)
        return kernel(*arguments)

    return run
