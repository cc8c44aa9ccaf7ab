"""elastic_warp for GPUs, against the C++ kernels and the slow truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.places import only
from tests.test_elastic_warp import FIELDS, PADDINGS, draw, draw_field, draw_labels, draw_matrix
from tests.tolerances import EXACT, WARP
from unet_fast import reference
from unet_fast.ops import _backends, elastic_warp, use_backend

pytestmark = pytest.mark.kernels

CPU = torch.ops.unet_fast


@only("emulated")
@pytest.mark.parametrize("field", range(3))
@pytest.mark.parametrize("grid", [(4, 4), (40, 90)], ids=["sparse", "dense"])
def test_one_launch_equals_the_cpp_kernels(grid, field, kernels, rng):
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
            zip(kernels.elastic_warp(images, *rest), CPU.elastic_warp(images, *rest), strict=True)
        ):
            assert out.dtype == images[i].dtype and out.shape == truth.shape
            if kinds[i]:
                torch.testing.assert_close(out, truth, **WARP[out.dtype])
            else:  # a tie between two pixels may be rounded the other way
                assert not out.numel() or (out != truth).double().mean() < 1e-3


@only("emulated")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_the_cpp_kernels(dtype, deterministic, kernels, rng):
    grads = [draw(rng, 2, c, h, w, dtype=dtype) - 0.5 for c, h, w in ((1, 40, 150), (3, 20, 70), (2, 60, 160))] * 3
    grads[1] = grads[1].to(memory_format=torch.channels_last)
    grads[2] = 1e-3 * grads[2][:, :1].expand(-1, 2, -1, -1)
    grads[3] = grads[3][:, :, :, ::2]
    displacement, matrix = draw_field(rng, 2, 3, 3), draw_matrix(rng, 2)
    for field, padding in ((0, 0), (1, 1), (1, 2)):
        rest = (displacement, matrix, [40, 150], [1, 0, 2] * 3, field, padding, deterministic)
        truth = CPU.elastic_warp_backward(grads, *rest)
        for out, expected, grad in zip(kernels.elastic_warp_backward(grads, *rest), truth, grads, strict=True):
            scale = grad.abs().max()
            torch.testing.assert_close(out / scale, expected / scale, **WARP[dtype])


@only("emulated")
def test_deterministic_gradients_are_exact_sums(kernels, rng):
    """Every pixel lands on the corner: whole numbers whose sum float32 additions, one after the other, would get wrong."""
    grad = torch.from_numpy(rng.integers(-(2**20), 2**20, (1, 2, 64, 300))).float()
    grad[0, 1] *= 2.0**-140
    matrix = torch.tensor([[[0.0, 0, -1e4], [0, 0, -1e4]]])
    rest = ([torch.zeros(1, 2, 3, 3), matrix], [64, 300], [0], 0, 2)
    (out,) = kernels.elastic_warp_backward([grad], *rest[0], *rest[1:], True)
    assert torch.equal(out[0, :, 0, 0], grad.double().sum((2, 3))[0].float())
    assert torch.equal(out[0].abs().sum((1, 2)), out[0, :, 0, 0].abs())


@only("emulated")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gradients_that_are_not_finite(bad, kernels, rng):
    grad = draw(rng, 1, 2, 8, 9, dtype=torch.float32)
    truth_rest = (torch.zeros(1, 2, 3, 3), None, [8, 9], [1], 0, 0)
    (truth,) = CPU.elastic_warp_backward([grad], *truth_rest, True)
    grad[0, 1, 3, 4] = bad
    (out,) = kernels.elastic_warp_backward([grad], *truth_rest, True)
    (same,) = CPU.elastic_warp_backward([grad], *truth_rest, True)
    lost = out.isnan()
    assert torch.equal(lost, ~same.isfinite()) and lost.sum() == 4
    torch.testing.assert_close(out[~lost], truth[~lost], **WARP[torch.float32])


@only("emulated")
def test_no_gradient_reaches_an_image_without_output(kernels):
    grads = [torch.zeros(2, 1, 0, 5), torch.ones(2, 1, 4, 4)]
    rest = (torch.zeros(2, 2, 3, 3), None, [4, 4], [1, 1], 0, 0)
    for deterministic in (False, True):
        none, ones = kernels.elastic_warp_backward(grads, *rest, deterministic)
        assert torch.equal(none, torch.zeros(2, 1, 4, 4)) and torch.equal(ones, grads[1])


@only("emulated")
def test_far_away_frames(kernels, rng):
    """Row and column numbers that float32 cannot count, in a view that repeats one row without memory for it."""
    side = 2**25
    image = torch.from_numpy(rng.random((1, 1, 1, side), np.float32)).expand(1, 1, 3, side)
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, side // 2 - 20.25]]], dtype=torch.float64)
    rest = (torch.zeros(1, 2, 3, 3), matrix, [3, 70], [1], [0.0], 1, 0)
    (out,), (truth,) = kernels.elastic_warp([image], *rest), CPU.elastic_warp([image], *rest)
    torch.testing.assert_close(out, truth, **WARP[torch.float32])
    assert not torch.equal(truth, torch.zeros_like(truth)) and EXACT["atol"] == 0


@only("interpreted")
def test_triton_runs():
    assert _backends.wish() == "triton" and _backends.choose("elastic_warp", "cpu") == "triton"


@only("interpreted")
@pytest.mark.parametrize(("field", "padding"), list(zip(FIELDS, PADDINGS, strict=True)))
def test_one_launch_equals_the_reference_interpreted(field, padding, rng):
    """Interpolations, dtypes, strides and sizes all differ; in float64, where every label is the same."""
    image, labels = draw(rng, 2, 2, 20, 70), draw_labels(rng, 2, 1, 20, 70, dtype=torch.int16)
    image = image.to(memory_format=torch.channels_last)
    other = draw(rng, 1, 2, 80, 20, dtype=torch.float16).transpose(2, 3)[:, :, :, 5:75].expand(2, -1, -1, -1)
    whole = [draw_labels(rng, 2, 1, 20, 70, dtype=dtype) for dtype in (torch.uint8, torch.uint16, torch.int16)]
    whole[0] = whole[0] * 2 + 57  # up to the end of the range, which a cubic kernel would leave
    images = (image, labels, other, draw_labels(rng, 2, 1, 20, 70).bool(), *whole)
    kinds = ("bilinear", "nearest", "bicubic", "nearest", "bicubic", "bilinear", "bicubic")
    sizes = [(20, 70), (9, 33), (25, 80), 1, (20, 70), (20, 30), 9]
    options = {"matrix": draw_matrix(rng, 2), "output_size": sizes, "interpolation": kinds}
    options |= {"field": field, "padding": padding, "fill": (0.1, -7, 0.5, 1, 255, 3, -4)}
    displacement = draw_field(rng, 2, 4, 5)
    out, truth = elastic_warp(images, displacement, **options), reference.elastic_warp(images, displacement, **options)
    for got, expected in zip(out, truth, strict=True):
        assert got.dtype == expected.dtype and got.is_contiguous()
        torch.testing.assert_close(got, expected, **WARP.get(got.dtype, EXACT))


@only("interpreted")
@pytest.mark.parametrize("padding", PADDINGS)
def test_float32_equals_the_cpp_kernels(padding, rng):
    image, labels = draw(rng, 1, 1, 30, 70, dtype=torch.float32), draw_labels(rng, 1, 1, 30, 70)
    images = (image, labels, image.bfloat16())
    options = {"interpolation": ("bilinear", "nearest", "nearest"), "padding": padding, "fill": (0.5, 2**40, -1.0)}
    displacement = draw_field(rng, 1, 3, 3)
    out = elastic_warp(images, displacement, **options)
    with use_backend("cpp"):
        truth = elastic_warp(images, displacement, **options)
    torch.testing.assert_close(out[0], truth[0], **WARP[torch.float32])
    for got, expected in zip(out[1:], truth[1:], strict=True):
        assert (got != expected).double().mean() < 2e-3  # a tie between two pixels


@only("interpreted")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("padding", "dtype"), [(0, torch.float64), (1, torch.float32), (2, torch.float32)])
def test_gradients_equal_the_cpp_kernels_interpreted(padding, dtype, deterministic, rng):
    grads = [draw(rng, 1, c, h, w, dtype=dtype) - 0.5 for c, h, w in ((2, 20, 70), (1, 9, 30), (1, 25, 75))]
    # four control points an axis are the fewest of the smooth field, which is the third
    rest = (draw_field(rng, 1, 4, 4), draw_matrix(rng, 1), [20, 70], [1, 0, 2], padding, padding, deterministic)
    out = torch.ops.unet_fast.elastic_warp_backward(grads, *rest)
    with use_backend("cpp"):
        truth = torch.ops.unet_fast.elastic_warp_backward(grads, *rest)
    torch.testing.assert_close(out, truth, **WARP[dtype])


@only("interpreted")
def test_gradients_that_are_not_finite_interpreted(rng):
    grad = draw(rng, 1, 2, 8, 9, dtype=torch.float32)
    grad[0, 1, 3, 4] = float("inf")
    rest = (torch.zeros(1, 2, 3, 3), None, [8, 9], [1], 0, 0, True)
    (out,) = torch.ops.unet_fast.elastic_warp_backward([grad], *rest)
    assert torch.equal(out.isnan().nonzero(), torch.tensor([[0, 1, y, x] for y in (3, 4) for x in (4, 5)]))
    assert torch.equal(out[0, 0], grad[0, 0])


@only("interpreted")
@pytest.mark.parametrize("padding", PADDINGS)
def test_coordinates_that_are_nowhere(padding, rng):
    image, labels = draw(rng, 1, 1, 6, 66, dtype=torch.float32), draw_labels(rng, 1, 1, 6, 66)
    for value in (float("nan"), 1e30, -3e9):
        options = {"interpolation": ("bilinear", "nearest"), "padding": padding, "fill": (0.5, 101)}
        out = elastic_warp((image, labels), torch.full((1, 2, 1, 1), value), **options)
        with use_backend("cpp"):
            truth = elastic_warp((image, labels), torch.full((1, 2, 1, 1), value), **options)
        torch.testing.assert_close(out, truth, **WARP[torch.float32])


@only("interpreted")
def test_one_pixel_and_nothing(rng):
    image = draw(rng, 2, 1, 1, 1, dtype=torch.float32)
    out = elastic_warp((image, image[:, :0]), draw_field(rng, 2, 1, 1).float(), output_size=(3, 2))
    torch.testing.assert_close(out[0], image.expand(2, 1, 3, 2), **WARP[torch.float32])
    assert out[1].shape == (2, 0, 3, 2)
    empty = elastic_warp(torch.zeros(0, 2, 5, 6), torch.zeros(0, 2, 3, 3), field="bspline")
    assert empty.shape == (0, 2, 5, 6)
