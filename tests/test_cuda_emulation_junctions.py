"""The CUDA kernels of bias_relu, relu_pool_skip and conv_bias_relu, run on the CPU by the stand-in of cuda_emulation."""

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
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

if cuda_emulation.COMPILER is None:
    pytest.skip("no C++ compiler: the CUDA kernels were not run on the CPU", allow_module_level=True)


@pytest.fixture(scope="module")
def emulated():
    cuda_emulation.load()
    return torch.ops.unet_fast_emulated


def draw(generator, *shape, dtype, last):
    tensor = torch.randn(shape, generator=generator).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def test_the_tests_of_the_ops_pass(emulated):
    """Every layout, dtype, shape and gradient of the ops' own tests, with the CUDA kernels in place of the CPU ones."""
    files = ["tests/test_relu_pool_skip.py", "tests/test_bias_relu.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.cuda_emulation.plugin", "-p", "no:cacheprovider"]
    chosen = "not bad_input and not second_derivative and not threads and not graph_break"
    done = subprocess.run([*command, *files, "-k", chosen], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "crop", "up"),
    [
        ((2, 16, 24, 32), (16, 24), 16),  # whole vectors everywhere
        ((1, 8, 22, 24), (10, 16), 8),  # a crop that starts 4 columns in: halves of bfloat16 vectors
        ((1, 16, 17, 40), (9, 7), 3),  # an odd height, a crop between vectors, a buffer that is no whole vector
        ((2, 5, 9, 15), (9, 15), 0),
        ((1, 3, 2, 2), (1, 1), 1),
        ((1, 40, 70, 66), (1, 66), 8),  # many strips and chunks
    ],
)
def test_every_path_has_the_bits_of_the_cpu(shape, crop, up, dtype, last, emulated, generator):
    ops, (_, c, *size) = torch.ops.unet_fast, shape
    x, bias = draw(generator, *shape, dtype=dtype, last=last), torch.randn(c, generator=generator).to(wide(dtype))
    x[0, 0, 0, 1], x[0, -1, 1, 0] = float("nan"), float("inf")
    for b in (bias, None):
        pooled, buffer, code = emulated.relu_pool_skip(x, b, crop, up, True)
        truth = ops.relu_pool_skip(x, b, crop, up, True)
        torch.testing.assert_close((pooled, buffer, code), truth, **EXACT, equal_nan=True)
        assert emulated.relu_pool_skip(x, b, crop, up, False)[2].numel() == 0
    grads = [draw(generator, *tensor.shape, dtype=dtype, last=last) for tensor in (pooled, buffer)]
    grads[1][:, c:] = float("nan")  # nobody reads there
    for given in (grads, [grads[0], None], [None, grads[1]]):
        got, sums = emulated.relu_pool_skip_backward(code, *given, size, True)
        expected, expected_sums = ops.relu_pool_skip_backward(code, *given, size, True)
        torch.testing.assert_close(got, expected, **EXACT)
        torch.testing.assert_close(sums, expected_sums, **CHANNEL_SUM[dtype])
        again = emulated.relu_pool_skip_backward(code, *given, size, True)
        torch.testing.assert_close(again, (got, sums), **EXACT)
        alone, none = emulated.relu_pool_skip_backward(code, *given, size, False)
        torch.testing.assert_close(alone, expected, **EXACT)
        assert none.numel() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_that_are_slices(dtype, emulated, generator):
    """Strides that are no multiples of a vector, addresses in the middle of one, an expanded gradient."""
    for last in (False, True):
        x = draw(generator, 2, 16, 12, 16, dtype=dtype, last=last)
        code = torch.ops.unet_fast.relu_pool_skip(x, None, [8, 8], 0, True)[2]
        pooled = draw(generator, 2, 17, 7, 9, dtype=dtype, last=last)[:, 1:, 1:, 1:]
        buffer = draw(generator, 2, 20, 9, 9, dtype=dtype, last=last)[:, 3:, 1:, :8]
        for given in ((pooled, buffer), (pooled[:1].expand(2, -1, -1, -1), buffer.transpose(2, 3)), (None, buffer)):
            got = emulated.relu_pool_skip_backward(code, *given, [12, 16], True)
            expected = torch.ops.unet_fast.relu_pool_skip_backward(code, *given, [12, 16], True)
            torch.testing.assert_close(got[0], expected[0], **EXACT)
            torch.testing.assert_close(got[1], expected[1], **CHANNEL_SUM[dtype])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 16, 12, 16), (3, 5, 7, 9), (1, 2, 1, 3), (2, 24, 33, 35), (1, 300, 4, 4)])
def test_bias_and_relu_have_the_bits_of_the_cpu(shape, dtype, last, emulated, generator):
    """Planes that start and end in the middle of vectors, planes smaller than one, more channels than a block is wide."""
    ops = torch.ops.unet_fast
    x, grad = (draw(generator, *shape, dtype=dtype, last=last) for _ in range(2))
    bias = torch.randn(shape[1], generator=generator).to(wide(dtype))
    x[0, 0, 0, 0] = float("nan")
    for b in (bias, None):
        out, expected = emulated.bias_relu(x, b), ops.bias_relu(x, b)
        torch.testing.assert_close(out, expected, **EXACT, equal_nan=True)
        in_place = x.clone()
        emulated.bias_relu_(in_place, b)
        torch.testing.assert_close(in_place, expected, **EXACT, equal_nan=True)
        for want in (True, False):
            got, truth = emulated.bias_relu_backward(grad, out, want), ops.bias_relu_backward(grad, out, want)
            torch.testing.assert_close(got[0], truth[0], **EXACT)
            torch.testing.assert_close(got[1], truth[1], **CHANNEL_SUM[dtype])
            assert got[1].shape == (shape[1] if want else 0,)
    whole = draw(generator, 3, shape[1] + 1, *shape[2:], dtype=dtype, last=last)
    for part in (whole[1:, 1:], whole[1:]):  # not dense, and dense but perhaps not at the start of a vector
        expected = ops.bias_relu(part, None)
        torch.testing.assert_close(emulated.bias_relu(part, None), expected, **EXACT)
        emulated.bias_relu_(part, None)
        torch.testing.assert_close(part, expected, **EXACT)


def test_many_pixels_and_the_same_bits_in_every_run(emulated, generator):
    """More pixels than a strip has steps for, so that strips are as long as they get, and many partial sums."""
    for last in (False, True):
        grad, out = (draw(generator, 2, 3 if last else 1, 700, 701, dtype=torch.float32, last=last) for _ in range(2))
        first, again = (emulated.bias_relu_backward(grad, out.relu(), True) for _ in range(2))
        torch.testing.assert_close(first, again, **EXACT)
        torch.testing.assert_close(first[1].double(), first[0].double().sum((0, 2, 3)), **CHANNEL_SUM[torch.float32])


@pytest.mark.parametrize("wants", [(True, True, True), (True, False, True), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_convolution_through_the_dispatcher(dtype, wants, emulated, generator):
    x, weight = (
        draw(generator, 2, 5, 9, 8, dtype=dtype, last=False),
        draw(generator, 7, 5, 3, 3, dtype=dtype, last=False),
    )
    bias = torch.randn(7, generator=generator).to(wide(dtype))
    for b, padding in ((bias, 1), (None, 0)):
        out = emulated.conv_bias_relu(x, weight, b, padding)
        truth = torch.ops.unet_fast.conv_bias_relu(x, weight, b, padding)
        torch.testing.assert_close(out, truth, **CONVOLUTION[dtype])
        grad = draw(generator, *out.shape, dtype=dtype, last=False)
        got = emulated.conv_bias_relu_backward(grad, x, weight, out, padding, *wants)
        expected = torch.ops.unet_fast.conv_bias_relu_backward(grad, x, weight, out, padding, *wants)
        for one, other, wanted in zip(got, expected, wants, strict=True):
            assert one.numel() > 0 if wanted else one.numel() == 0
            torch.testing.assert_close(one, other, **CONVOLUTION[dtype])


def test_empty(emulated):
    for shape in ((0, 4, 6, 6), (2, 0, 6, 6)):
        x = torch.zeros(shape)
        pooled, buffer, code = emulated.relu_pool_skip(x, None, [4, 4], 3, True)
        assert pooled.shape == (*shape[:2], 3, 3) and buffer.shape == (shape[0], shape[1] + 3, 4, 4)
        grad_x, grad_bias = emulated.relu_pool_skip_backward(code, pooled, buffer, [6, 6], True)
        assert grad_x.shape == shape and grad_bias.tolist() == [0.0] * shape[1]
        assert emulated.bias_relu(x, None).shape == shape
        assert emulated.bias_relu_backward(x, x, True)[1].tolist() == [0.0] * shape[1]
