"""The one file that a run leaves: conditions, and a record for each item, in results/<gpu>/gpu_check.json and in $OUT."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, machine_name
from benchmarks.gpu_check.runner import ROOT
from unet_fast.errors import InputError
from unet_fast.files import atomic_path

NAME = "gpu_check.json"
CLOCKS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"
PACKAGES = {"triton", "numpy", "scipy", "hypothesis", "pytest", "cupy-cuda13x", "cupy-cuda12x", "monai", "kornia"}


def place(device: str) -> Path:
    """Where the report goes: among the results, but not where no GPU was asked."""
    return (RESULTS / machine_name(device) if device == "cuda" else ROOT / "build") / NAME


def clocks() -> str:
    """What nvidia-smi says of the GPU now."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi here"
    query = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


def versions() -> dict[str, str]:
    """Of what the figures depend on, besides :func:`benchmarks.common.conditions`."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"] in PACKAGES}
    nvcc = shutil.which("nvcc")
    listed = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout if nvcc else ""
    release = re.search(r"release ([\d.]+)", listed)
    return {**found, "cuda of torch": str(torch.version.cuda), "nvcc": release[1] if release else "not found"}


def save(path: Path, report: dict[str, Any]) -> None:
    """Write the report, and a copy into the folder that the variable OUT names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(report, indent=None, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n"
        )
    folder = os.environ.get("OUT")
    if folder and path.resolve().parent != Path(folder).resolve():
        shutil.copy(path, folder)


def earlier(path: Path) -> list[dict[str, Any]]:
    """The records of a report that a run goes on from. Raises ``InputError`` when the file is none."""
    try:
        return list(json.loads(path.read_text())["items"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the report of an earlier gpu-check ({error})") from error
