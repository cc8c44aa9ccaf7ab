"""Latency: how long one call takes in every engine, how that spreads, and what it costs; a table, JSON and a picture."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unet_fast import __version__
from unet_fast.deploy import engines
from unet_fast.deploy.choose import source_of, timed
from unet_fast.deploy.description import Description
from unet_fast.deploy.engines import Engine
from unet_fast.errors import BackendError, InputError, first_line
from unet_fast.files import atomic_path, ensure_folder
from unet_fast.models import SegmentationModel
from unet_fast.remembered import machine_name
from unet_fast.train.checkpoint import save_tensors

if TYPE_CHECKING:
    from unet_fast.run import Run

WARM_UP = 2
MOST = 2**20  # pixels a side, and tiles a call: far more than any memory holds
MOST_THREADS = 1024  # the system refuses to start many more, and OpenMP ends the process then
LEAST_ROUNDS, MOST_ROUNDS = 10, 200
CELL_SECONDS = 6.0  # of measuring, for all engines of one tile and batch together, beyond the least number of rounds


@dataclass
class Row:
    """One engine at one tile, batch and number of threads. Milliseconds are of one call, with ``batch`` tiles.

    ``difference`` is the largest one to torch in float32, divided by the largest logit. ``cold_seconds`` is from the start of a
    process to its first result, ``peak_mib`` what that process had in memory at most. ``failed`` says why there is nothing.
    """

    engine: str
    precision: str
    tile: int
    batch: int
    threads: int
    input: int = 0
    p50: float = float("nan")
    p90: float = float("nan")
    p99: float = float("nan")
    images_a_second: float = float("nan")
    rounds: int = 0
    difference: float = float("nan")
    cold_seconds: float | None = None
    peak_mib: float | None = None
    failed: str = ""
    milliseconds: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Engine and, unless it is float32, precision."""
        return self.engine if self.precision == "float32" else f"{self.engine} {self.precision}"


@dataclass
class Latency:
    """What :func:`latency` measured; prints as a table."""

    conditions: dict[str, Any]
    rows: list[Row]

    def __str__(self) -> str:
        head = (
            "engine",
            "tile",
            "batch",
            "threads",
            "p50 ms",
            "p90",
            "p99",
            "images/s",
            "difference",
            "cold s",
            "peak MiB",
        )
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            where = (row.name, str(row.tile), str(row.batch), str(row.threads))
            if row.failed:
                lines.append((*where, row.failed, *[""] * 6))
                continue
            figures = (f"{row.p50:.2f}", f"{row.p90:.2f}", f"{row.p99:.2f}", f"{row.images_a_second:.1f}")
            cost = [f"{row.difference:.1e}"]
            cost += [
                "-" if value is None else f"{value:.{digits}f}"
                for value, digits in ((row.cold_seconds, 1), (row.peak_mib, 0))
            ]
            lines.append((*where, *figures, *cost))
        widths = [max(len(line[i]) for line in lines if i < 4 or line[5]) for i in range(len(head))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write latency.json (with every single time), latency.csv and latency.png into ``folder``."""
        from unet_fast.plots.latency import latency_picture

        out = ensure_folder(folder)
        rows = [asdict(row) for row in self.rows]
        with atomic_path(out / "latency.json") as temporary:
            temporary.write_text(json.dumps({"conditions": self.conditions, "rows": rows}, indent=1) + "\n")
        text = io.StringIO()
        names = [name for name in rows[0] if name != "milliseconds"]
        writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_path(out / "latency.csv") as temporary:
            temporary.write_text(text.getvalue())
        if any(not row.failed for row in self.rows):
            latency_picture(self.conditions, rows, out / "latency.png")
        return out


def latency(
    model: SegmentationModel | Run | str | os.PathLike[str],
    *,
    engines: str | Sequence[str] = "all",
    tiles: Sequence[int] = (256,),
    batches: Sequence[int] = (1,),
    threads: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    cold: bool = True,
    seconds: float = CELL_SECONDS,
    announce: Callable[[str], None] = lambda text: None,
) -> Latency:
    """Measure a network in several engines on this machine.

    Args:
        model: a network, a run, or the path of a run folder or of an exported .zip.
        engines: names of engines, "torch" or with a precision, "openvino bfloat16"; "all" is every one that is installed.
        tiles: sides of the output in pixels; each is rounded up to a legal one.
        batches: tiles a call.
        threads: numbers of threads of a CPU, one after the other; None: as many as torch has now.
        device: cpu, cuda or cuda:N; None: where the network is.
        cold: measure cold start and memory too, each in a process of its own.
        seconds: how long the engines are measured together at one tile and batch; at least 10 rounds are.
        announce: called with one line on what is being measured.

    Returns:
        A :class:`Latency`: ``print`` it, look at its ``rows``, ``save`` it to a folder.

    Raises:
        InputError: an unknown engine, a number below 1, a file that is no network.

    Every engine is warmed up, then they take turns, each round in another order, so that a change of the clock meets all.
    What an engine cannot do stands in its rows as ``failed``.
    """
    source, settings = source_of(model)
    description = Description.of(source, settings)
    where = str(next(source.parameters()).device if device is None else device)
    chosen = _chosen(engines, where)
    before = torch.get_num_threads()
    for name, values in (("tiles", tiles), ("batches", batches), ("threads", threads or [before])):
        if not values or any(value < 1 for value in values):
            raise InputError(f"{name} is {list(values)}, expected numbers of at least 1")
        if max(values) > (most := MOST_THREADS if name == "threads" else MOST):
            raise InputError(f"{name} is {list(values)}, expected numbers of at most {most}")
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            saved = _saved(source, description, Path(folder), [name for name, _ in chosen])
            for count in threads or [before]:
                torch.set_num_threads(count)
                for tile in tiles:
                    for batch in batches:
                        announce(f"tile {tile}, batch {batch}, {count} threads: {len(chosen)} engines")
                        found = _cell(source, description, saved, chosen, where, tile, batch, seconds)
                        if cold:
                            for row in found:
                                _cold(row, saved, where)
                        rows += found
    finally:
        torch.set_num_threads(before)
    return Latency(_conditions(source, where), rows)


def _chosen(names: str | Sequence[str], device: str) -> list[tuple[str, str]]:
    """(backend, precision) of the engines that were asked for."""
    if names == "all":
        return engines.available(device)
    chosen = []
    for name in [names] if isinstance(names, str) else names:
        backend, _, precision = name.strip().partition(" ")
        precision = precision or "float32"
        if backend not in engines.BACKENDS or precision not in engines.PRECISIONS:
            known = ", ".join(engines.BACKENDS)
            raise InputError(
                f"engine is {name!r}, expected all, or some of {known}, each alone or followed by bfloat16"
            )
        chosen.append((backend, precision))
    return chosen


@dataclass(frozen=True)
class _Saved:
    """The network in a folder, for processes of their own: weights, description, ONNX where it can be had."""

    folder: Path
    onnx: Path | None
    no_onnx: str


def _saved(model: SegmentationModel, description: Description, folder: Path, names: list[str]) -> _Saved:
    save_tensors(folder / "model.safetensors", dict(model.state_dict()), {"description": description.metadata()})
    if not {"onnxruntime", "openvino"} & set(names):
        return _Saved(folder, None, "")
    try:
        return _Saved(folder, engines.written(model, description, folder), "")
    except BackendError as error:
        return _Saved(folder, None, str(error))


def _cell(
    model: SegmentationModel,
    description: Description,
    saved: _Saved,
    chosen: list[tuple[str, str]],
    device: str,
    tile: int,
    batch: int,
    seconds: float,
) -> list[Row]:
    """All engines at one tile and batch, in turns."""
    geometry = description.geometry
    output = geometry.covering_output(tile)
    side = output + 2 * geometry.margin
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, model.in_channels, side, side, generator=generator).to(device)
    expected = engines.create(model, description, "torch", device=device)(images).float()
    rows, made = [], {}
    for backend, precision in chosen:
        row = Row(backend, precision, output, batch, threads, side)
        rows.append(row)
        try:
            if backend in ("onnxruntime", "openvino") and saved.onnx is None:
                raise BackendError(saved.no_onnx)
            network = engines.create(model, description, backend, precision, device=device, onnx=saved.onnx)
            found = network(images)
            for _ in range(WARM_UP):
                timed(network, images)
        except Exception as error:  # an engine's library raises its own types; the others go on
            row.failed = first_line(error)[:160]
            continue
        row.difference = float((found.to(expected.device) - expected).abs().max()) / max(
            1.0, float(expected.abs().max())
        )
        made[len(rows) - 1] = network
    _rounds(rows, made, images, seconds)
    return rows


def _rounds(rows: list[Row], made: dict[int, Engine], images: torch.Tensor, seconds: float) -> None:
    order = list(made)
    began = time.perf_counter()
    for turn in range(MOST_ROUNDS):
        if turn >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for index in order[turn % max(1, len(order)) :] + order[: turn % max(1, len(order))]:
            rows[index].milliseconds.append(round(1000 * timed(made[index], images), 4))
    for index in order:
        row = rows[index]
        row.rounds = len(row.milliseconds)
        row.p50, row.p90, row.p99 = (float(np.percentile(row.milliseconds, percent)) for percent in (50, 90, 99))
        row.images_a_second = 1000 * row.batch / statistics.median(row.milliseconds)


def _cold(row: Row, saved: _Saved, device: str) -> None:
    """Cold start and memory of a row, from a process of its own."""
    if row.failed:
        return
    order = json.dumps([str(saved.folder), row.engine, row.precision, row.batch, row.input, row.threads, device])
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "unet_fast.deploy.cold", order], capture_output=True, text=True, check=False
    )
    try:
        ready, row.peak_mib = json.loads(done.stdout.strip().splitlines()[-1])
        row.cold_seconds = ready - began
    except (ValueError, IndexError):
        row.cold_seconds = row.peak_mib = None


def _conditions(model: SegmentationModel, device: str) -> dict[str, Any]:
    """What the figures depend on."""
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    found: dict[str, Any] = {
        "network": model.config,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "machine": machine_name(device),
        "device": device,
        "pinned_to": affinity if len(affinity) < (os.cpu_count() or 1) else "no: all processors",
        "clock": _clock(device),
        "system": platform.platform(),
        "unet_fast": __version__,
        "torch": torch.__version__,
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    found["load_before"] = load
    for name in ("onnxruntime", "openvino"):
        from importlib.metadata import PackageNotFoundError, version

        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def _clock(device: str) -> str:
    """The clock as the system states it now; it is not set."""
    if torch.device(device).type == "cuda":
        try:
            return f"{torch.cuda.clock_rate(torch.device(device))} MHz"
        except Exception:  # without NVIDIA's management library
            return "not known"
    try:
        values = [
            float(line.split(":")[1]) for line in Path("/proc/cpuinfo").read_text().splitlines() if "cpu MHz" in line
        ]
        return f"{max(values):.0f} MHz"
    except (OSError, ValueError):
        return "not known"
