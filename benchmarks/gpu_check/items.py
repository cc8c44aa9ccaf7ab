"""What runs on a machine with a GPU, in the order of its worth: each item is a command with a limit of its own."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from unet_fast.ops import _backends
from unet_fast.ops._record import OPS

TOTAL = 540.0  # seconds; the limits add up to no more
HEADLINE = 240.0  # by when the figures that matter most are there
ALL_OPERATORS = 108.0  # of these, for the operators with a benchmark of their own, in equal parts
BENCHMARKS = Path(__file__).parents[1]


def measured() -> list[str]:
    """The operators that have kernels for a GPU and a benchmark of their own; the others are parts of ``junctions``."""
    own = [name for name in OPS if (BENCHMARKS / f"bench_{name}.py").exists()]
    return [name for name in own if {"cuda", "triton"} & {*_backends.KERNELS[name]}]


@dataclass(frozen=True)
class Item:
    """A command, the variables it needs, and the seconds it may take."""

    name: str
    command: tuple[str, ...]
    limit: float
    variables: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # programs, or modules of Python
    vital: bool = False  # without it nothing else can be believed


def items(device: str, jobs: int, *, architecture: str = "", tiny: bool = False) -> list[Item]:
    """What runs on this kind of device; ``architecture`` is that of the GPU at hand, such as 9.0.

    ``tiny``: the same on small images, to see that all of it runs; most of it in one process, which starts once.
    """
    python = sys.executable
    scale = ("--device", device, *(("--tiny",) if tiny else ("--quick",)))
    module = "benchmarks.gpu_check"

    def bench(name: str, limit: float, *options: str, label: str = "") -> Item:
        return Item(label or name, (python, "-m", "benchmarks", name, *scale, *options), limit)

    def network(batch: int, label: str) -> Item:
        return bench("unet", 25, "--peers", "eager", "--batches", str(batch), label=label)

    operators = measured()
    several = (python, "-m", "benchmarks", "unet", "train", "junctions", *operators, *scale)
    together = [Item("together", several, 17)] if tiny else []
    each = ALL_OPERATORS / len(operators)
    sweep = () if tiny else ("--sizes", "512", "--batches", "16", "64")
    found = [
        build(device, jobs, architecture),
        Item("smoke", (python, "-m", f"{module}.smoke", "--device", device), 35),
        *([] if tiny else [network(8, "unet"), bench("train", 50), network(1, "unet_1")]),
        *([] if tiny else [bench("unet", 40, "--peers", "compiled", label="unet_compiled")]),
        Item("profile", (python, "-m", f"{module}.profile", *scale), 20),
        *([] if tiny else [bench("junctions", 35), *(bench(name, each, *sweep) for name in operators)]),
        *together,
        *fuzzing(device, jobs, operators[:1] if tiny else [], 2 if tiny else 60),
    ]
    if not tiny:  # where the caller is such a test itself
        processes = ("-n", str(jobs), "--dist", "worksteal") if find_spec("xdist") else ()
        plugins = ("-p", "no:cacheprovider", "-p", f"{module}.outcomes")
        tests = (
            python,
            "-m",
            "pytest",
            "-q",
            *plugins,
            "-m",
            "device",
            "--place",
            device,
            "--continue-on-collection-errors",
            *processes,
            "tests",
        )
        found.append(Item("tests", tests, 40, {"FUZZ_CASES": "10"}, ("pytest", "hypothesis")))
    found += sanitizers(device)
    # what is tried out on a busy machine shall say that it runs, not how fast
    return [replace(item, limit=TOTAL) for item in found] if tiny else found


def build(device: str, jobs: int, architecture: str) -> Item:
    """For the GPU at hand alone, which is four times as fast as for all; without a GPU a look at what is built."""
    if device == "cpu":
        loaded = "from unet_fast.ops import _library; assert _library.CPU.error is None, _library.CPU.error"
        return Item("build", (sys.executable, "-c", loaded), 30, vital=True)
    variables = {"MAX_JOBS": str(jobs), "UNET_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture}
    return Item("build", (sys.executable, "setup.py", "build_ext", "--inplace"), 65, variables, vital=True)


def fuzzing(device: str, jobs: int, names: list[str], cases: int) -> list[Item]:
    """Random cases of these operators, or of all, against independent truths, with each backend of the device."""
    command = (sys.executable, "-m", "benchmarks.gpu_check.fuzz", *names, "--device", device, "--cases", str(cases))
    backends = {"cuda": "fuzz", "triton": "fuzz_triton"} if device == "cuda" else {"cpp": "fuzz"}
    return [
        Item(
            name,
            (*command, "--jobs", str(jobs)),
            23 if backend == "triton" else 20,
            {"UNET_FAST_BACKEND": backend},
            ("hypothesis",),
        )
        for backend, name in backends.items()
    ]


def sanitizers(device: str) -> list[Item]:
    """Accesses out of bounds and races in shared memory, over a few cases of each operator."""
    few = (
        "from tests.fuzz.ops import OPS, fuzz, why_not; "
        f"[fuzz(op, 2, device={device!r}) for op in OPS if not why_not(op, {device!r})]"
    )
    checker = ("compute-sanitizer", "--error-exitcode", "9", "--print-limit", "5", "--tool")
    backend = {"UNET_FAST_BACKEND": "cuda" if device == "cuda" else "cpp"}
    # without torch's cache every tensor is an allocation, whose end the checker sees
    plain = {**backend, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    needs = ("compute-sanitizer", "hypothesis")
    return [
        Item(
            tool,
            (*checker, tool, sys.executable, "-c", few),
            28 if tool == "memcheck" else 22,
            plain if tool == "memcheck" else backend,
            needs,
        )
        for tool in ("memcheck", "racecheck")
    ]


def processors() -> int:
    """How many processes may run at a time."""
    return len(os.sched_getaffinity(0))
