"""The CUDA kernels and bindings of up_conv_into, up_conv_crop_concat and head_cross_entropy, run on the CPU by the stand-in
of tests/cuda_emulation; torch's matrix products on the CPU take the place of cuBLAS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unet_fast.ops  # noqa: F401  the CPU kernels, which are the truth here
from tests import cuda_emulation
from tests.tolerances import CHANNEL_SUM, CONVOLUTION, EXACT

ROOT = Path(__file__).resolve().parents[1]

if cuda_emulation.COMPILER is None:
    pytest.skip("no C++ compiler: the CUDA kernels were not run on the CPU", allow_module_level=True)

# What does not depend on the kernel, and what raises on the CPU only.
LEFT_OUT = ["graph_break", "second_derivative", "bad_input", "layer_takes", "threads"]
LEFT_OUT += ["case3", "case1 and dtype1"]  # more classes than the kernel of the head takes
LEFT_OUT += ["does_not_fit"]  # the choice is by the kind of device, and emulated tensors are on the CPU


@pytest.fixture(scope="module")
def emulated():
    cuda_emulation.load()
    return torch.ops.unet_fast_emulated


def test_the_tests_of_the_ops_pass(emulated):
    """Every layout, dtype, shape and gradient of the ops' own tests, with the CUDA kernels in place of the CPU ones."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.cuda_emulation.plugin", "-p", "no:cacheprovider"]
    chosen = " and ".join(f"not ({name})" for name in LEFT_OUT)
    files = ["tests/test_up_conv.py", "tests/test_head_cross_entropy.py"]
    done = subprocess.run([*command, *files, "-k", chosen], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def up_conv_operands(generator, n, c_in, c_out, h, w, channels_last, dtype):
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(n, c_in, h, w, generator=generator).to(dtype).to(memory_format=form)
    weight = torch.randn(c_in, c_out, 2, 2, generator=generator).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return x, weight, torch.randn(c_out, generator=generator).to(wide), form


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 64, 9, 12), (1, 16, 24, 5, 7), (3, 3, 300, 4, 4), (2, 4, 2, 37, 40)])
def test_up_conv_whole_vectors_and_single_elements(shape, dtype, channels_last, emulated, generator):
    """Rows and channels that 16 bytes divide and others, several chunks of a plane, several blocks of channels."""
    x, weight, bias, form = up_conv_operands(generator, *shape, channels_last, dtype)
    n, _, c_out, h, w = shape
    for first in (0, 8, 3):  # channels in front of the buffer's last ones; 3 misalign them for channels-last
        buffers = [torch.ones(n, first + c_out, 2 * h, 2 * w, dtype=dtype).to(memory_format=form) for _ in range(2)]
        emulated.up_conv_into(x, weight, bias, buffers[0])
        torch.ops.unet_fast.up_conv_into(x, weight, bias, buffers[1])
        torch.testing.assert_close(*buffers, **CONVOLUTION[dtype])
        assert buffers[0][:, :first].eq(1).all()
        grad = torch.randn(buffers[0].shape, generator=generator).to(dtype).to(memory_format=form)
        got = emulated.up_conv_into_backward(grad, x, weight, True, True, True)
        want = torch.ops.unet_fast.up_conv_into_backward(grad, x, weight, True, True, True)
        for a, b, tolerance in zip(got, want, (CONVOLUTION, CONVOLUTION, CHANNEL_SUM), strict=True):
            assert a.dtype == b.dtype and a.stride() == b.stride()
            torch.testing.assert_close(a, b, **tolerance[dtype])


@pytest.mark.parametrize("channels_last", [False, True])
def test_up_conv_misaligned_and_expanded_memory(channels_last, emulated, generator):
    """A buffer that starts in the middle of a vector, and gradients that are slices or one number for all."""
    x, weight, bias, form = up_conv_operands(generator, 2, 4, 8, 4, 8, channels_last, torch.bfloat16)
    storage = torch.zeros(1 + 2 * 8 * 8 * 16, dtype=torch.bfloat16)
    buffer = storage[1:].view(2, 8, 16, 8).permute(0, 3, 1, 2) if channels_last else storage[1:].view(2, 8, 8, 16)
    whole = torch.zeros(2, 8, 8, 16, dtype=torch.bfloat16).to(memory_format=form)
    for out in (buffer, whole):
        emulated.up_conv_into(x, weight, bias, out)
    torch.testing.assert_close(buffer, whole, **EXACT)
    wide = torch.randn(2, 8, 9, 33, generator=generator).to(torch.bfloat16).to(memory_format=form)
    for grad in (
        wide[:, :, 1:, 1:17],
        wide[:, :, :8, ::2][..., :16],
        torch.ones((), dtype=x.dtype).expand(whole.shape),
    ):
        got = emulated.up_conv_into_backward(grad, x, weight, True, True, True)
        layout = grad.contiguous(
            memory_format=torch.channels_last if got[0].stride(1) == 1 else torch.contiguous_format
        )
        torch.testing.assert_close(got, emulated.up_conv_into_backward(layout, x, weight, True, True, True))


def test_up_conv_repeats_its_bits(emulated, generator):
    x, weight, _, form = up_conv_operands(generator, 2, 3, 5, 60, 70, True, torch.float32)
    grad = torch.randn(2, 5, 120, 140, generator=generator).to(memory_format=form)
    first = emulated.up_conv_into_backward(grad, x, weight, False, False, True)[2]
    torch.testing.assert_close(emulated.up_conv_into_backward(grad, x, weight, False, False, True)[2], first, **EXACT)
    torch.testing.assert_close(first, grad.double().sum((0, 2, 3)).float(), rtol=1e-5, atol=1e-4)
