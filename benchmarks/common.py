"""What every benchmark shares: its options, one table, one kind of result file.

Candidates are timed in turn, round after round, so that a machine that slows down slows all of them; figures are medians
over the rounds, with the quartiles as spread. A benchmark checks its candidates against each other before it times them.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import plots, record, rows
from benchmarks.memory import peak_megabytes
from benchmarks.record import RESULTS, Row
from benchmarks.timing import Call, Clock, copy_bandwidth, gpu_clock, host_clock
from unet_fast.ops import _backends, use_backend
from unet_fast.remembered import machine_name as hardware_name

SIZES = (256, 512, 1024, 2048, 4096)
BATCHES = (1, 4, 16, 64)
COLUMNS = ("case", "candidate", "ms (median)", "quartiles", "ratio", "of limit", "images/s", "peak MB")


@dataclass(frozen=True)
class Options:
    """What a benchmark is asked for."""

    device: str = "cpu"
    quick: bool = False  # fewer rounds and sizes; on a GPU no peers on the host
    tiny: bool = False  # to see that all runs: small images, one call, nothing compiled to machine code
    sizes: tuple[int, ...] = SIZES
    batches: tuple[int, ...] = BATCHES
    peers: str = "all"  # of whole networks: "eager", "compiled", whose compilation takes most of the time, or "all"
    only: tuple[str, ...] = ()  # of a single file that can be measured piece by piece: these pieces; all by default

    def grid(self, most_pixels: int) -> list[tuple[int, int]]:
        """The batches and sides of a sweep that stay below a number of pixels, small ones first."""
        pairs = [(batch, side) for side in self.sizes for batch in self.batches if batch * side * side <= most_pixels]
        return pairs[:: max(1, len(pairs) // 3)] if self.quick else pairs

    def side(self, usual: int, tiny: int = 64) -> int:
        """The side of the images of a case."""
        return tiny if self.tiny else usual

    def compile(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """torch.compile, by whose default backend it is measured; seconds are saved where nothing is."""
        return torch.compile(function, backend="eager") if self.tiny else torch.compile(function, **options)

    def ours(self, op: str, call: Call, variant: str = "") -> dict[str, Candidate]:
        """``call`` of an operator on each compiled backend of the device: one on the CPU; CUDA and Triton on a GPU."""
        name = f"{op}, {variant}" if variant else op
        own = {"role": "ours", "op": op, "variant": variant}
        if self.device != "cuda":
            return {name: Candidate(call, **own)}
        return {f"{name} ({backend})": Candidate(call, backend, **own) for backend in gpu_backends(op)}


def gpu_backends(op: str) -> list[str]:
    """The backends that can run ``op`` on the GPU here."""
    return [name for name in ("cuda", "triton") if op in _backends.KERNELS and not _backends.why_not(name, op, "cuda")]


@dataclass(frozen=True)
class Candidate:
    """A call, the backend that it is to run on, and how it is to be timed."""

    call: Call
    backend: str | None = None
    host: bool = False  # it works on the host although a GPU is measured
    capture: bool = True  # False: another library's launches, or random host work, which no graph would hold
    role: str = "peer"  # as in a row, like what follows
    op: str | None = None
    variant: str = ""


@dataclass
class Suite:
    """The rows of one result file."""

    name: str
    options: Options = field(default_factory=Options)
    picture: bool = False  # whether its result file gets one
    rows: list[Row] = field(default_factory=list)

    def measure(
        self,
        case: str,
        candidates: dict[str, Any],
        *,
        rounds: int = 15,
        seconds: float = 0.02,
        least_bytes: float | None = None,
        images: int | None = None,
        side: int | None = None,
        peaks: bool = False,
    ) -> None:
        """Time the candidates of one case; the first is what the others are compared with.

        ``least_bytes``: what any implementation has to read and write, from which the share of the limit is computed.
        ``images``: that a call works on, for the rate; ``side``: theirs, in a sweep. ``peaks``: measure the memory of a call as well.
        """
        quick, tiny, device = self.options.quick, self.options.tiny, self.options.device
        rounds, seconds = (1, 0.0) if tiny else (min(rounds, 5) if quick else rounds, seconds)
        entries = {name: c if isinstance(c, Candidate) else Candidate(c) for name, c in candidates.items()}
        if quick and device == "cuda":  # time on a GPU is dear
            entries = {name: entry for name, entry in entries.items() if not entry.host}
        clocks: dict[str, tuple[Clock, str]] = {}
        repeats = {}
        peak: dict[str, float] = {}
        for name, entry in entries.items():
            with use_backend(entry.backend or "auto"):
                if peaks:
                    peak[name] = peak_megabytes(entry.call, device)
                on_gpu = device == "cuda" and not entry.host
                clocks[name] = gpu_clock(entry.call, entry.capture) if on_gpu else (host_clock(entry.call), "timer")
                once = clocks[name][0](1 if tiny else 2)  # also warms up
            repeats[name] = max(1, round(seconds * 1e3 / max(once, 1e-6)))
        times: dict[str, list[float]] = {name: [] for name in clocks}
        for _ in range(rounds):
            for name, (clock, _method) in clocks.items():
                with use_backend(entries[name].backend or "auto"):
                    times[name].append(clock(repeats[name]))
        first = float(np.median(next(iter(times.values()))))
        limit = least_bytes / bandwidth(device, tiny=tiny) * 1e3 if least_bytes else None
        for name, values in times.items():
            low, median, high = (float(q) for q in np.percentile(values, [25, 50, 75]))
            entry = entries[name]
            self.add(
                Row(
                    case,
                    name,
                    entry.role,
                    median,
                    low,
                    high,
                    median / first,
                    op=entry.op,
                    variant=entry.variant,
                    backend=entry.backend,
                    share=limit / median if limit and not entry.host else None,
                    method=clocks[name][1],
                    images=images,
                    side=side,
                    images_per_second=images / median * 1e3 if images else None,
                    peak_megabytes=peak.get(name),
                )
            )
        # else the next sizes would be compiled for any size, and after eight of them not at all
        torch.compiler.reset()
        if device == "cuda":  # each graph holds the memory that it was captured with
            clocks.clear()
            gc.collect()
            torch.cuda.empty_cache()

    def add(self, row: Row) -> None:
        """Keep a row, and hand it on at once where somebody collects them."""
        self.rows.append(row)
        rows.emit({"benchmark": self.name, **record.fields(row)})

    def finish(self) -> None:
        """Print the table; write the result file, and its picture, unless somebody collects the rows or none is real."""
        table = Table(*COLUMNS, title=self.name)
        previous = None
        for row in self.rows:
            table.add_row(
                row.case if row.case != previous else "",
                row.candidate,
                f"{row.median:.3f}",
                f"{row.low:.3f} - {row.high:.3f}",
                f"{row.ratio:.2f}",
                "" if row.share is None else f"{row.share:.0%}",
                "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
                "" if row.peak_megabytes is None else f"{row.peak_megabytes:.0f}",
            )
            previous = row.case
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else 170).print(table)
        if rows.collected() or self.options.tiny:
            return
        path = RESULTS / machine_name(self.options.device) / f"{self.name}{'.quick' if self.options.quick else ''}.json"
        head, new = conditions(self.options.device), [record.fields(row) for row in self.rows]
        result = {**head, "rows": [*(record.other_cases(path, head, new) if self.options.only else []), *new]}
        record.write(path, result)
        print(f"wrote {path}", flush=True)
        if self.picture:
            print(f"wrote {plots.draw(self.name, result, path.with_suffix('.png'))}", flush=True)


def sweep(
    name: str, options: Options, most_pixels: int, make: Callable[[int, int], tuple[dict[str, Any], float | None]]
) -> None:
    """One result file over batches and sides: ``make(batch, side)`` gives the candidates and their least bytes."""
    suite = Suite(f"{name}_sizes", options, picture=True)
    for batch, side in options.grid(most_pixels):
        candidates, least_bytes = make(batch, side)
        case = f"{batch} x {side}x{side}"
        suite.measure(case, candidates, rounds=5, seconds=0.01, least_bytes=least_bytes, images=batch, side=side)
    suite.finish()


def run(benchmark: Callable[[Options], None], arguments: Sequence[str] | None = None) -> None:
    """The command line of a single benchmark file, whose names are pieces of it."""
    names, options = parse(arguments)
    benchmark(replace(options, only=tuple(names)))


def parse(arguments: Sequence[str] | None = None, description: str = "") -> tuple[list[str], Options]:
    """The names and the options on a command line."""
    parser = argparse.ArgumentParser(description=description or None)
    parser.add_argument("names", nargs="*", help="benchmarks to run, or pieces of a single one; all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="few rounds and sizes; written to *.quick.json")
    parser.add_argument("--tiny", action="store_true", help="small images and one call, to see that all runs")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sides of the images in the sweeps")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=BATCHES,
        help="images a call, in sweeps and of whole networks on a GPU",
    )
    parser.add_argument("--peers", choices=("all", "eager", "compiled"), default="all", help="of whole networks")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    sizes, batches = ((128,), (1,)) if given.tiny else (tuple(given.sizes), tuple(given.batches))
    return given.names, Options(given.device, given.quick or given.tiny, given.tiny, sizes, batches, given.peers)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread inside the ``with`` block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def bandwidth(device: str, *, tiny: bool = False) -> float:
    """:func:`copy_bandwidth`, measured once a process."""
    return copy_bandwidth(device, tiny=tiny)


def processor() -> str:
    """The processor's name as the system tells it."""
    return hardware_name("cpu")


def machine_name(device: str) -> str:
    """A folder name for this machine's results: the GPU's name, or the kind and number of processors."""
    if device == "cuda":
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    return f"cpu-{platform.machine()}-{os.cpu_count()}"


def commit() -> str:
    """The commit that is measured, with ``+`` when the working tree differs from it."""
    try:
        here = Path(__file__).parent
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        sources = ["--", "../csrc", "../unet_fast", "../setup.py", "*.py"]
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno", *sources], cwd=here, capture_output=True, text=True
        )
        return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def conditions(device: str) -> dict[str, Any]:
    """What must be known to read a figure."""
    return {
        "commit": commit(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "copy_bandwidth": bandwidth(device),
    }
