"""Where the tests run: the devices that exist, and the CPU as a stand-in for a GPU under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

# A device, and the backend to ask for on it; None keeps the wish of the environment. A GPU's ops run on each of its two.
PLACES = [("cpu", None)] + [("cuda", backend) for backend in ("cuda", "triton") if torch.cuda.is_available()]

INTERPRETER = {"TRITON_INTERPRET": "1", "UNET_FAST_BACKEND": "triton"}


def run_interpreted(*pytest_arguments: str) -> None:
    """Run tests again, with Triton's kernels interpreted on CPU tensors; fails with the last lines of their output.

    A process of its own: Triton decides at the definition of a kernel whether it will be compiled or interpreted.
    """
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *pytest_arguments],
        env={**os.environ, **INTERPRETER},
        cwd=Path(__file__).resolve().parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:]
    assert " passed" in result.stdout, result.stdout[-6000:]
