"""The places where the kernels' tests run: ``pytest --place NAME``.

A test file that asks questions of kernels has ``pytestmark = pytest.mark.kernels``. Such a file runs as it is in every
place, with the kernels of that place behind the operators of torch. What a place cannot do, or would take too long for, a
test or one of its parameters says with ``needs(...)``; how many were left out there, and why, stands at the end of the run.
"""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest

from tests import interpreter

# What a test or a parameter may need, and what is said where a place does not have it.
CAPABILITIES = {
    "errors": "kernels that look at values and raise",
    "host": "code of the host: arguments, backends, NumPy, layers",
    "threads": "loops over the threads of a CPU",
    "cpp": "kernels that exist in C++ only",
    "compiler": "torch.compile",
    "numeric": "numeric derivatives, hundreds of launches",
    "speed": "more work than one launch after the other does in time",
    "large": "more work than one thread after the other does in time",
    "classes": "more classes or channels than the kernels of a GPU take",
}

_OF_A_GPU = {"errors", "host", "threads", "cpp", "classes"}
LACKS: dict[str, set[str]] = {
    "cpu": set(),
    # what cannot run without a GPU is in the files themselves: CUDA graphs, streams
    "cuda": _OF_A_GPU - {"host", "classes"},
    # the CUDA kernels and bindings, compiled for the CPU against a stand-in for CUDA's runtime (tests/cuda_emulation)
    "emulated": _OF_A_GPU | {"compiler", "large"},
    # the Triton kernels on CPU tensors, by Triton's interpreter
    "interpreted": _OF_A_GPU | {"numeric", "speed", "large"},
    # the C++ kernels built for the compiler's sanitizers (csrc/cpu/sanitize.py), which would check the compiler as well
    "sanitized": {"compiler"},
}

PLACE = "cpu"  # set by start()
_emulation: Any = None  # the library that puts the emulated kernels in place


def needs(*capabilities: str) -> pytest.MarkDecorator:
    """A mark for a test or a ``pytest.param``; see :data:`CAPABILITIES`."""
    assert set(capabilities) <= set(CAPABILITIES), capabilities
    return pytest.mark.needs(*capabilities)


def only(*names: str) -> pytest.MarkDecorator:
    """A mark for what is asked in these places and no other."""
    assert set(names) <= set(LACKS), names
    return pytest.mark.only(*names)


def has(capability: str) -> bool:
    """Whether the place can do this."""
    return capability not in LACKS[PLACE]


def require(capability: str) -> None:
    """Skip the running test, aloud, where the place does not have this."""
    if not has(capability):
        pytest.skip(f"left out of the place {PLACE!r}: {CAPABILITIES[capability]}")


def start(name: str) -> None:
    """Get the place ready, before anything of unet_fast is imported."""
    global PLACE
    PLACE = name
    if name == "interpreted":
        version = _version("triton")
        if version is None:
            raise pytest.UsageError("Triton kernels are not interpreted: triton is not installed")
        if version < (3, 7) and _version("numpy") >= (2, 4):
            raise pytest.UsageError(f"the interpreter of Triton {version} fails with NumPy {_version('numpy')}")
        # Triton decides at the definition of a kernel whether it will be compiled or interpreted
        os.environ.update(TRITON_INTERPRET="1", UNET_FAST_BACKEND="triton")
        if version >= (3, 7):  # whose interpreter it knows
            interpreter.hurry()
    if name == "emulated":
        from tests import cuda_emulation

        if cuda_emulation.COMPILER is None:
            raise pytest.UsageError("the CUDA kernels were not run on the CPU: no C++ compiler")
        _emulate()


def _version(package: str) -> Any:
    """Major and minor version, None where the package is not installed."""
    try:
        return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return None


def _emulate() -> None:
    import torch

    from tests.cuda_emulation import load

    global _emulation
    warnings.filterwarnings("ignore", "Warning only once for all operators")  # to override is the purpose
    _emulation = torch.library.Library("unet_fast", "IMPL")
    for operator in load():
        kernel = getattr(torch.ops.unet_fast_emulated, operator).default
        _emulation.impl(operator, kernel, "CPU", allow_override=True)


def wish(device: str) -> str:
    """The backend to ask for there: the C++ kernels by name on a CPU, where a free choice leaves small maps to torch."""
    from unet_fast.ops import _backends

    free = _backends.wish() == "auto" and device.partition(":")[0] == "cpu"
    return "cpp" if free else _backends.wish()


class cpp_kernels(AbstractContextManager[None]):
    """The C++ kernels behind the operators, in a place where others are: the truth for what is compared bit by bit."""

    def __enter__(self) -> None:
        from unet_fast.ops import use_backend

        if PLACE == "emulated":
            _emulation._destroy()
        self.backend = use_backend("cpp")
        self.backend.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.backend.__exit__(*error)
        if PLACE == "emulated":
            _emulate()


def kernels() -> Any:
    """The kernels of the place itself, below the public functions: an attribute for each operator."""
    import torch

    if PLACE == "emulated":
        return torch.ops.unet_fast_emulated
    if PLACE != "interpreted":
        return torch.ops.unet_fast
    import importlib

    from unet_fast.ops._backends import KERNELS

    able = [name for name, backends in KERNELS.items() if "triton" in backends]
    files = [importlib.import_module(f"unet_fast.triton.{name}").KERNELS for name in able]
    return SimpleNamespace(**{name: kernel for functions in files for name, kernel in functions.items()})


def opcheck(operator: Any, arguments: Any) -> None:
    """torch's questions about an operator's registration; the one of the compiler only where the place has one."""
    import torch

    questions = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if has("compiler"):
        questions.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, arguments, test_utils=questions)


def left_out(item: pytest.Item) -> str | None:
    """Why a test does not run in this place, or None."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    place = "cuda" if params.get("place", ("",))[0] == "cuda" else PLACE  # a GPU runs its tests in every run
    if any(place not in mark.args for mark in item.iter_markers("only")):
        return "what other places are asked"
    if PLACE == "cuda" and place != "cuda":
        return "what runs on the CPU"
    if PLACE == "cpu":
        return None
    if item.get_closest_marker("kernels") is None:
        return "in a file of kernels, but not asked of them"
    missing = {name for mark in item.iter_markers("needs") for name in mark.args} & LACKS[PLACE]
    return ", ".join(CAPABILITIES[name] for name in CAPABILITIES if name in missing) or None


def slow(*values: Any) -> list[Any]:
    """Values of a parameter that need speed."""
    return [pytest.param(value, marks=needs("speed")) for value in values]
