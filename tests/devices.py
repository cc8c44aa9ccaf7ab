"""Where the tests run: the devices that exist, and the CPU as a stand-in for a GPU under Triton's interpreter."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

# A device, and the backend to ask for on it; None keeps the wish of the environment. A GPU's ops run on each of its two.
PLACES = [("cpu", None)] + [("cuda", backend) for backend in ("cuda", "triton") if torch.cuda.is_available()]

INTERPRETER = {"TRITON_INTERPRET": "1", "UNET_FAST_BACKEND": "triton"}


def _version(package: str) -> tuple[int, ...] | None:
    """Major and minor version, None where the package is not installed."""
    try:
        return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return None


def run_interpreted(*pytest_arguments: str, cases: int = 10) -> None:
    """Run tests again, with Triton's kernels interpreted on CPU tensors; fails with the last lines of their output.

    ``cases``: how many are fuzzed of each op, where tests/test_fuzz.py is among them.

    A process of its own: Triton decides at the definition of a kernel whether it will be compiled or interpreted.
    """
    triton, numpy = _version("triton"), _version("numpy")
    if triton is None:
        pytest.skip("Triton kernels are not interpreted: triton is not installed")
    if triton < (3, 7) and numpy >= (2, 4):
        pytest.skip(f"Triton kernels are not interpreted: the interpreter of {triton=} fails with {numpy=}")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *pytest_arguments],
        env={**os.environ, **INTERPRETER, "FUZZ_CASES": str(cases)},
        cwd=Path(__file__).resolve().parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:]
    assert " passed" in result.stdout, result.stdout[-6000:]
