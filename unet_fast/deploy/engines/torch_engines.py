"""PyTorch as an engine: eager with this package's kernels, compiled, or as a CUDA graph."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from unet_fast.deploy.description import Description
from unet_fast.deploy.engines.base import Engine
from unet_fast.errors import BackendError
from unet_fast.models import SegmentationModel


class TorchEngine(Engine):
    """The network as it is, channels-last, with the fused operators that were measured to be faster; bfloat16 by autocast."""

    backend = "torch"

    def __init__(
        self, model: SegmentationModel, description: Description, precision: str = "float32", device: str = "cpu"
    ) -> None:
        super().__init__(description, precision, device)
        self.model = copy.deepcopy(model).eval().to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self._run: Any = self.model
        self._build()
        self.ready()

    def _build(self) -> None:
        """What a subclass does with the network."""

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.device, self.dtype, memory_format=torch.channels_last)
        return self._network(images)

    def _network(self, images: Tensor) -> Tensor:
        reduced = self.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            return self._run(images).float()


class CompiledEngine(TorchEngine):
    """``torch.compile`` of the network; every new shape of the input is compiled, which takes its time."""

    backend = "compile"

    def _build(self) -> None:
        self._run = torch.compile(self.model, dynamic=False)
        self.notes.append("compiles at the first tile of each size")

    def _network(self, images: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super()._network(images)


class GraphEngine(TorchEngine):
    """A CUDA graph for each shape of the input: static buffers, one launch a call.

    Raises ``BackendError`` on anything but a CUDA device.
    """

    backend = "cuda-graph"

    def _build(self) -> None:
        if self.device.type != "cuda":
            raise BackendError(f"the engine cuda-graph needs a CUDA device, not {self.device}; use the engine torch")
        self._graphs: dict[tuple[int, ...], tuple[Any, Tensor, Tensor]] = {}
        self.notes.append("captures a graph at the first tile of each size")

    def _network(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        if shape not in self._graphs:
            self._graphs[shape] = self._captured(images)
        graph, static, result = self._graphs[shape]
        static.copy_(images)
        graph.replay()
        return result.clone()

    def _captured(self, images: Tensor) -> tuple[Any, Tensor, Tensor]:
        static = images.clone()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # libraries choose and allocate before the capture
            for _ in range(3):
                super()._network(static)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = super()._network(static)
        return graph, static, result
