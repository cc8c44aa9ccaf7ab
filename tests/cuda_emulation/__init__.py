"""The CUDA kernels and their bindings, compiled for the CPU against a stand-in for CUDA's runtime (cuda_runtime.h here).

This finds wrong indices, strides, tails, alignments, reductions and bindings without a GPU. It says nothing about speed,
about memory that only a GPU has, or about threads of one warp that overtake each other.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from tests import scripts
from unet_fast.ops import _record

ROOT = scripts.ROOT
HERE = Path(__file__).resolve().parent
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = [
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wno-unknown-pragmas",
    # a misaligned vector, an index out of a local array or an overflow ends the program
    "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]
JOBS = 2


@functools.cache  # one library in a process, also when sources change meanwhile
def library() -> Path:
    """Compiles what is not yet compiled from the present sources and returns the path of the library."""
    assert COMPILER is not None, "no C++ compiler"
    included = scripts.load("csrc/cuda/check.py").included
    everywhere = [*HERE.glob("*.h"), Path(__file__)]
    kernels = sorted(ROOT.glob("csrc/cuda/*.cu"))
    bindings = sorted([*ROOT.glob("csrc/bindings/torch/*.cpp"), *ROOT.glob("csrc/bindings/torch_cuda/*.cpp")])
    state = hashlib.sha256(torch.__version__.encode())
    for path in sorted(everywhere):
        state.update(path.read_bytes())
    folder = ROOT / "build" / "cuda_emulation"
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{HERE}", f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in include_paths())]

    def compile_one(source: Path) -> Path:
        own = state.copy()
        for path in sorted(included(source)):  # a header that others take in compiles nothing here again
            own.update(path.read_bytes())
        target = folder / f"{source.stem}-{source.suffix[1:]}-{own.hexdigest()[:16]}.o"
        if not target.exists():
            register = ["-include", str(HERE / "registration.h")] if source in bindings else []
            _run([COMPILER, *FLAGS, *includes, *register, "-xc++", "-c", str(source)], target)
        return target

    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(compile_one, [*kernels, *bindings, HERE / "device.cpp"]))
    name = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    target = folder / f"emulated-{name}.so"
    if not target.exists():
        # symbolic: the stand-ins for torch's functions come before torch's own
        torch_libraries = [*(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch", "-ltorch_cpu"]
        _run([COMPILER, "-shared", "-Wl,-Bsymbolic", *map(str, objects), *torch_libraries], target)
    return target


def _run(command: list[str], target: Path) -> None:
    unfinished = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    unfinished.replace(target)


@functools.cache
def load() -> list[str]:
    """Loads the library; the names of the ops that have a kernel in it, which are in ``torch.ops.unet_fast_emulated``."""
    for operator in _record.operators():
        _LIBRARY.define(operator.schema)
    torch.ops.load_library(str(library()))
    names = [operator.name for operator in _record.operators()]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return [name for name in names if has_kernel(f"unet_fast_emulated::{name}", "CPU")]


_LIBRARY = torch.library.Library("unet_fast_emulated", "FRAGMENT")
