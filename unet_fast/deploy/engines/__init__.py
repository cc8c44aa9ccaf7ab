"""Engines: what runs a network. :func:`create` makes one by name; ``auto`` is in :mod:`unet_fast.deploy.choose`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from unet_fast.checks import check_choice
from unet_fast.deploy.description import Description
from unet_fast.deploy.engines.base import Engine, Report
from unet_fast.deploy.extras import is_installed
from unet_fast.errors import BackendError
from unet_fast.models import SegmentationModel

__all__ = ["BACKENDS", "Engine", "PRECISIONS", "Report", "available", "create"]

BACKENDS = ("torch", "compile", "cuda-graph", "onnxruntime", "openvino")
PRECISIONS = ("float32", "bfloat16")
_ONLY_FLOAT32 = ("onnxruntime",)


def available(device: str | torch.device = "cpu") -> list[tuple[str, str]]:
    """(backend, precision) of what this machine can run on ``device``, as far as is known without loading any."""
    from unet_fast.train.config import fast_bfloat16

    target = torch.device(device)
    reduced = [False, True] if fast_bfloat16(target) else [False]
    found = [(name, PRECISIONS[half]) for name in ("torch", "compile") for half in reduced]
    if target.type == "cuda":
        return found + [("cuda-graph", PRECISIONS[half]) for half in reduced]
    exports = is_installed("onnx") and is_installed("onnxscript")
    if exports and is_installed("onnxruntime"):
        found.append(("onnxruntime", "float32"))
    if exports and is_installed("openvino"):
        found += [("openvino", PRECISIONS[half]) for half in reduced]
    return found


def create(
    model: SegmentationModel,
    description: Description,
    backend: str,
    precision: str = "float32",
    *,
    device: str | torch.device = "cpu",
    onnx: Path | None = None,
) -> Engine:
    """The engine ``backend`` for a network; ``onnx`` is its ONNX file where there is one already.

    Raises:
        InputError: an unknown backend or precision.
        BackendError: its library is missing (the message has the pip command), or it cannot run there.
    """
    check_choice("backend", backend, BACKENDS)
    check_choice("precision", precision, PRECISIONS)
    if precision != "float32" and backend in _ONLY_FLOAT32:
        raise BackendError(f"the engine {backend} computes in float32 only; ask for that, or for another engine")
    target = str(device)
    if backend in ("torch", "compile", "cuda-graph"):
        from unet_fast.deploy.engines import torch_engines

        kinds = {
            "torch": torch_engines.TorchEngine,
            "compile": torch_engines.CompiledEngine,
            "cuda-graph": torch_engines.GraphEngine,
        }
        return kinds[backend](model, description, precision, target)
    if backend == "openvino" and torch.device(target).type != "cpu":
        raise BackendError("the engine openvino runs on the CPU here; use --device cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = onnx or written(model, description, Path(folder))
        if backend == "onnxruntime":
            from unet_fast.deploy.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(path.read_bytes(), description, device=target)
        from unet_fast.deploy.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(path.read_bytes(), description, precision)


def written(model: SegmentationModel, description: Description, folder: Path) -> Path:
    """The network as an ONNX file in ``folder``."""
    from unet_fast.deploy.onnx_file import write_onnx
    from unet_fast.deploy.program import plain_copy

    path = folder / "model.onnx"
    write_onnx(plain_copy(model), path, description)
    return path
