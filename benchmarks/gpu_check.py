"""Evidence from a machine with a GPU, in less than nine minutes: ``python -m benchmarks.gpu_check [STAGE ...]``.

Uses the current interpreter and what is installed there, no network, no virtual environment: torch with CUDA, nvcc,
Triton, and what the tests need. The stages are independent: one that fails or runs out of time is recorded, and the next
runs. All of it goes into benchmarks/results/<gpu>/gpu_check.json, written anew after every stage, and into a folder named
by the variable OUT, where that is set. ``--device cpu`` tries out the stages where there is no GPU, and
leaves its report in build/.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, commit, conditions, machine_name

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 530.0  # seconds; the limits of the stages add up to no more
LINES = 60  # of a stage's output that are kept
OURS = r"\b(?:place|DEVICES)\b"  # in the tests that run on every device
CLOCKS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


@dataclass(frozen=True)
class Stage:
    """A command, the variables it needs, and the seconds it may take."""

    name: str
    command: tuple[str, ...]
    limit: float
    variables: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # programs, or modules of Python


def stages(device: str, jobs: int) -> list[Stage]:
    """What runs on this kind of device."""
    python = sys.executable
    on_gpu = device == "cuda"
    build = {"MAX_JOBS": str(jobs)}
    if on_gpu:  # for the GPU at hand only: four times as fast as for all
        major, minor = torch.cuda.get_device_capability()
        build |= {"UNET_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    processes = ("-n", str(jobs), "--dist", "worksteal") if importlib.util.find_spec("xdist") else ()
    fuzz = (python, "-m", "tests.fuzz", "--device", device, "--jobs", str(min(jobs, 6)))
    few = (
        "from tests.fuzz.ops import OPS, fuzz, why_not; "
        f"[fuzz(op, 3, device={device!r}) for op in OPS if not why_not(op, {device!r})]"
    )
    sanitizer = ("compute-sanitizer", "--error-exitcode", "9", "--print-limit", "5")
    backend = {"UNET_FAST_BACKEND": "cuda" if on_gpu else "cpp"}
    plain = {**backend, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # an allocation each: the checker sees its end
    found = [
        Stage("build", (python, "setup.py", "build_ext", "--inplace"), 150, build),
        Stage("info", (python, "-c", "from unet_fast.info import print_info; print_info()"), 15),
        Stage(
            "tests",
            (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *processes, *device_tests()),
            110,
            {"FUZZ_CASES": "20"},
            ("pytest", "hypothesis"),
        ),
        Stage("fuzz", (*fuzz, "--cases", "200"), 25, backend, ("hypothesis",)),
        Stage(
            "memcheck",
            (*sanitizer, "--tool", "memcheck", python, "-c", few),
            40,
            plain,
            ("compute-sanitizer", "hypothesis"),
        ),
        Stage(
            "racecheck",
            (*sanitizer, "--tool", "racecheck", python, "-c", few),
            40,
            backend,
            ("compute-sanitizer", "hypothesis"),
        ),
        Stage("benchmarks", (python, "-m", "benchmarks", "--device", device, "--quick"), 120),
    ]
    if on_gpu:
        triton = Stage("fuzz_triton", (*fuzz, "--cases", "50"), 25, {"UNET_FAST_BACKEND": "triton"}, ("hypothesis",))
        found.insert(4, triton)
    assert sum(stage.limit for stage in found) <= TOTAL
    return found


def device_tests() -> tuple[str, ...]:
    """The test files that take their device from tests/devices.py."""
    return tuple(
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if re.search(OURS, path.read_text())
    )


def run(stage: Stage) -> dict[str, Any]:
    """Run one stage; what happened, never an exception."""
    record: dict[str, Any] = {
        "command": " ".join([*(f"{name}={value}" for name, value in stage.variables.items()), *stage.command]),
        "limit": stage.limit,
    }
    missing = [name for name in stage.needs if not shutil.which(name) and not importlib.util.find_spec(_module(name))]
    if missing:
        return {**record, "outcome": f"not run: {', '.join(missing)} not installed here", "seconds": 0.0}
    began = time.monotonic()
    process = subprocess.Popen(
        stage.command,
        cwd=ROOT,
        env={**os.environ, **stage.variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its children end with it
    )
    try:
        output, _ = process.communicate(timeout=stage.limit)
        outcome = "passed" if process.returncode == 0 else f"failed with {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        outcome = f"not finished after {stage.limit:.0f} s"
    return {
        **record,
        "outcome": outcome,
        "seconds": round(time.monotonic() - began, 1),
        "output": output.splitlines()[-LINES:],
    }


def _module(name: str) -> str:
    return name.replace("-", "_")


def clocks() -> str:
    """What nvidia-smi says of the GPU now."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi here"
    query = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


def versions() -> dict[str, str]:
    """Of what the figures depend on, besides :func:`benchmarks.common.conditions`."""
    from importlib.metadata import distributions

    wanted = {"triton", "numpy", "scipy", "hypothesis", "pytest", "cupy-cuda13x", "cupy-cuda12x", "monai", "kornia"}
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"] in wanted}
    nvcc = shutil.which("nvcc")
    listed = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout if nvcc else ""
    release = re.search(r"release ([\d.]+)", listed)
    return {**found, "cuda of torch": str(torch.version.cuda), "nvcc": release[1] if release else "not found"}


def save(path: Path, report: dict[str, Any], folder_of_figures: Path) -> None:
    """Write the report, and copy it and the benchmarks' files to OUT."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(temporary, path)
    out = os.environ.get("OUT")
    if out:
        folder = Path(out) / folder_of_figures.name
        folder.mkdir(parents=True, exist_ok=True)
        for file in (path, *(folder_of_figures / name for name in report["figures"])):
            shutil.copy(file, folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="stages to run (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time (default: %(default)s)")
    parser.add_argument("--commit", default=commit(), help="of this copy, where git cannot tell (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu tries out the stages without one")
    available = {stage.name: stage for stage in stages(options.device, options.jobs)}
    unknown = set(options.stages) - set(available)
    if unknown:
        parser.error(f"no stage named {', '.join(sorted(unknown))}; there are {', '.join(available)}")
    files = RESULTS / machine_name(options.device)
    path = (files if options.device == "cuda" else ROOT / "build") / "gpu_check.json"
    report: dict[str, Any] = {
        **conditions(options.device),
        "commit": options.commit,
        "versions": versions(),
        "clocks before": clocks(),
        "stages": {},
        "figures": {},
    }
    began = time.time()
    for name in options.stages or available:
        print(f"gpu-check: {name}, at most {available[name].limit:.0f} s", flush=True)
        record = report["stages"][name] = run(available[name])
        report["figures"] = {
            file.name: json.loads(file.read_text())["rows"]
            for file in sorted(files.glob("*.json"))
            if file.stat().st_mtime >= began and file != path
        }
        report["clocks after"] = clocks()
        save(path, report, files)
        print(f"gpu-check: {name} {record['outcome']}, {record['seconds']} s", flush=True)
        if record["outcome"] != "passed":
            print("\n".join(record.get("output", [])), flush=True)
    print(f"gpu-check: {time.time() - began:.0f} s, wrote {path.relative_to(ROOT)}")
    if any(record["outcome"] != "passed" for record in report["stages"].values()):
        sys.exit("gpu-check: not everything passed")


if __name__ == "__main__":
    main()
