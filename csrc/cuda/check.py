"""Compiles every CUDA source for every architecture and the bindings against torch's stable interface. Needs no GPU.

    python csrc/cuda/check.py [--arch 9.0 ...] [--jobs 2] [--write FILE.txt]

Prints registers, shared memory and spills of every kernel. Fails when something does not compile, when a kernel spills
registers to memory, when a binding warns, or when the library would need symbols outside torch's stable C interface.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "cuda_check"  # what was compiled, for the next time
sys.path.insert(0, str(ROOT))

from torch.utils.cpp_extension import include_paths  # noqa: E402

import setup as build  # noqa: E402


@dataclass(frozen=True)
class Kernel:
    """What the assembler says about one kernel on one architecture; sizes in bytes."""

    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spilled: int


def run(command: list[str]) -> str:
    """The output of a command; ends the program with that output when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\nCUDA check: this command failed")
    return done.stdout


def included(source: Path) -> set[Path]:
    """A source and all of our headers that it takes in, also by way of others."""
    found, waiting = {source}, [source]
    while waiting:
        for name in re.findall(r'^#include "(.+)"', waiting.pop().read_text(), re.MULTILINE):
            header = ROOT / "csrc" / name
            if header not in found:
                found.add(header)
                waiting.append(header)
    return found


def kept(command: list[str], source: Path, suffix: str) -> tuple[Path, str]:
    """The object that this command makes of a source, and what was printed; compiled only where something has changed."""
    state = hashlib.sha256(" ".join([build.nvcc_version(), *command]).encode())
    for path in sorted(included(source)):
        state.update(path.read_bytes())
    target = FOLDER / f"{source.parent.name}-{source.stem}-{suffix}-{state.hexdigest()[:16]}.o"
    listing = target.with_suffix(".txt")
    if not listing.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        for old in FOLDER.glob(f"{source.parent.name}-{source.stem}-{suffix}-*"):
            old.unlink()
        printed = run([*command, "-c", str(source), "-o", str(target)])
        unfinished = listing.with_suffix(f".{os.getpid()}")
        unfinished.write_text(printed)
        unfinished.replace(listing)
    return target, listing.read_text()


def compile_kernels(nvcc: str, source: Path, arch: str) -> tuple[Path, list[Kernel]]:
    number = arch.replace(".", "")
    code = f"arch=compute_{number},code=sm_{number}"
    flags = [*build.NVCC_FLAGS, "-Xcompiler=-fPIC", "-Xptxas=-v", f"-I{ROOT / 'csrc'}", "-gencode", code]
    target, listing = kept([nvcc, *flags], source, arch)
    return target, parse(listing, arch)


def parse(listing: str, arch: str) -> list[Kernel]:
    """The kernels in what ``ptxas -v`` prints."""
    kernels = []
    for part in re.split(r"Compiling entry function '", listing)[1:]:
        name = part.split("'", 1)[0]
        stack, stores, loads = _numbers(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        (registers,) = _numbers(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        kernels.append(Kernel(name, arch, registers, int(shared[1]) if shared else 0, stack, stores + loads))
    return kernels


def _numbers(pattern: str, text: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    if found is None:
        sys.exit(f"CUDA check: no {pattern!r} in what ptxas printed:\n{text}")
    return tuple(int(group) for group in found.groups())


def compile_binding(nvcc: str, source: Path) -> Path:
    """With setup.py's flags and warnings as errors. Through nvcc, which knows where CUDA's headers are."""
    headers = [f"-isystem={path}" for path in include_paths()]
    defines = ["-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={build.TORCH_TARGET_VERSION}"]
    host = ",".join([*(flag for flag in build.CXX_FLAGS if flag[:2] in ("-f", "-W")), "-Werror", "-fPIC"])
    flags = ["-std=c++20", "-O1", f"-Xcompiler={host}", f"-I{ROOT / 'csrc'}", *headers, *defines]
    return kept([nvcc, "-x", "c++", *flags], source, "binding")[0]


def unstable_symbols(library: Path) -> list[str]:
    """C++ symbols of torch that the library expects from outside: its stable interface is plain C."""
    symbols = run(["nm", "--dynamic", "--demangle", "--undefined-only", str(library)])
    return sorted(set(re.findall(r"\b(?:c10|at|torch)::\S.*", symbols)))


def table(kernels: list[Kernel]) -> str:
    """One line a kernel, one column an architecture."""
    plain = run(["c++filt", *{kernel.name for kernel in kernels}]).splitlines()
    names = dict(zip({kernel.name for kernel in kernels}, plain, strict=True))
    rows: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        rows[short(names[kernel.name])].append(kernel)
    archs = sorted({kernel.arch for kernel in kernels}, key=float)
    width = max(map(len, rows))
    lines = [f"{'kernel':{width}}  registers on {'  '.join(archs)}   shared  spilled"]
    for name, row in sorted(rows.items()):
        used = {kernel.arch: kernel.registers for kernel in row}
        cells = "  ".join(f"{used[arch]:{max(3, len(arch))}}" for arch in archs)
        spilled = sum(kernel.spilled for kernel in row)
        lines.append(f"{name:{width}}  {'':12} {cells}   {max(kernel.shared for kernel in row):6}  {spilled:7}")
    return "\n".join(lines)


def short(name: str) -> str:
    """A kernel's name and template arguments without the namespaces and parameters."""
    name = re.sub(r"^void |\(anonymous namespace\)::|uf::(cuda::)?", "", name)
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--arch", nargs="+", default=build.DEFAULT_ARCHITECTURES, help="such as 9.0 (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default: %(default)s)")
    parser.add_argument("--write", type=Path, help="a text file for the table")
    options = parser.parse_args()
    nvcc = build.nvcc_path()
    if nvcc is None:
        sys.exit("CUDA check: nvcc was not found; put it on the PATH or set CUDA_HOME")
    sources = sorted(ROOT.glob("csrc/cuda/*.cu"))
    bindings = [ROOT / path for path in build.bindings("cuda")]
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        bound = [pool.submit(compile_binding, nvcc, path) for path in bindings]
        waiting = {
            arch: [pool.submit(compile_kernels, nvcc, source, arch) for source in sources] for arch in options.arch
        }
        kernels = [kernel for compiled in waiting.values() for each in compiled for kernel in each.result()[1]]
        one_arch = [each.result()[0] for each in waiting[options.arch[0]]]
        library = Path(folder) / "check.so"
        objects = [*(each.result() for each in bound), *one_arch]
        run([nvcc, "-shared", "--cudart=shared", *map(str, objects), "-o", str(library)])
        unstable = unstable_symbols(library)
    listed = table(kernels)
    print(listed)
    if options.write:  # for later runs to be compared with
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(f"nvcc {build.nvcc_version()}\n{listed}\n")
    spilling = [kernel for kernel in kernels if kernel.spilled]
    print(
        f"{len(sources)} CUDA sources for {', '.join(options.arch)} and {len(bindings)} bindings compiled and linked; "
        f"{len(kernels)} kernels, {len(spilling)} with spills, {len(unstable)} symbols outside torch's stable interface"
    )
    if spilling or unstable:
        sys.exit(
            "\n".join(
                ["CUDA check failed:", *(f"{k.name} on {k.arch}: {k.spilled} bytes" for k in spilling), *unstable]
            )
        )


if __name__ == "__main__":
    main()
