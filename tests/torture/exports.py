"""The files that hold the weights of a run, and how each is loaded: what damage to them must not change in silence."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

import unet_fast as uf
from unet_fast.deploy.description import Description
from unet_fast.deploy.extras import is_installed
from unet_fast.train.checkpoint import save_tensors

Load = Callable[[], list[bytes]]


def weight_files(run: Path) -> dict[str, tuple[Path, Load]]:
    """(file, what loading it gives) by name: the run's own, a package as predict reads it, and an ONNX file."""
    trained = uf.Run.load(run, "cpu")
    state = {"description": Description.of(trained.model, trained.settings).metadata()}
    save_tensors(run.parent / "model.safetensors", dict(trained.model.state_dict()), state)
    with zipfile.ZipFile(run.parent / "run.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(run.parent / "model.safetensors", "model.safetensors")
    found: dict[str, tuple[Path, Load]] = {
        "weights": (run / "model.safetensors", lambda: _tensors(run)),
        "package": (run.parent / "run.zip", lambda: _tensors(run.parent / "run.zip")),
    }
    if is_installed("onnx") and is_installed("onnxruntime"):
        _write_onnx(run.parent / "run.onnx", state["description"])
        found["ONNX"] = (run.parent / "run.onnx", lambda: _result(run.parent / "run.onnx"))
    return found


def _tensors(path: Path) -> list[bytes]:
    return [tensor.numpy().tobytes() for _, tensor in sorted(uf.Run.load(path, "cpu").model.state_dict().items())]


def _write_onnx(path: Path, metadata: dict[str, str]) -> None:
    """One convolution: what guards the file does not depend on what it holds, and exporting a network takes long."""
    import onnx

    from unet_fast.deploy.seal import sealed

    helper = onnx.helper
    weight = helper.make_tensor("weight", 1, (2, 1, 3, 3), torch.arange(18.0).numpy().tobytes(), raw=True)
    node = helper.make_node("Conv", ["images", "weight"], ["logits"], pads=[1, 1, 1, 1])
    values = [helper.make_tensor_value_info(name, 1, ["n", c, "h", "w"]) for name, c in (("images", 1), ("logits", 2))]
    graph = helper.make_graph([node], "graph", values[:1], values[1:], [weight])
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, metadata)
    path.write_bytes(sealed(model.SerializeToString()))


def _result(path: Path) -> list[bytes]:
    return [uf.Run.load(path).model(torch.ones(1, 1, 8, 8)).numpy().tobytes()]
