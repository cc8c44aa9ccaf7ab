"""The CUDA kernels and bindings themselves, run on the CPU by the stand-in of tests/cuda_emulation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unet_fast.ops  # noqa: F401  the CPU kernels, which are the truth here
from tests import cuda_emulation
from tests.tolerances import CROSS_ENTROPY, CROSS_ENTROPY_GRADIENT, EXACT

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "tests" / "cuda_emulation"

if cuda_emulation.COMPILER is None:
    pytest.skip("no C++ compiler: the CUDA kernels were not run on the CPU", allow_module_level=True)

# What only the CPU kernels do (look at the targets and complain), and what does not depend on the kernel.
LEFT_OUT = ["outside_the_classes", "graph_break", "registration", "second_derivatives", "backends", "bad_input"]


@pytest.fixture(scope="module")
def emulated():
    cuda_emulation.load()
    return torch.ops.unet_fast_emulated


def test_the_tests_of_the_ops_pass(emulated):
    """Every layout, dtype, shape and gradient of the ops' own tests, with the CUDA kernels in place of the CPU ones."""
    files = ["tests/test_crop_concat.py", "tests/test_weighted_cross_entropy.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.cuda_emulation.plugin", "-p", "no:cacheprovider"]
    chosen = " and ".join(f"not {name}" for name in LEFT_OUT)
    done = subprocess.run([*command, *files, "-k", chosen], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_bad_target_makes_its_pixel_nan_and_no_other(dtype, classes, channels_last, emulated, generator):
    logits = torch.randn(2, classes, 8, 12, generator=generator).to(dtype)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, classes, (2, 8, 12), generator=generator)
    target[0, 3, 5], target[1, 7, 11] = classes, -1
    bad = (target < 0) | (target >= classes)
    for reduction in range(4):
        loss, grad = emulated.weighted_cross_entropy(logits, target, None, -100, reduction, True)
        assert torch.equal(loss.isnan(), bad if reduction == 0 else torch.tensor(True))
        assert torch.equal(grad.isnan().any(1), bad) and torch.equal(grad.isnan().all(1), bad)


@pytest.mark.parametrize("classes", [2, 5])
def test_more_tiles_than_blocks_and_the_same_bits_in_every_run(classes, emulated, generator):
    """Blocks walk on to other tiles and images; odd sizes leave every last tile incomplete."""
    logits = torch.randn(3, classes, 601, 603, generator=generator).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, classes, (3, 601, 603), generator=generator)
    weight = torch.rand(3, 601, 603, generator=generator)
    first = emulated.weighted_cross_entropy(logits, target, weight, -100, 2, True)
    again = emulated.weighted_cross_entropy(logits, target, weight, -100, 2, True)
    torch.testing.assert_close(again, first, **EXACT)
    loss, grad = torch.ops.unet_fast.weighted_cross_entropy(logits, target, weight, -100, 2, True)
    torch.testing.assert_close(first[0], loss, **CROSS_ENTROPY[torch.float32])
    assert (first[1] - grad).abs().max() <= CROSS_ENTROPY_GRADIENT[torch.float32] * grad.abs().max()


@pytest.mark.parametrize("reduction", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 33, 31), (2, 21, 16, 24), (1, 150, 9, 8), (1, 300, 5, 8), (2, 16, 1, 3)])
def test_many_classes_in_both_layouts(shape, dtype, reduction, emulated, generator):
    """Channels-last goes through shared memory in tiles of 256 pixels or fewer, or not at all for 300 classes."""
    n, k, *size = shape
    logits = (torch.randn(shape, generator=generator) * 3).to(dtype)
    target, weight = torch.randint(0, k, (n, *size), generator=generator), torch.rand((n, *size), generator=generator)
    target[0, 0, 1] = 255
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    arguments = (target, weight.to(wide), 255, reduction, True)
    last = emulated.weighted_cross_entropy(logits.contiguous(memory_format=torch.channels_last), *arguments)
    truth = torch.ops.unet_fast.weighted_cross_entropy(logits, *arguments)
    for loss, grad in (last, emulated.weighted_cross_entropy(logits, *arguments)):
        torch.testing.assert_close(loss, truth[0], **CROSS_ENTROPY[dtype])
        error, largest = (grad.double() - truth[1].double()).abs().max(), truth[1].double().abs().max()
        assert error <= CROSS_ENTROPY_GRADIENT[dtype] * largest
    no_grad = emulated.weighted_cross_entropy(logits, target, weight.to(wide), 255, reduction, False)[0]
    torch.testing.assert_close(no_grad, last[0], **CROSS_ENTROPY[dtype])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 8])
def test_misaligned_slices(classes, channels_last, emulated, generator):
    """A slice that starts in the middle of a vector takes the narrow path: the wide one would trap here."""
    storage = torch.randn(1 + 2 * classes * 8 * 8, generator=generator)
    logits = storage[1:].view(2, classes, 8, 8)
    if channels_last:
        logits = storage[1:].view(2, 8, 8, classes).permute(0, 3, 1, 2)
    target, weight = torch.ones(129, dtype=torch.int32)[1:].view(2, 8, 8), torch.ones(129)[1:].view(2, 8, 8)
    assert logits.data_ptr() % 16 and target.data_ptr() % 16 and weight.data_ptr() % 16
    sliced = emulated.weighted_cross_entropy(logits, target, weight, -100, 1, True)
    whole = emulated.weighted_cross_entropy(logits.clone(), target.clone(), weight.clone(), -100, 1, True)
    torch.testing.assert_close(sliced[1], whole[1], **EXACT)
    out = emulated.crop_concat(logits, logits)
    torch.testing.assert_close(out, torch.cat([logits, logits], 1), **EXACT)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [(torch.uint8, 1), (torch.int16, 2), (torch.float32, 4), (torch.float64, 8), (torch.complex128, 16)],
)
def test_every_word_width_and_more_words_than_threads(dtype, words, emulated, generator):
    """Odd rows allow only words of one element, and there are more of them than one for each thread."""
    skip = (torch.rand(1, 3, 515, 517, generator=generator) * 100).to(dtype)
    up = (torch.rand(1, 2, 513, 515, generator=generator) * 100).to(dtype)
    assert skip.element_size() == words
    out = emulated.crop_concat(skip, up)
    torch.testing.assert_close(out, torch.cat([skip[:, :, 1:514, 1:516], up], 1), **EXACT)
    padded = torch.zeros_like(skip)
    padded[:, :, 1:514, 1:516] = out[:, :3]
    torch.testing.assert_close(emulated.crop_concat_backward(out, 3, [515, 517]), padded, **EXACT)


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
    command = [cuda_emulation.COMPILER, "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", *flags]
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
    done = run_program(BARRIERS.replace("BARRIER", barrier), tmp_path, f"-I{HERE}")
    if printed == "many wrong":  # how many depends on the order of the threads
        assert done.stdout.endswith(" wrong") and done.stdout != "0 wrong"
    else:
        assert done.stdout == printed
    assert (done.returncode != 0 and "different barriers" in done.stderr) == (printed == "")
