"""The CUDA kernels of elastic_warp, run on the CPU by the stand-in of tests/cuda_emulation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import unet_fast.ops  # noqa: F401  torch.ops.unet_fast, which the emulated kernels are compared with
from tests import cuda_emulation
from tests.test_elastic_warp import draw, draw_field, draw_labels, draw_matrix
from tests.tolerances import EXACT, WARP

if cuda_emulation.COMPILER is None:
    pytest.skip("no C++ compiler: the CUDA kernels were not run on the CPU", allow_module_level=True)

# What only the CPU kernels do, and what does not depend on the kernel.
LEFT_OUT = [
    "threads",
    "elasticdeform",
    "registration",
    "numpy",
    "bad_",
    "module",
    "output_sizes",
    "not_there",
    "compiles",
]
LEFT_OUT += ["test_gradients"]  # numeric derivatives: the gradients are compared with the CPU's below
CPU = torch.ops.unet_fast


@pytest.fixture(scope="module")
def emulated():
    cuda_emulation.load()
    return torch.ops.unet_fast_emulated


def test_the_tests_of_the_op_pass():
    """Oracles, layouts, dtypes, crops, coordinates that are nowhere, gradients: with the CUDA kernels."""
    cuda_emulation.library()
    files = ["tests/test_elastic_warp.py", "tests/test_elastic_warp_api.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.cuda_emulation.plugin", "-p", "no:cacheprovider"]
    chosen = " and ".join(f"not {name}" for name in LEFT_OUT)
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([*command, *files, "-k", chosen], cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("field", range(3))
@pytest.mark.parametrize("grid", [(4, 4), (40, 90)], ids=["sparse", "dense"])
def test_one_launch_equals_the_cpp_kernels(grid, field, emulated, rng):
    """Sizes, dtypes, strides and interpolations all differ; 10 images take two launches; dense grids have no table."""
    images = [draw(rng, 2, c, 45, 150, dtype=torch.float32) for c in (1, 3, 2)]
    images[1] = images[1].to(memory_format=torch.channels_last).bfloat16()
    images[2] = images[2].transpose(2, 3).contiguous().transpose(2, 3).half()
    images += [
        draw_labels(rng, 2, 1, 45, 150).to(dtype) for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64)
    ]
    images += [draw(rng, 4, 2, 50, 160)[1:3, 1:, 5:, 3:153].float(), images[0][:, :0], images[0]]
    kinds = [2, 1, 1, 0, 0, 0, 0, 2, 1, 0]
    sizes = [(45, 150), (20, 60), (60, 170), (45, 150), (1, 1), (33, 65), (50, 150), (44, 149), (45, 150), (45, 150)]
    fills = [0.5, -1.0, 2.0, 7.0, -7.0, 1.0, 2.0**40, 0.0, 0.0, 3.0]
    displacement, matrix = draw_field(rng, 2, *grid, sigma=3).float(), draw_matrix(rng, 2)
    for padding in range(3):
        rest = (displacement, matrix, [side for size in sizes for side in size], kinds, fills, field, padding)
        for i, (out, truth) in enumerate(
            zip(emulated.elastic_warp(images, *rest), CPU.elastic_warp(images, *rest), strict=True)
        ):
            assert out.dtype == images[i].dtype and out.shape == truth.shape
            if kinds[i]:
                torch.testing.assert_close(out, truth, **WARP[out.dtype])
            else:  # a tie between two pixels may be rounded the other way
                assert not out.numel() or (out != truth).double().mean() < 1e-3


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_the_cpp_kernels(dtype, deterministic, emulated, rng):
    grads = [draw(rng, 2, c, h, w, dtype=dtype) - 0.5 for c, h, w in ((1, 40, 150), (3, 20, 70), (2, 60, 160))] * 3
    grads[1] = grads[1].to(memory_format=torch.channels_last)
    grads[2] = 1e-3 * grads[2][:, :1].expand(-1, 2, -1, -1)
    grads[3] = grads[3][:, :, :, ::2]
    displacement, matrix = draw_field(rng, 2, 3, 3), draw_matrix(rng, 2)
    for field, padding in ((0, 0), (1, 1), (1, 2)):
        rest = (displacement, matrix, [40, 150], [1, 0, 2] * 3, field, padding, deterministic)
        truth = CPU.elastic_warp_backward(grads, *rest)
        for out, expected, grad in zip(emulated.elastic_warp_backward(grads, *rest), truth, grads, strict=True):
            scale = grad.abs().max()
            torch.testing.assert_close(out / scale, expected / scale, **WARP[dtype])


def test_deterministic_gradients_are_exact_sums(emulated, rng):
    """Every pixel lands on the corner: whole numbers whose sum float32 additions, one after the other, would get wrong."""
    grad = torch.from_numpy(rng.integers(-(2**20), 2**20, (1, 2, 64, 300))).float()
    grad[0, 1] *= 2.0**-140
    matrix = torch.tensor([[[0.0, 0, -1e4], [0, 0, -1e4]]])
    rest = ([torch.zeros(1, 2, 3, 3), matrix], [64, 300], [0], 0, 2)
    (out,) = emulated.elastic_warp_backward([grad], *rest[0], *rest[1:], True)
    assert torch.equal(out[0, :, 0, 0], grad.double().sum((2, 3))[0].float())
    assert torch.equal(out[0].abs().sum((1, 2)), out[0, :, 0, 0].abs())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gradients_that_are_not_finite(bad, emulated, rng):
    grad = draw(rng, 1, 2, 8, 9, dtype=torch.float32)
    truth_rest = (torch.zeros(1, 2, 3, 3), None, [8, 9], [1], 0, 0)
    (truth,) = CPU.elastic_warp_backward([grad], *truth_rest, True)
    grad[0, 1, 3, 4] = bad
    (out,) = emulated.elastic_warp_backward([grad], *truth_rest, True)
    (same,) = CPU.elastic_warp_backward([grad], *truth_rest, True)
    lost = out.isnan()
    assert torch.equal(lost, ~same.isfinite()) and lost.sum() == 4
    torch.testing.assert_close(out[~lost], truth[~lost], **WARP[torch.float32])


def test_no_gradient_reaches_an_image_without_output(emulated):
    grads = [torch.zeros(2, 1, 0, 5), torch.ones(2, 1, 4, 4)]
    rest = (torch.zeros(2, 2, 3, 3), None, [4, 4], [1, 1], 0, 0)
    for deterministic in (False, True):
        none, ones = emulated.elastic_warp_backward(grads, *rest, deterministic)
        assert torch.equal(none, torch.zeros(2, 1, 4, 4)) and torch.equal(ones, grads[1])


def test_far_away_frames(emulated, rng):
    """Row and column numbers that float32 cannot count, in a view that repeats one row without memory for it."""
    side = 2**25
    image = torch.from_numpy(rng.random((1, 1, 1, side), np.float32)).expand(1, 1, 3, side)
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, side // 2 - 20.25]]], dtype=torch.float64)
    rest = (torch.zeros(1, 2, 3, 3), matrix, [3, 70], [1], [0.0], 1, 0)
    (out,), (truth,) = emulated.elastic_warp([image], *rest), CPU.elastic_warp([image], *rest)
    torch.testing.assert_close(out, truth, **WARP[torch.float32])
    assert not torch.equal(truth, torch.zeros_like(truth)) and EXACT["atol"] == 0
