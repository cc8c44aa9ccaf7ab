"""Which engine: by name, or the fastest of those installed by a short measurement that is remembered."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unet_fast import __version__
from unet_fast.deploy import engines
from unet_fast.deploy.description import Description
from unet_fast.deploy.engines import Engine
from unet_fast.errors import BackendError, InputTypeError
from unet_fast.models import SegmentationModel
from unet_fast.remembered import machine_name, remember, remembered

if TYPE_CHECKING:
    from unet_fast.run import Run

_KIND = "engines"  # of what is remembered
ROUNDS = 5
CLOSE, MORE_ROUNDS, MORE_SECONDS = 0.15, 20, 6.0  # engines so near to the best are measured on, for so long at most
SLOW_TO_START = ("compile",)  # what auto leaves out on a CPU: it compiles for longer than the measurement may take


def engine(
    model: SegmentationModel | Run | str | os.PathLike[str],
    *,
    backend: str = "auto",
    precision: str = "auto",
    tile: int | None = None,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Engine:
    """A network in an engine: callable, (N, C, H, W) -> logits, wherever a network can be applied.

    Args:
        model: a network, a run, or the path of a run folder, of an exported .zip or of an exported .onnx (which runs in
            onnxruntime or openvino).
        backend: "torch", "compile" (torch.compile), "cuda-graph", "onnxruntime", "openvino", or "auto": the fastest of those
            installed, by a measurement of this network on this machine, remembered in the user's cache folder. On a CPU auto
            leaves "compile" out, which compiles for longer than the measurement takes.
        precision: "float32" or "bfloat16"; "auto" is what the run was trained in, where the device gains by it, and
            float32 for a network that comes from no run.
        tile: side of the output tiles that auto measures with; None: that of the run.
        batch_size: tiles a call that auto measures with.
        device: cpu, cuda or cuda:N; None: where the network is.
        announce: called with one line on what "auto" measured and chose.

    Returns:
        An :class:`unet_fast.deploy.engines.Engine`; its ``report()`` says what it is.

    Raises:
        InputError: an unknown backend or precision, a file that is not a network.
        BackendError: a library is missing (the message has the pip command), or the engine cannot do what was asked for.
    """
    if isinstance(model, str | os.PathLike) and Path(model).suffix.lower() == ".onnx":
        return _of_onnx(Path(model), backend, precision)
    source, settings = source_of(model)
    description = Description.of(source, settings)
    where = str(next(source.parameters()).device if device is None else device)
    if precision == "auto":
        from unet_fast.train.config import fast_bfloat16

        reduced = settings is not None and getattr(settings, "amp", False) and fast_bfloat16(torch.device(where))
        precision = "bfloat16" if reduced else "float32"
    if backend == "auto":
        side = tile or max(description.tile, 512)
        backend = fastest(source, description, precision, where, side, batch_size, announce)
    return engines.create(source, description, backend, precision, device=where)


def source_of(model: Any) -> tuple[SegmentationModel, Any]:
    """(network, settings of its run) of a network, a run, or the path of a run folder or an exported .zip."""
    if isinstance(model, SegmentationModel):
        return model, None
    if isinstance(model, str | os.PathLike):
        from unet_fast.run import Run

        model = Run.load(Path(model))
    network, settings = getattr(model, "model", None), getattr(model, "settings", None)
    if isinstance(network, SegmentationModel) and settings is not None:
        return network, settings
    raise InputTypeError(
        f"model is a {type(model).__name__} without a network of torch, expected a network, a run, or the path of one"
    )


def _of_onnx(path: Path, backend: str, precision: str) -> Engine:
    """An ONNX file in an engine that takes it."""
    from unet_fast.deploy.engines.onnxruntime import OnnxRuntimeEngine

    if backend in ("auto", "onnxruntime"):
        if precision == "bfloat16":
            raise BackendError("the engine onnxruntime computes in float32 only; ask for openvino")
        return OnnxRuntimeEngine.of_file(path)
    if backend == "openvino":
        from unet_fast.deploy.engines.onnxruntime import read_description, read_file
        from unet_fast.deploy.engines.openvino import OpenVinoEngine

        data = read_file(path)
        return OpenVinoEngine(data, read_description(data, path), "float32" if precision == "auto" else precision)
    raise BackendError(
        f"the engine {backend} cannot run an ONNX file; use onnxruntime or openvino, or give the run folder"
    )


def fastest(
    model: SegmentationModel,
    description: Description,
    precision: str,
    device: str,
    tile: int,
    batch_size: int,
    announce: Callable[[str], None],
) -> str:
    """The name of the fastest engine of ``precision`` for such tiles, measured here or remembered."""
    geometry = description.geometry
    side = geometry.covering_output(tile) + 2 * geometry.margin
    names = [name for name, kind in engines.available(device) if kind == precision]
    if torch.device(device).type == "cpu":
        names = [name for name in names if name not in SLOW_TO_START]
    key = _key(model, precision, device, side, batch_size, names)
    known = remembered(_KIND)
    if known.get(key, {}).get("best") in names:
        best = str(known[key]["best"])
        announce(f"engine: {best} {precision}, as measured here before: {_said(known[key]['milliseconds'])}")
        return best
    seconds = measure(model, description, names, precision, device, (batch_size, side))
    best = min(seconds, key=lambda name: seconds[name])
    figures = {name: round(1000 * value, 3) for name, value in seconds.items()}
    announce(f"engine: {best} {precision}, measured at {batch_size} x {side} x {side} pixels: {_said(figures)}")
    remember(_KIND, key, {"best": best, "milliseconds": figures})
    return best


def measure(
    model: SegmentationModel,
    description: Description,
    names: list[str],
    precision: str,
    device: str,
    shape: tuple[int, int],
) -> dict[str, float]:
    """Seconds a call of the engines ``names``: the least of interleaved rounds, since other work on the machine only adds to it.

    Those near to the best get more rounds.
    """
    batch, side = shape
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, int(description.model["in_channels"]), side, side, generator=generator).to(device)
    made: dict[str, Engine] = {}
    with tempfile.TemporaryDirectory() as folder:
        onnx = None
        if any(name in ("onnxruntime", "openvino") for name in names):
            onnx = engines.written(model, description, Path(folder))
        for name in names:
            made[name] = engines.create(model, description, name, precision, device=device, onnx=onnx)
    for each in made.values():
        timed(each, images)
    times: dict[str, list[float]] = {name: [] for name in names}
    contenders, began = list(names), time.monotonic()
    for turn in range(ROUNDS + MORE_ROUNDS):
        if turn >= ROUNDS:
            least = min(min(times[name]) for name in contenders)
            contenders = [name for name in contenders if min(times[name]) <= (1 + CLOSE) * least]
            if len(contenders) == 1 or time.monotonic() - began > MORE_SECONDS:
                break
        first = turn % len(contenders)
        for name in contenders[first:] + contenders[:first]:
            times[name].append(timed(made[name], images))
    return {name: min(values) for name, values in times.items()}


def timed(network: Engine, images: torch.Tensor) -> float:
    """Seconds of one call, the device's work included."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    began = time.perf_counter()
    network(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - began


def _key(model: SegmentationModel, precision: str, device: str, side: int, batch: int, names: list[str]) -> str:
    """Everything that the measurement depends on."""
    versions = [torch.__version__, __version__]
    for name in ("onnxruntime", "openvino"):
        if name in names:
            from importlib.metadata import version

            versions.append(f"{name} {version(name)}")
    text = json.dumps(
        [model.config, precision, machine_name(device), torch.get_num_threads(), side, batch, names, versions]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _said(milliseconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f} ms" for name, value in sorted(milliseconds.items(), key=lambda item: item[1]))
