"""weight_map against the paper's formula on SciPy's distances; options, class balance, the module, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import unet_fast.numpy
from tests.instance_maps import check_host_backends, random_instances, real_instances, weights_of
from tests.places import has, needs, opcheck
from tests.tolerances import EXACT, WEIGHT_MAP
from unet_fast import reference
from unet_fast.data.synthetic import crowded_cells
from unet_fast.errors import InputError, InputTypeError
from unet_fast.nn import DistanceWeightMap
from unet_fast.ops import nearest_two, use_backend, weight_map

pytestmark = [pytest.mark.kernels, needs("speed")]  # smaller ones: test_kernels_distance.py


def shares_the_kernel_of_numpy(place: str) -> bool:
    """Whether it is the compiled CPU kernel that runs there, not Triton's interpreter or emulated CUDA in its place."""
    return place == "cpu" and has("cpp")


def check(labels: np.ndarray, place: str = "cpu", **options: object) -> None:
    truth = torch.from_numpy(weights_of(labels, **options))
    if "class_weights" in options:
        options["class_weights"] = torch.tensor(options["class_weights"])
    result = weight_map(torch.from_numpy(labels).to(place), **options).cpu()
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), truth, **WEIGHT_MAP)
    same = unet_fast.numpy.weight_map(labels, **options)
    tolerance = EXACT if shares_the_kernel_of_numpy(place) else WEIGHT_MAP
    torch.testing.assert_close(torch.from_numpy(same), result, **tolerance)


def test_crowded_cells(place, rng):
    labels = np.stack([crowded_cells(rng, (150, 201), n, 2.5) for n in (3, 60)])
    check(labels, place)
    check(labels, place, inside=True, sigma=2.5)


@pytest.mark.parametrize("name", ["dsb2018-fluo520", "dic-hela", "phc-u373"])
def test_real_label_maps(name, real_data):
    labels = real_instances(real_data, name, 1)[:, :300, :420]
    check(labels)
    if name != "phc-u373":  # whose cells keep their distance
        assert weight_map(torch.from_numpy(labels)).max() > 2


def test_whole_real_image_agrees_with_its_distances(real_data):
    labels = torch.from_numpy(real_instances(real_data, "usiigaci", 2))
    d1, d2 = nearest_two(labels)
    border = 10 * torch.exp(-((d1.double() + d2) ** 2) / 50)
    truth = 1 + torch.where(labels == 0, border, 0)
    torch.testing.assert_close(weight_map(labels).double(), truth, **WEIGHT_MAP)


def test_gap_of_known_width():
    # two half-planes 5 pixels apart: in the gap d1 + d2 is 6 everywhere on the middle row
    labels = torch.zeros(1, 1, 25, dtype=torch.uint8)
    labels[..., :10], labels[..., 15:] = 1, 2
    weights = weight_map(labels, w0=10.0, sigma=5.0)[0, 0]
    assert weights[:10].eq(1).all() and weights[15:].eq(1).all()
    torch.testing.assert_close(weights[10:15], torch.full((5,), 1 + 10 * np.exp(-36 / 50)), **WEIGHT_MAP)
    inside = weight_map(labels, inside=True)[0, 0]
    torch.testing.assert_close(inside[9], torch.tensor(1 + 10 * np.exp(-36 / 50)), check_dtype=False, **WEIGHT_MAP)


def test_fewer_than_two_cells_leave_the_class_weight():
    labels = torch.zeros(2, 6, 7, dtype=torch.int64)
    labels[1, 2:4, 2:5] = 8
    assert weight_map(labels).eq(1).all()
    assert weight_map(labels, inside=True).eq(1).all()
    weights = weight_map(labels, class_weights=torch.tensor([0.25, 4.0]))
    assert torch.equal(weights, torch.where(labels > 0, 4.0, 0.25))


def test_balanced_class_weights(rng):
    labels = random_instances(rng, (4, 30, 41), 5, 0.3)
    labels[1], labels[2] = 0, 3  # no cells; no background
    weights = weight_map(torch.from_numpy(labels), class_weights="balanced", w0=0.0)
    torch.testing.assert_close(weights.mean((1, 2)), torch.ones(4))
    assert weights[1:3].eq(1).all()
    cells = torch.from_numpy(labels[0] != 0)
    torch.testing.assert_close(weights[0][cells].sum(), weights[0][~cells].sum())
    border = weight_map(torch.from_numpy(labels)) - 1
    both = weight_map(torch.from_numpy(labels), class_weights="balanced")
    torch.testing.assert_close(both, weights + border, **WEIGHT_MAP)
    np.testing.assert_array_equal(unet_fast.numpy.weight_map(labels, class_weights="balanced"), both.numpy())


def test_many_small_images_equal_single_calls(rng):
    labels = torch.from_numpy(random_instances(rng, (70, 130, 140), 30, 0.01))
    whole = weight_map(labels, class_weights="balanced")
    for n in range(0, 70, 23):
        torch.testing.assert_close(weight_map(labels[n : n + 1], class_weights="balanced"), whole[n : n + 1], **EXACT)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64])
def test_every_dtype(dtype, rng):
    labels = torch.from_numpy(random_instances(rng, (2, 19, 33), 6, 0.05))
    torch.testing.assert_close(weight_map(labels.to(dtype)), weight_map(labels), **EXACT)


def test_strided_inputs(rng):
    base = torch.from_numpy(random_instances(rng, (4, 40, 36), 5, 0.05))
    for view in (base[::2, 3:35, 1:30], base.transpose(1, 2), base[:, ::3, ::2], base[:1].expand(3, -1, -1)):
        torch.testing.assert_close(weight_map(view), weight_map(view.clone().contiguous()), **EXACT)


@needs("large")
@pytest.mark.parametrize("width", [5000, 70000])
def test_long_sides(width):
    labels = np.zeros((1, 2, width), np.int32)
    labels[0, :, ::1001] = np.arange(labels[0, :, ::1001].shape[1]) + 1
    labels[0, 0, 4::1001] = 7_000
    for turned in (labels, labels.transpose(0, 2, 1).copy()):
        d1, d2 = nearest_two(torch.from_numpy(turned))
        border = 10 * torch.exp(-((d1.double() + d2) ** 2) / (2 * 30.0**2))
        truth = 1 + torch.where(torch.from_numpy(turned) == 0, border, 0)
        result = weight_map(torch.from_numpy(turned), sigma=30.0)
        torch.testing.assert_close(result.double(), truth, **WEIGHT_MAP)


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (1, 1, 1)])
def test_empty_and_single_pixel_shapes(shape):
    for class_weights in (None, "balanced"):
        out = weight_map(torch.ones(shape, dtype=torch.int32), class_weights=class_weights)
        assert out.shape == shape and out.eq(1).all()
        with use_backend("reference"):
            assert weight_map(torch.ones(shape, dtype=torch.int32), class_weights=class_weights).shape == shape


@needs("host")
@pytest.mark.parametrize("class_weights", [None, "balanced", torch.tensor([0.3, 1.7])])
@pytest.mark.parametrize("inside", [False, True])
def test_reference_and_backends(class_weights, inside, rng):
    labels = torch.from_numpy(random_instances(rng, (3, 22, 31), 4, 0.05))
    labels[2] = 0
    truth = reference.weight_map(labels, class_weights=class_weights, inside=inside, sigma=4.0)

    def call():
        return weight_map(labels, class_weights=class_weights, inside=inside, sigma=4.0)

    check_host_backends(call, truth, WEIGHT_MAP)


@needs("compiler")
def test_registration_and_compile(rng):
    labels = torch.from_numpy(random_instances(rng, (2, 9, 14), 4, 0.1))
    for pair, balanced in ((None, False), (None, True), (torch.tensor([1.0, 2.0]), False)):
        opcheck(torch.ops.unet_fast.weight_map.default, (labels, 10.0, 5.0, pair, balanced, False))
    module = DistanceWeightMap(class_weights=(0.5, 2.0), sigma=3.0)
    compiled = torch.compile(lambda x: module(x) * 2, fullgraph=True, dynamic=True, backend="aot_eager")
    for sample in (labels, labels[:, :6, :11]):
        torch.testing.assert_close(compiled(sample), module(sample) * 2, **EXACT)


def test_module(rng):
    labels = torch.from_numpy(random_instances(rng, (2, 19, 24), 4, 0.1))
    module = DistanceWeightMap(w0=3.0, sigma=2.0, class_weights=[0.5, 2.0], inside=True)
    pair = torch.tensor([0.5, 2.0])
    truth = weight_map(labels, w0=3.0, sigma=2.0, class_weights=pair, inside=True)
    torch.testing.assert_close(module(labels), truth, **EXACT)
    assert torch.equal(module.state_dict()["class_weights"], pair)
    other = DistanceWeightMap(class_weights=(1, 1))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.class_weights, pair)
    assert "sigma=2" in repr(module) and "[0.5, 2.0]" in repr(module)
    torch.testing.assert_close(
        DistanceWeightMap(class_weights="balanced")(labels), weight_map(labels, class_weights="balanced"), **EXACT
    )
    assert not DistanceWeightMap().state_dict()
    with pytest.raises(InputError, match="sigma is 0"):
        DistanceWeightMap(sigma=0)
    with pytest.raises(InputError, match=r"class_weights has shape \(3,\)"):
        DistanceWeightMap(class_weights=(1, 2, 3))


ONE = torch.ones(1, 4, 4, dtype=torch.int32)


@needs("host")
@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (np.ones((1, 4, 4), int), {}, InputTypeError, "instances is a ndarray"),
        (ONE.float(), {}, InputTypeError, "instances has dtype float32"),
        (ONE[0], {}, InputError, r"instances has 2 dimensions, shape \(4, 4\); expected \(N, H, W\)"),
        (ONE[None], {}, InputError, "instances has 4 dimensions"),
        (ONE - 2, {}, InputError, "instances contains -1, expected labels 0"),
        (ONE, {"w0": -1.0}, InputError, "w0 is -1.0, expected a finite number of at least 0"),
        (ONE, {"w0": float("inf")}, InputError, "w0 is inf"),
        (ONE, {"sigma": 0.0}, InputError, "sigma is 0.0, expected a positive number of pixels"),
        (ONE, {"sigma": "5"}, InputTypeError, "sigma is a str, expected a number"),
        (ONE, {"class_weights": "balance"}, InputError, "class_weights is 'balance', expected one of 'balanced'"),
        (ONE, {"class_weights": [1, 2]}, InputTypeError, "class_weights is a list, expected None, 'balanced' or a"),
        (ONE, {"class_weights": torch.ones(3)}, InputError, r"class_weights has shape \(3,\), expected \(2,\)"),
        (
            ONE,
            {"class_weights": torch.ones(2, device="meta")},
            InputError,
            "instances is on cpu but class_weights is on meta",
        ),
    ],
)
def test_bad_input(labels, options, error, message):
    with pytest.raises(error, match=message):
        weight_map(labels, **options)


@needs("host")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_weights": "none"}, InputError, "class_weights is 'none', expected 'balanced'"),
        ({"class_weights": (1.0, 2.0, 3.0)}, InputError, r"class_weights has shape \(3,\)"),
        ({"class_weights": (1.0, "a")}, InputTypeError, "class_weights has dtype"),
        ({"sigma": -1}, InputError, "sigma is -1"),
    ],
)
def test_bad_numpy_options(options, error, message):
    with pytest.raises(error, match=message):
        unet_fast.numpy.weight_map(np.ones((4, 4), int), **options)
    with pytest.raises(InputError, match=r"4 dimensions.*expected \(H, W\) or \(N, H, W\)"):
        unet_fast.numpy.weight_map(np.ones((1, 1, 4, 4), int))
