"""distance_transform against SciPy's, mask by mask: random, real and degenerate masks, bad input."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

import unet_fast.numpy
from tests.instance_maps import assert_distances, check_host_backends, real_instances
from tests.places import needs, opcheck
from tests.tolerances import DISTANCE, EXACT, OPENCV_DISTANCE
from unet_fast import reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import distance_transform

pytestmark = [pytest.mark.kernels, needs("speed")]  # smaller ones: test_kernels_distance.py

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint16, torch.uint64]


def truth(masks: np.ndarray, spacing: object = None) -> np.ndarray:
    return np.stack([distance_transform_edt(mask, sampling=spacing) for mask in masks])


def check(masks: np.ndarray, spacing: object = None, place: str = "cpu") -> None:
    expected = truth(masks, spacing)
    result = distance_transform(torch.from_numpy(masks).to(place), spacing=spacing)
    assert_distances(result.cpu(), expected, DISTANCE)
    assert_distances(unet_fast.numpy.distance_transform(masks, spacing=spacing), expected, DISTANCE)


@pytest.mark.parametrize("shape", [(1, 201, 340), (1, 340, 67), (1, 20, 31, 42)])
@pytest.mark.parametrize("corner", [0, -1])
def test_one_far_zero(shape, corner, place):
    mask = np.ones(shape, np.uint8)
    mask.reshape(-1)[corner] = 0
    check(mask, place=place)
    check(mask, (3.0, 0.5, 1.5)[: len(shape) - 1], place)


def test_smooth_blobs(place, rng):
    # regions with slopes of all kinds: long envelopes as well as short ones
    noise = cv2.GaussianBlur(rng.standard_normal((230, 310)), (0, 0), 7)
    for level in (-0.03, 0.0, 0.05):
        check((noise > level)[None], place=place)


@pytest.mark.parametrize("name", ["dsb2018-fluo520", "usiigaci"])
def test_real_masks(name, real_data):
    labels = real_instances(real_data, name, 2)
    check(labels == 0)
    check(labels != 0)
    mask = (labels[0] == 0).astype(np.uint8)
    ours = distance_transform(torch.from_numpy(mask)[None])[0].numpy()
    peer = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    np.testing.assert_allclose(ours, peer, **OPENCV_DISTANCE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, rng):
    masks = rng.random((2, 17, 70)) >= 0.03
    result = distance_transform(torch.from_numpy(masks * 3).to(dtype))
    assert_distances(result, truth(masks), DISTANCE)


def test_zero_is_zero_in_floating_point_only_with_either_sign():
    values = torch.tensor([0.0, -0.0, torch.nan, 1e-45, -1.0, torch.inf, 0.0]).reshape(1, 1, 7)
    for dtype in (torch.float32, torch.float64):
        assert distance_transform(values.to(dtype)).flatten().tolist() == [0, 0, 1, 2, 2, 1, 0]
    lowest = torch.tensor([[[torch.iinfo(torch.int32).min, 0, 1]]], dtype=torch.int32)
    assert distance_transform(lowest).flatten().tolist() == [1, 0, 1]


@needs("large")
def test_large_blocks_without_zeros_hold_no_false_zero():
    mask = torch.ones(1, 300, 400)
    mask[0, 0, 0] = 0
    out = distance_transform(mask)
    assert (out == 0).sum() == 1
    assert out[0, 299, 399] == np.float32(np.hypot(299, 399))


def test_no_zero_is_infinitely_far():
    masks = torch.ones(2, 5, 6)
    masks[1, 2, 3] = 0
    out = distance_transform(masks)
    assert out[0].isinf().all() and out[1].isfinite().all()
    assert distance_transform(torch.ones(1, 2, 3, 4)).isinf().all()
    assert np.isinf(unet_fast.numpy.distance_transform(np.ones((4, 4)))).all()


@needs("large")
@pytest.mark.parametrize("width", [1500, 32768, 32769, 46342, 70001])
def test_long_sides(width):
    mask = torch.ones(1, 3, width, dtype=torch.bool)
    mask[0, 0, 0] = False
    x = torch.arange(width, dtype=torch.float64)
    for y in range(3):
        expected = (x * x + y * y).sqrt().float()
        assert torch.equal(distance_transform(mask)[0, y], expected)
        assert torch.equal(distance_transform(mask.transpose(1, 2))[0, :, y], expected)


def test_strided_inputs(rng):
    base = torch.from_numpy(rng.random((4, 41, 66)) > 0.05)
    for view in (base[::2, 3:35, 1:30], base.transpose(1, 2), base[:, ::3, ::2], base[:1].expand(3, -1, -1)):
        torch.testing.assert_close(distance_transform(view), distance_transform(view.clone().contiguous()), **EXACT)
        assert_distances(unet_fast.numpy.distance_transform(view.numpy()), truth(view.numpy()), DISTANCE)


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (0, 2, 3, 4), (1, 1, 1), (1, 1, 1, 1)])
def test_empty_and_single_pixel_shapes(shape):
    out = distance_transform(torch.zeros(shape))
    assert out.shape == shape and out.eq(0).all()
    assert unet_fast.numpy.distance_transform(np.zeros(shape)).shape == shape


@needs("host")
def test_numpy_single_image_and_long_double(rng):
    mask = rng.random((30, 20)) > 0.1
    expected = distance_transform_edt(mask)
    for array in (mask, mask.astype(np.longdouble), mask.astype(">f4"), mask.astype(">i2")):
        out = unet_fast.numpy.distance_transform(array)
        assert out.shape == mask.shape
        assert_distances(out, expected, DISTANCE)


def test_a_float_mask_gets_no_gradient(rng):
    mask = torch.from_numpy(rng.random((1, 6, 6)).astype(np.float32)).requires_grad_()
    assert not distance_transform(mask > 0.5).requires_grad
    assert not distance_transform(mask).requires_grad


@needs("host")
def test_reference_and_backends(rng):
    mask = torch.from_numpy(rng.random((2, 5, 12, 14)) > 0.02)
    expected = reference.distance_transform(mask, spacing=(2.0, 1.0, 0.5))
    check_host_backends(lambda: distance_transform(mask, spacing=(2.0, 1.0, 0.5)), expected, DISTANCE)


@needs("compiler")
def test_registration_and_compile(rng):
    mask = torch.from_numpy(rng.random((2, 9, 14)) > 0.1)
    for sample, spacing in ((mask, [1.0, 2.0]), (mask[None].float(), [1.0, 1.0, 1.0]), (mask[:, ::2], [1.0, 1.0])):
        opcheck(torch.ops.unet_fast.distance_transform.default, (sample, spacing))
    compiled = torch.compile(
        lambda x: distance_transform(x, spacing=2.0) + 1, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for sample in (mask, mask[:, :6, :11]):
        torch.testing.assert_close(compiled(sample), distance_transform(sample, spacing=2.0) + 1, **EXACT)


@needs("host")
@pytest.mark.parametrize(
    ("mask", "spacing", "error", "message"),
    [
        (np.zeros((1, 4, 4)), None, InputTypeError, "mask is a ndarray, expected a torch.Tensor"),
        (torch.zeros(1, 4, 4, dtype=torch.complex64), None, InputTypeError, "mask has dtype complex64"),
        (torch.zeros(4, 4), None, InputError, r"mask has 2 dimensions.*\(N, H, W\) or \(N, D, H, W\)"),
        (torch.zeros(1, 1, 1, 4, 4), None, InputError, "mask has 5 dimensions"),
        (torch.zeros(1, 4, 4), (1.0, -1.0), InputError, "expected positive finite numbers"),
        (torch.zeros(1, 4, 4), (1.0, 1.0, 1.0), InputError, r"has 3 values, expected 2, \(y, x\)"),
        (torch.zeros(1, 4, 4), "12", InputTypeError, "spacing is '12'"),
        (torch.zeros(1, 4, 4), object(), InputTypeError, "expected a number or 2 numbers"),
    ],
)
def test_bad_input(mask, spacing, error, message):
    with pytest.raises(error, match=message):
        distance_transform(mask, spacing=spacing)


@needs("host")
def test_bad_numpy_input():
    with pytest.raises(InputTypeError, match="mask has dtype complex128"):
        unet_fast.numpy.distance_transform(np.zeros((3, 3), complex))
    with pytest.raises(InputError, match=r"mask has 1 dimensions, shape \(3,\)"):
        unet_fast.numpy.distance_transform(np.zeros(3))
