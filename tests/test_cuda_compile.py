"""The CUDA sources compile without spills, and the build decides about CUDA as README and setup.py say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.scripts import ROOT, load


@pytest.fixture
def build() -> ModuleType:
    return load("setup.py")


@pytest.fixture
def check() -> ModuleType:
    return load("csrc/cuda/check.py")


def test_kernels_and_bindings_compile_for_hopper():
    """One architecture; `make cuda-check` does all of them."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on the PATH: the CUDA sources were not compiled")
    command = [sys.executable, "csrc/cuda/check.py", "--arch", "9.0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = len(list(ROOT.glob("csrc/cuda/*.cu")))
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{kernels} CUDA sources for 9.0 and ") and " 0 with spills, 0 symbols outside" in last
    assert "elastic_warp_kernel<float, int>" in done.stdout


PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstPf' for 'sm_90'
ptxas info    : Function properties for _Z5firstPf
    8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 192 bytes smem
ptxas info    : Compiling entry function '_Z6secondIN12_GLOBAL__N_14DataIfLi2EEEEvT_' for 'sm_90'
ptxas info    : Function properties for _Z6secondIN12_GLOBAL__N_14DataIfLi2EEEEvT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""


def test_listing_of_the_assembler(check):
    first, second = check.parse(PTXAS, "9.0")
    assert first == check.Kernel("_Z5firstPf", "9.0", registers=40, shared=192, stack=8, spilled=40)
    assert (second.registers, second.shared, second.spilled) == (12, 0, 0)
    lines = check.table([first, second]).splitlines()
    assert [line.split()[0] for line in lines] == ["kernel", "first", "second<Data<float,"]
    assert lines[1].split()[-1] == "40"


def test_what_is_compiled_again_depends_on_all_headers(check):
    """Those that a header of a header takes in among them, and no others."""
    names = {path.name for path in check.included(check.ROOT / "csrc" / "cuda" / "bias_relu.cu")}
    assert {"bias_relu.cu", "bias_relu.h", "dtype.h", "half.h", "macros.h"} <= names
    assert "elastic_warp.h" not in names and all(
        path.exists() for path in check.included(check.ROOT / "csrc" / "cuda" / "weight_map.cu")
    )


def test_unstable_symbols_are_found(check, tmp_path):
    """A binding that calls C++ of torch would break with the next release, so the check must see it."""
    source, library = tmp_path / "unstable.cpp", tmp_path / "unstable.so"
    source.write_text("namespace at { void empty(int); }\nvoid use() { at::empty(1); }\n")
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    assert check.unstable_symbols(library) == ["at::empty(int)"]


@pytest.fixture
def gpu_machine(build, monkeypatch) -> ModuleType:
    """setup.py on a machine where nothing is missing."""
    monkeypatch.setattr(build.torch, "version", SimpleNamespace(cuda="13.0"))
    monkeypatch.setattr(build, "nvcc_path", lambda: "/opt/cuda/bin/nvcc")
    monkeypatch.setattr(build, "nvcc_version", lambda: "13.1")
    monkeypatch.delenv("UNET_FAST_CUDA", raising=False)
    return build


@pytest.mark.parametrize("wish", [None, "auto", "1"])
def test_cuda_is_built_when_nothing_is_missing(wish, gpu_machine, monkeypatch):
    if wish:
        monkeypatch.setenv("UNET_FAST_CUDA", wish)
    assert gpu_machine.decide_cuda() == (True, "torch has CUDA 13.0 and nvcc is /opt/cuda/bin/nvcc")


MISSING = {
    "this torch is a CPU build": ("torch", "version", SimpleNamespace(cuda=None)),
    "nvcc was not found (set CUDA_HOME)": (None, "nvcc_path", lambda: None),
    "nvcc is of CUDA 12.8, but torch was built with CUDA 13.0": (None, "nvcc_version", lambda: "12.8"),
    "this source tree has no CUDA kernels": (None, "sources", lambda folder, pattern: []),
}


@pytest.mark.parametrize("reason", MISSING)
def test_what_is_missing_is_named(reason, gpu_machine, monkeypatch):
    owner, name, value = MISSING[reason]
    monkeypatch.setattr(gpu_machine.torch if owner else gpu_machine, name, value)
    wanted, why = gpu_machine.decide_cuda()
    assert not wanted and why.startswith(reason)
    monkeypatch.setenv("UNET_FAST_CUDA", "1")
    with pytest.raises(SystemExit, match="^unet_fast: UNET_FAST_CUDA=1, but ") as stopped:
        gpu_machine.decide_cuda()
    assert reason in str(stopped.value)


def test_cuda_can_be_refused_and_the_wish_is_checked(gpu_machine, monkeypatch):
    monkeypatch.setenv("UNET_FAST_CUDA", "0")
    assert gpu_machine.decide_cuda() == (False, "UNET_FAST_CUDA=0")
    monkeypatch.setenv("UNET_FAST_CUDA", "yes")
    with pytest.raises(SystemExit, match="UNET_FAST_CUDA is 'yes', expected auto, 0 or 1"):
        gpu_machine.decide_cuda()


def test_build_stops_before_compiling_where_cuda_was_asked_for_in_vain(tmp_path):
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA: UNET_FAST_CUDA=1 would build it")
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    environment = {**os.environ, "UNET_FAST_CUDA": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("unet_fast: UNET_FAST_CUDA=1, but this torch is a CPU build")
    assert not list(tmp_path.iterdir())


def test_architectures(build, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;8.9")
    assert build.set_architectures() == "7.5;8.9"
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    old = tmp_path / "nvcc"
    old.write_text("#!/bin/sh\nprintf 'compute_75\\ncompute_80\\ncompute_86\\ncompute_90\\n'\n")
    old.chmod(0o755)
    monkeypatch.setattr(build, "nvcc_path", lambda: str(old))
    assert build.set_architectures() == "8.0;8.6;9.0+PTX" == os.environ["TORCH_CUDA_ARCH_LIST"]
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
