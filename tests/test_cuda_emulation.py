"""The stand-in for CUDA's runtime (tests/cuda_emulation) finds what it is made for; division by multiplication is exact."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import cuda_emulation

if cuda_emulation.COMPILER is None:
    pytest.skip("no C++ compiler: the stand-in for CUDA was not tried out", allow_module_level=True)

DIVISIONS = """
#include "common/fast_divide.h"

#include <cstdio>

int main() {
  const int64_t most = (int64_t{1} << 31) - 1;
  uint64_t state = 88172645463325252u, wrong = 0;
  for (int i = 0; i < 3000000; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;  // xorshift
    const int64_t d = i < 70000 ? i + 1 : 1 + static_cast<int64_t>(state % most) % (int64_t{1} << (state >> 59));
    const uf::Divide<uint32_t> divide(d);
    const uf::Divide<uint64_t> wide(d);
    const int64_t numbers[] = {0, d - 1, d, most / d * d - 1, most / d * d, most, static_cast<int64_t>(state >> 33)};
    for (const int64_t n : numbers)
      wrong += n >= 0 && (divide(static_cast<uint32_t>(n)) != n / d || wide(static_cast<uint64_t>(n)) != uint64_t(n / d));
  }
  std::printf("%d wrong", static_cast<int>(wrong));
}
"""


def run_program(source: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.cpp").write_text(source)
    command = [cuda_emulation.COMPILER, "-std=c++20", "-O1", f"-I{cuda_emulation.ROOT / 'csrc'}", *flags]
    subprocess.run([*command, str(folder / "program.cpp"), "-o", str(folder / "program")], check=True)
    return subprocess.run([str(folder / "program")], capture_output=True, text=True, timeout=120)


def test_division_by_multiplication_is_exact(tmp_path):
    assert run_program(DIVISIONS, tmp_path).stdout == "0 wrong"


BARRIERS = """
#include <cuda_runtime.h>

__global__ void kernel(int* out) {
  __shared__ int seen[64];
  seen[threadIdx.x] = threadIdx.x;
  BARRIER
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, seen[63 - threadIdx.x], 1);
}

int main() {
  int out[64], wrong = 0;
  cudaLaunchConfig_t config;
  config.blockDim = dim3(64);
  cudaLaunchKernelEx(&config, kernel, out);
  for (int i = 0; i < 64; ++i) wrong += out[i] != 63 - (i ^ 1);
  std::printf("%d wrong", wrong);
}
"""


@pytest.mark.parametrize(
    ("barrier", "printed"),
    [("__syncthreads();", "0 wrong"), ("", "many wrong"), ("if (threadIdx.x % 2) __syncthreads();", "")],
)
def test_the_emulation_finds_missing_and_divergent_barriers(barrier, printed, tmp_path):
    done = run_program(BARRIERS.replace("BARRIER", barrier), tmp_path, f"-I{cuda_emulation.HERE}")
    if printed == "many wrong":  # how many depends on the order of the threads
        assert done.stdout.endswith(" wrong") and done.stdout != "0 wrong"
    else:
        assert done.stdout == printed
    assert (done.returncode != 0 and "different barriers" in done.stderr) == (printed == "")
