"""OpenVINO."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from unet_fast.deploy.description import Description
from unet_fast.deploy.engines.base import Engine, as_array
from unet_fast.deploy.extras import load


class OpenVinoEngine(Engine):
    """OpenVINO on the CPU in float32 or bfloat16, as many threads as torch has; every shape of the input is compiled once.

    ``source`` are the bytes of an ONNX file.
    """

    backend = "openvino"

    def __init__(self, source: bytes, description: Description, precision: str = "float32") -> None:
        super().__init__(description, precision)
        openvino = load("openvino", "the engine openvino")
        core = openvino.Core()
        hint = openvino.Type.f32 if precision == "float32" else openvino.Type.bf16
        self._options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._core, self._network = core, core.read_model(source)
        self.weights = hashlib.sha256(source).hexdigest()
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._version = openvino.__version__.split("-")[0]
        self.notes.append("compiles at the first tile of each size")
        self.ready()

    def __call__(self, images: Tensor) -> Tensor:
        array = as_array(images)
        if array.shape not in self._compiled:
            fixed = self._network.clone()
            fixed.reshape(list(array.shape))
            self._compiled[array.shape] = self._core.compile_model(fixed, "CPU", self._options).create_infer_request()
        result = self._compiled[array.shape].infer({0: array}, share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0].copy())

    def versions(self) -> str:
        return f"openvino {self._version}"
