"""ONNX Runtime."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet_fast.deploy.description import Description
from unet_fast.deploy.engines.base import Engine, as_array
from unet_fast.deploy.extras import load
from unet_fast.deploy.seal import read_sealed
from unet_fast.errors import BackendError, InputError, first_line
from unet_fast.files import take_as_input


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime in float32, on the CPU (as many threads as torch has), or on a GPU where its package can."""

    backend = "onnxruntime"

    def __init__(self, source: bytes, description: Description, *, device: str = "cpu") -> None:
        super().__init__(description, "float32", device)
        runtime = load("onnxruntime", "the engine onnxruntime")
        wanted = "CUDAExecutionProvider" if self.device.type == "cuda" else "CPUExecutionProvider"
        if wanted not in runtime.get_available_providers():
            raise BackendError(f"this onnxruntime has no {wanted}; install onnxruntime-gpu, or use --device cpu")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session: Any = runtime.InferenceSession(source, options, providers=[wanted])
        self._input = self._session.get_inputs()[0].name
        self._version = runtime.__version__
        self.weights = hashlib.sha256(source).hexdigest()
        self.ready()

    @classmethod
    def of_file(cls, path: Path, *, device: str = "cpu") -> OnnxRuntimeEngine:
        """The network of an ONNX file that :func:`unet_fast.deploy.export` wrote.

        Raises ``InputError`` for a file of another origin or a damaged one, ``FileNotFoundError`` where there is none.
        """
        data = read_file(path)
        return cls(data, read_description(data, path), device=device)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._session.run(None, {self._input: as_array(images)})[0]).to(self.device)

    def versions(self) -> str:
        return f"onnxruntime {self._version}"


def read_file(path: Path) -> bytes:
    """An ONNX file that :func:`unet_fast.deploy.export` wrote, and that is as it was then.

    From its bytes alone a runtime opens no other file, whatever the model names.
    """
    take_as_input(path)
    return read_sealed(path)


def read_description(data: bytes, path: Path) -> Description:
    """The :class:`Description` inside an ONNX file with these bytes; the weights are not kept."""
    runtime = load("onnxruntime", "reading ONNX files")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own types
        cause = first_line(error)
        raise InputError(f"{path} is not an ONNX file that can be read ({cause}); export it again") from error
    return Description.read(dict(session.get_modelmeta().custom_metadata_map), path)
