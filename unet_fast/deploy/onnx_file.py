"""ONNX: a network as a file of standard operators, with free batch and sizes, and what the reader must know inside."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from unet_fast.deploy.description import Description
from unet_fast.deploy.extras import load
from unet_fast.deploy.program import exported_program, quick_shapes
from unet_fast.deploy.seal import sealed
from unet_fast.errors import BackendError
from unet_fast.models import SegmentationModel

INPUT, OUTPUT = "images", "logits"
OPSET = 18


def write_onnx(model: SegmentationModel, path: Path, description: Description) -> None:
    """Write ``model`` (see :func:`unet_fast.deploy.program.plain_copy`) as ONNX; ``path`` is not yet the name that a reader knows.

    The file holds operators of the standard's own domain only, and ``description`` among its metadata, with a checksum.

    Raises:
        BackendError: onnx or onnxscript is missing, or a layer has no ONNX form (it is named).
        OSError: the file cannot be written.
    """
    proto = graph_of(model)
    _name_axes(proto)
    for name, value in description.metadata().items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, value
    load("onnx", "ONNX").checker.check_model(proto)
    path.write_bytes(sealed(proto.SerializeToString()))


def graph_of(model: SegmentationModel) -> Any:
    """The ``onnx.ModelProto`` of ``model``; what takes the time. Raises ``BackendError`` as :func:`write_onnx` does."""
    load("onnx", "ONNX")
    load("onnxscript", "ONNX")
    with _quiet(), quick_shapes():
        program = torch.onnx.export(
            exported_program(model),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    foreign = sorted({node.domain for node in proto.graph.node} - {"", "ai.onnx"})
    if foreign or proto.functions:
        raise BackendError(f"the network needs ONNX operators of {', '.join(foreign)}, which no other program has")
    return proto


def _name_axes(proto: object) -> None:
    """Call the free axes of input and output by names that a reader understands."""
    for value, names in ((proto.graph.input[0], "NHW"), (proto.graph.output[0], "Nhw")):  # type: ignore[attr-defined]
        dims = value.type.tensor_type.shape.dim
        for index, name in zip((0, 2, 3), names, strict=True):
            dims[index].dim_param = {"N": "batch", "H": "height", "W": "width", "h": "out_height", "w": "out_width"}[
                name
            ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the exporter says of itself concerns nobody: failures arrive as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
