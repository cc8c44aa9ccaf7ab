"""Builds the compiled parts of unet_fast and says what it decided.

    unet_fast/_numpy*.so       the CPU kernels for NumPy arrays (pybind11), no torch needed
    unet_fast/_torch_cpu.so    the CPU operators of torch, through torch's stable C ABI
    unet_fast/_torch_cuda.so   the CUDA operators, when torch has CUDA and nvcc is there

Environment: UNET_FAST_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXXFLAGS; UNET_FAST_SANITIZE=address,undefined (or
thread, for the NumPy module) builds the CPU parts for GCC's or Clang's sanitizers, as ``make sanitize`` does.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, include_paths, library_paths
except ImportError as error:
    sys.exit(
        f"unet_fast: building needs torch and pybind11 ({error}). Install them first "
        "(pip install torch pybind11 ninja), then build with: pip install --no-build-isolation ."
    )

ROOT = Path(__file__).resolve().parent
# The oldest torch whose stable ABI the operators use; a build then serves that version and all later ones.
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11
DEFAULT_ARCHITECTURES = ["8.0", "8.6", "9.0", "10.0"]
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
]
# What the compiler shall check at run time, none in a build that is used.
SANITIZERS = os.environ.get("UNET_FAST_SANITIZE", "")
if SANITIZERS:
    CXX_FLAGS += [
        f"-fsanitize={SANITIZERS}",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
        "-g1",
        "-O1",
        # its resolvers run before the sanitizers are ready
        "-DUF_NO_MULTIVERSION",
    ]
LINK_FLAGS = [f"-fsanitize={SANITIZERS}"] if SANITIZERS else []
# hidden as on the host side: two libraries define the same templates, and each must keep to its own
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden,-Wall"]


def say(text: str) -> None:
    print(f"unet_fast build: {text}", flush=True)


def sources(folder: str, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(pattern))


def bindings(device: str) -> list[str]:
    """From tensors to kernels: those that are written once for both devices, and those of this one."""
    return [*sources("bindings/torch", "*.cpp"), *sources(f"bindings/torch_{device}", "*.cpp")]


def nvcc_path() -> str | None:
    """The compiler that torch's builder takes; on the PATH where torch looks for none because it is a CPU build."""
    if CUDA_HOME and (Path(CUDA_HOME) / "bin" / "nvcc").exists():
        return str(Path(CUDA_HOME) / "bin" / "nvcc")
    return shutil.which("nvcc")


def nvcc_version() -> str:
    """Such as 13.0."""
    nvcc = nvcc_path()
    assert nvcc is not None
    listed = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", listed)
    return found[1] if found else "unknown version"


def decide_cuda() -> tuple[bool, str]:
    """Whether to build the CUDA library, and why. Never asks for a GPU: build machines seldom have one."""
    wish = os.environ.get("UNET_FAST_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"unet_fast: UNET_FAST_CUDA is {wish!r}, expected auto, 0 or 1")
    if wish == "0":
        return False, "UNET_FAST_CUDA=0"
    missing = []
    if not sources("cuda", "*.cu"):
        missing.append("this source tree has no CUDA kernels")
    if torch.version.cuda is None:
        missing.append("this torch is a CPU build (torch.version.cuda is None)")
    if nvcc_path() is None:
        missing.append("nvcc was not found (set CUDA_HOME)")
    elif torch.version.cuda is not None and nvcc_version().split(".")[0] != torch.version.cuda.split(".")[0]:
        missing.append(f"nvcc is of CUDA {nvcc_version()}, but torch was built with CUDA {torch.version.cuda}")
    if missing and wish == "1":
        sys.exit(f"unet_fast: UNET_FAST_CUDA=1, but {' and '.join(missing)}")
    if missing:
        return False, "; ".join(missing)
    return True, f"torch has CUDA {torch.version.cuda} and nvcc is {nvcc_path()}"


def set_architectures() -> str:
    """TORCH_CUDA_ARCH_LIST as given, else the default list narrowed to what this nvcc knows, the last one with PTX."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if given:
        return given
    nvcc = nvcc_path()
    assert nvcc is not None
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"compute_(\d+)", listed))
    chosen = [arch for arch in DEFAULT_ARCHITECTURES if arch.replace(".", "") in known]
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(chosen) + "+PTX"
    return os.environ["TORCH_CUDA_ARCH_LIST"]


def torch_extension(name: str, files: list[str], *, cuda: bool) -> Extension:
    """A library of torch operators. It is no Python module: unet_fast/ops/_library.py loads it."""
    device = "cuda" if cuda else "cpu"
    # torch_stable_abi keeps the headers to the stable part; libtorch_python is not linked
    libraries = ["c10", "torch", "torch_cpu"] + (["cudart", "c10_cuda", "torch_cuda"] if cuda else [])
    # USE_CUDA shows the CUDA part of torch's C interface, such as the current stream
    defines = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)] + ([("USE_CUDA", None)] if cuda else [])
    return Extension(
        name,
        files,
        include_dirs=[str(ROOT / "csrc"), *include_paths(device_type=device)],
        library_dirs=library_paths(device_type=device),
        libraries=libraries,
        define_macros=defines,
        language="c++",
        # one nvcc process compiles for four architectures at once: the build is as long as the slowest of them
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": [*NVCC_FLAGS, "--threads=4"]},
        extra_link_args=LINK_FLAGS,
    )


class Build(BuildExtension):
    """torch's builder; the CPU kernels are compiled once, with the NumPy module, and linked into both libraries."""

    def get_ext_filename(self, name: str) -> str:
        if name.split(".")[-1].startswith("_torch_"):
            return str(Path(*name.split("."))) + ".so"  # no Python in it, so no Python version in its name
        return super().get_ext_filename(name)

    def __init__(self, *arguments: object, info: dict[str, object], **options: object) -> None:
        super().__init__(*arguments, **options)
        self.info = info

    def run(self) -> None:
        super().run()
        if not SANITIZERS:  # which are built elsewhere
            package = ROOT if self.inplace else Path(self.build_lib)
            (package / "unet_fast" / "_build_info.json").write_text(json.dumps(self.info, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        build_temp = self.build_temp
        self.build_temp = str(Path(build_temp) / ext.name)  # else the ninja files of two libraries overwrite each other
        try:
            if ext.name == "unet_fast._torch_cpu":
                kernels = Path(build_temp) / "unet_fast._numpy"
                names = {Path(source).stem for source in sources("cpu", "*.cpp")}
                ext.extra_objects = [str(path) for path in sorted(kernels.rglob("cpu/*.o")) if path.stem in names]
            super().build_extension(ext)
        finally:
            self.build_temp = build_temp


def extensions() -> tuple[list[Extension], dict[str, object]]:
    """What is built, and what ``unet-fast info`` says of it."""
    use_ninja = shutil.which("ninja") is not None
    say(f"torch {torch.__version__}, pybind11 {pybind11.__version__}, Python {platform.python_version()}")
    say("ninja: " + ("yes" if use_ninja else "not found, compiling file by file (pip install ninja is faster)"))
    cuda, why = (False, "UNET_FAST_SANITIZE is for the CPU kernels") if SANITIZERS else decide_cuda()
    say(f"CUDA: {'yes' if cuda else 'no'} ({why})")
    built = [
        Extension(
            "unet_fast._numpy",
            [*sources("cpu", "*.cpp"), "csrc/bindings/numpy.cpp"],
            include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
            language="c++",
            extra_compile_args={"cxx": CXX_FLAGS},
            extra_link_args=["-pthread", *LINK_FLAGS],
        ),
    ]
    if "thread" not in SANITIZERS:  # which takes the barriers of torch's OpenMP for races
        built.append(torch_extension("unet_fast._torch_cpu", bindings("cpu"), cuda=False))
    info = {"torch": torch.__version__, "cuda": cuda, "cuda_reason": why, "cxx_flags": CXX_FLAGS}
    if cuda:
        info["cuda_architectures"] = set_architectures()
        say(f"CUDA architectures: {info['cuda_architectures']}")
        built.append(
            torch_extension(
                "unet_fast._torch_cuda",
                [*bindings("cuda"), *sources("cuda", "*.cu")],
                cuda=True,
            )
        )
    return built, info


if __name__ == "__main__":  # csrc/cuda/check.py and the tests import the flags and the decisions
    os.chdir(ROOT)
    modules, info = extensions()
    setup(
        ext_modules=modules,
        cmdclass={"build_ext": Build.with_options(use_ninja=shutil.which("ninja") is not None, info=info)},
    )
