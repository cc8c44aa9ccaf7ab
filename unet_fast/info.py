"""``unet-fast info``: versions, what was built, and which backend each op uses, and why not another."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import torch
from rich.console import Console
from rich.table import Table

import unet_fast
from unet_fast.ops import _backends, _convolution, _library


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _numpy_module() -> str:
    try:
        import unet_fast._numpy as _numpy
    except ImportError as error:
        return f"no ({error})"
    return f"yes, {_numpy.threads()} threads"


def _convolution_line() -> str:
    """The algorithm that is asked for, and what runs where it is Winograd's."""
    if _library.CPU.error is not None:
        return "direct, by torch"
    return f"{_convolution.wish()} (Winograd's F(4x4, 3x3): {_convolution.rule()})"


def facts() -> dict[str, str]:
    """Name and value of every line of the upper table."""
    built = _library.build_info()
    capability_name = torch.backends.cpu.get_cpu_capability()
    cpu, cuda = _library.CPU, _library.CUDA
    lines = {
        "unet_fast": unet_fast.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, CPU {capability_name}",
        "numpy, triton": f"{_version('numpy')}, {_version('triton')}",
        "built with": f"torch {built.get('torch', 'unknown')}",
        "torch CPU operators": cpu.error or f"yes ({cpu.path.name})",
        "torch CUDA operators": cuda.error or f"yes ({cuda.path.name})",
        "CUDA build": f"{'yes' if built.get('cuda') else 'no'} ({built.get('cuda_reason', 'not built')})",
        "NumPy module": _numpy_module(),
        "backend asked for": _backends.wish(),
        "3x3 convolutions, CPU": _convolution_line(),
    }
    if torch.cuda.is_available():
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        lines["GPU"] = f"{name}, compute capability {capability[0]}.{capability[1]}, CUDA {torch.version.cuda}"
    else:
        lines["GPU"] = "none that torch can use" + ("" if torch.version.cuda else " (this torch is a CPU build)")
    return lines


def print_info() -> None:
    """Print the versions and the table of backends."""
    console = Console(file=sys.stdout)
    table = Table(show_header=False, box=None)
    for name, value in facts().items():
        table.add_row(name, value)
    console.print(table)
    ops = Table("op", "device", "backend", "why not another")
    for op in sorted(_backends.KERNELS):
        for device in ("cpu", "cuda"):
            chosen = _backends.explain(op, device)
            ops.add_row(op, device, chosen.backend, "; ".join(chosen.reasons) or "-")
    console.print(ops)


if __name__ == "__main__":
    print_info()
