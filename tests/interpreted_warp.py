"""elastic_warp in Triton, against the C++ kernels and the slow truth.

Run by test_triton_elastic_warp.py, in a process in which Triton interprets its kernels and UNET_FAST_BACKEND is triton.
"""

from __future__ import annotations

import pytest
import torch

from tests.test_elastic_warp import FIELDS, PADDINGS, draw, draw_field, draw_labels, draw_matrix
from tests.tolerances import EXACT, WARP
from unet_fast import reference
from unet_fast.ops import _backends, elastic_warp, use_backend


def test_triton_runs():
    assert _backends.wish() == "triton" and _backends.choose("elastic_warp", "cpu") == "triton"


@pytest.mark.parametrize(("field", "padding"), list(zip(FIELDS, PADDINGS, strict=True)))
def test_one_launch_equals_the_reference(field, padding, rng):
    """Interpolations, dtypes, strides and sizes all differ; in float64, where every label is the same."""
    image, labels = draw(rng, 2, 2, 20, 70), draw_labels(rng, 2, 1, 20, 70, dtype=torch.int16)
    image = image.to(memory_format=torch.channels_last)
    other = draw(rng, 1, 2, 80, 20, dtype=torch.float16).transpose(2, 3)[:, :, :, 5:75].expand(2, -1, -1, -1)
    images = (image, labels, other, draw_labels(rng, 2, 1, 20, 70).bool())
    kinds = ("bilinear", "nearest", "bicubic", "nearest")
    options = {"matrix": draw_matrix(rng, 2), "output_size": [(20, 70), (9, 33), (25, 80), 1], "interpolation": kinds}
    options |= {"field": field, "padding": padding, "fill": (0.1, -7, 0.5, 1)}
    displacement = draw_field(rng, 2, 4, 5)
    out, truth = elastic_warp(images, displacement, **options), reference.elastic_warp(images, displacement, **options)
    for got, expected in zip(out, truth, strict=True):
        assert got.dtype == expected.dtype and got.is_contiguous()
        torch.testing.assert_close(got, expected, **WARP.get(got.dtype, EXACT))


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


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("padding", "dtype"), [(0, torch.float64), (1, torch.float32), (2, torch.float32)])
def test_gradients_equal_the_cpp_kernels(padding, dtype, deterministic, rng):
    grads = [draw(rng, 1, c, h, w, dtype=dtype) - 0.5 for c, h, w in ((2, 20, 70), (1, 9, 30), (1, 25, 75))]
    rest = (draw_field(rng, 1, 3, 3), draw_matrix(rng, 1), [20, 70], [1, 0, 2], padding, padding, deterministic)
    out = torch.ops.unet_fast.elastic_warp_backward(grads, *rest)
    with use_backend("cpp"):
        truth = torch.ops.unet_fast.elastic_warp_backward(grads, *rest)
    torch.testing.assert_close(out, truth, **WARP[dtype])


def test_gradients_that_are_not_finite(rng):
    grad = draw(rng, 1, 2, 8, 9, dtype=torch.float32)
    grad[0, 1, 3, 4] = float("inf")
    rest = (torch.zeros(1, 2, 3, 3), None, [8, 9], [1], 0, 0, True)
    (out,) = torch.ops.unet_fast.elastic_warp_backward([grad], *rest)
    assert torch.equal(out.isnan().nonzero(), torch.tensor([[0, 1, y, x] for y in (3, 4) for x in (4, 5)]))
    assert torch.equal(out[0, 0], grad[0, 0])


@pytest.mark.parametrize("padding", PADDINGS)
def test_coordinates_that_are_nowhere(padding, rng):
    image, labels = draw(rng, 1, 1, 6, 66, dtype=torch.float32), draw_labels(rng, 1, 1, 6, 66)
    for value in (float("nan"), 1e30, -3e9):
        options = {"interpolation": ("bilinear", "nearest"), "padding": padding, "fill": (0.5, 101)}
        out = elastic_warp((image, labels), torch.full((1, 2, 1, 1), value), **options)
        with use_backend("cpp"):
            truth = elastic_warp((image, labels), torch.full((1, 2, 1, 1), value), **options)
        torch.testing.assert_close(out, truth, **WARP[torch.float32])


def test_one_pixel_and_nothing(rng):
    image = draw(rng, 2, 1, 1, 1, dtype=torch.float32)
    out = elastic_warp((image, image[:, :0]), draw_field(rng, 2, 1, 1).float(), output_size=(3, 2))
    torch.testing.assert_close(out[0], image.expand(2, 1, 3, 2), **WARP[torch.float32])
    assert out[1].shape == (2, 0, 3, 2)
    empty = elastic_warp(torch.zeros(0, 2, 5, 6), torch.zeros(0, 2, 3, 3), field="bspline")
    assert empty.shape == (0, 2, 5, 6)
