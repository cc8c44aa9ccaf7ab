"""nearest_two, distance_transform and weight_map for GPUs, against the slow truth and the C++ kernels."""

from __future__ import annotations

import pytest
import torch

from tests.instance_maps import random_instances
from tests.places import only
from tests.tolerances import DISTANCE, EXACT, WEIGHT_MAP
from unet_fast import reference
from unet_fast.data.synthetic import crowded_cells
from unet_fast.ops import _backends, distance_transform, nearest_two, use_backend, weight_map

pytestmark = pytest.mark.kernels

SHAPES = [
    ((2, 12, 17), None),
    ((1, 1, 40), None),
    ((1, 40, 1), (1.0, 2.0)),
    ((1, 70, 33), (0.5, 3.0)),  # more than one segment of rows
    ((2, 4, 5, 7), None),
    ((1, 5, 1, 7), (2.0, 1.0, 0.3)),
    ((1, 40, 3, 5), (2.0, 1.0, 0.3)),
]


@only("interpreted")
def test_triton_runs():
    assert _backends.wish() == "triton"
    for op in ("nearest_two", "distance_transform", "weight_map"):
        assert _backends.choose(op, "cpu") == "triton"


@only("interpreted")
@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
@pytest.mark.parametrize("density", [0.02, 0.5])
def test_distances(shape, spacing, density, rng):
    labels = torch.from_numpy(random_instances(rng, shape, 4, density))
    truth = reference.nearest_two(labels, spacing=spacing)
    torch.testing.assert_close(nearest_two(labels, spacing=spacing), truth, **DISTANCE)
    mask = labels == 0
    truth = reference.distance_transform(mask, spacing=spacing)
    torch.testing.assert_close(distance_transform(mask, spacing=spacing), truth, **DISTANCE)


@only("interpreted")
@pytest.mark.parametrize(
    ("class_weights", "inside"), [(None, False), ("balanced", False), (torch.tensor([0.3, 1.7]), True)]
)
def test_weights(class_weights, inside, rng):
    labels = torch.from_numpy(random_instances(rng, (3, 10, 21), 4, 0.05))
    labels[2] = 0
    for sigma in (0.7, 3.0):
        options = {"sigma": sigma, "class_weights": class_weights, "inside": inside}
        torch.testing.assert_close(weight_map(labels, **options), reference.weight_map(labels, **options), **WEIGHT_MAP)


@only("interpreted")
def test_crowded_cells_equal_the_cpp_kernels(rng):
    labels = torch.from_numpy(crowded_cells(rng, (24, 40), 8, 2.5)[None])
    results = nearest_two(labels), distance_transform(labels != 0), weight_map(labels, class_weights="balanced")
    with use_backend("cpp"):
        torch.testing.assert_close(results[0], nearest_two(labels), **EXACT)
        torch.testing.assert_close(results[1], distance_transform(labels != 0), **EXACT)
        torch.testing.assert_close(results[2], weight_map(labels, class_weights="balanced"), **WEIGHT_MAP)


@only("interpreted")
def test_sides_over_1024_pixels():
    labels = torch.zeros(1, 1, 1300, dtype=torch.uint8)
    labels[0, 0, ::12], labels[0, 0, 6::12] = 1, 2
    results = nearest_two(labels), weight_map(labels, sigma=2.0)
    with use_backend("cpp"):
        torch.testing.assert_close(results[0], nearest_two(labels), **EXACT)
        torch.testing.assert_close(results[1], weight_map(labels, sigma=2.0), **WEIGHT_MAP)


@only("interpreted")
def test_every_dtype(rng):
    labels = torch.from_numpy(random_instances(rng, (1, 9, 13), 6, 0.1))
    truth = reference.nearest_two(labels)
    for dtype in (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64):
        torch.testing.assert_close(nearest_two(labels.to(dtype)), truth, **DISTANCE)
    mask = labels - 3
    truth = reference.distance_transform(mask)
    for dtype in (torch.int8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        torch.testing.assert_close(distance_transform(mask.to(dtype)), truth, **DISTANCE)
    special = torch.tensor([[[-0.0, 1.0, float("nan"), float("-inf"), 5e-324]]], dtype=torch.float64)
    assert distance_transform(special)[0, 0].tolist() == [0, 1, 2, 3, 4]


@only("interpreted")
def test_strides_and_empty_tensors(rng):
    base = torch.from_numpy(random_instances(rng, (2, 20, 24), 5, 0.1))
    for view in (base[1:, 3:17, 1:20:2], base.transpose(1, 2)):
        torch.testing.assert_close(nearest_two(view), nearest_two(view.contiguous()), **EXACT)
        torch.testing.assert_close(weight_map(view), weight_map(view.contiguous()), **EXACT)
        torch.testing.assert_close(distance_transform(view), distance_transform(view.contiguous()), **EXACT)
    for shape in ((0, 4, 5), (2, 0, 5), (2, 4, 0)):
        empty = torch.ones(shape, dtype=torch.int32)
        assert nearest_two(empty)[1].shape == distance_transform(empty).shape == shape
        assert weight_map(empty, class_weights="balanced").shape == shape


@only("interpreted")
def test_nothing_to_find():
    one = torch.zeros(2, 3, 5, dtype=torch.int32)
    one[1, 1, 2] = 7
    d1, d2 = nearest_two(one)
    assert d1[0].isinf().all() and d2.isinf().all() and d1[1, 1].tolist() == [2, 1, 0, 1, 2]
    assert distance_transform(torch.ones(1, 3, 5)).isinf().all()
    assert weight_map(one, inside=True).eq(1).all()


@only("emulated")
@pytest.mark.parametrize("bad", [-1, -7, 2**31])
def test_bad_labels_make_their_surroundings_nan(bad, kernels, rng):
    labels = torch.from_numpy(random_instances(rng, (2, 30, 40), 3, 0.05)).long()
    truth = torch.ops.unet_fast.nearest_two(labels, [1.0, 1.0])
    labels[0, 11, 17] = bad
    d1, d2 = kernels.nearest_two(labels, [1.0, 1.0])
    weights = kernels.weight_map(labels, 10.0, 5.0, None, False, False)
    for result in (d1[0], d2[0], weights[0]):
        assert result[11, 17].isnan() and not result.isnan().all()
    torch.testing.assert_close((d1[1], d2[1]), (truth[0][1], truth[1][1]), **EXACT)
    assert not weights[1].isnan().any()


def few_cells(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Maps in which the nearest instances are far away, by name."""
    maps = {name: torch.zeros(shape, dtype=torch.int32) for name in ("none", "one", "two", "diagonal", "nested")}
    maps["one"][0, ..., 0, 0] = 5
    maps["two"][0, ..., 0, 3], maps["two"][0, ..., -1, -1] = 5, 9
    rows, columns = shape[-2:]
    at = torch.arange(min(rows, columns))
    maps["diagonal"][..., at, at], maps["diagonal"][..., rows - 1, 1] = 3, 4
    # a frame of one label around a strip of another, nearer to the middle only there
    maps["nested"][..., 0], maps["nested"][..., -1], maps["nested"][..., 0, columns // 3] = 1, 1, 2
    return maps


@only("emulated")
@pytest.mark.parametrize("spacing", [1.0, 0.7])
@pytest.mark.parametrize("shape", [(2, 9, 300), (1, 40, 129), (1, 2, 130, 132)])
def test_few_cells_in_long_lines(shape, spacing, kernels, rng):
    """Blocks of columns, or of rows in the middle pass of a volume, are passed over; nothing that matters is."""
    steps = [spacing, *[1.0] * (len(shape) - 2)]
    maps = {"sparse": torch.from_numpy(random_instances(rng, shape, 6, 0.002)), **few_cells(shape)}
    for name, labels in maps.items():
        got, truth = (k.nearest_two(labels, steps) for k in (kernels, torch.ops.unet_fast))
        torch.testing.assert_close(got, truth, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
        mask = labels == 0
        got, truth = (k.distance_transform(mask, steps) for k in (kernels, torch.ops.unet_fast))
        torch.testing.assert_close(got, truth, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
        if labels.dim() == 3 and spacing == 1.0:
            arguments = (labels, 10.0, 30.0, None, True, True)
            got, truth = (k.weight_map(*arguments) for k in (kernels, torch.ops.unet_fast))
            torch.testing.assert_close(got, truth, rtol=1e-6, atol=1e-6)


@only("emulated")
@pytest.mark.parametrize("shape", [(2, 513, 5), (1, 1700, 9), (1, 65535, 1), (1, 70000, 2), (1, 600, 2, 3)])
def test_scans_of_several_chunks(shape, kernels, rng):
    """Lines of more than 512 pixels, and of more than 16 bits of steps; labels that only other chunks have."""
    labels = torch.from_numpy(random_instances(rng, shape, 4, 0.001)).long()
    far = torch.zeros_like(labels)
    far[:, 0], far[:, -1] = 7, 8
    ones = [1.0] * (len(shape) - 1)
    for each in (labels, far, torch.zeros_like(labels)):
        got, truth = (k.nearest_two(each, ones) for k in (kernels, torch.ops.unet_fast))
        torch.testing.assert_close(got, truth, **EXACT)
        mask = each == 0
        got, truth = (k.distance_transform(mask, ones) for k in (kernels, torch.ops.unet_fast))
        torch.testing.assert_close(got, truth, **EXACT)
        if each.dim() == 3:
            for balanced in (False, True):
                arguments = (each, 10.0, 5.0, None, balanced, False)
                got, truth = (k.weight_map(*arguments) for k in (kernels, torch.ops.unet_fast))
                torch.testing.assert_close(got, truth, rtol=1e-6, atol=1e-6)


@only("interpreted")
@pytest.mark.parametrize(("shape", "spacing"), [((1, 1, 132), 1.0), ((1, 2, 129), 0.7), ((1, 1, 130, 1), 1.0)])
def test_long_lines_of_few_cells(shape, spacing, rng):
    """Blocks of 32 pixels are passed over; nothing that matters is."""
    steps = (spacing, *[1.0] * (len(shape) - 2))
    two, strip = (torch.zeros(shape, dtype=torch.int32) for _ in range(2))
    two.view(-1)[1], two.view(-1)[-1] = 5, 9
    strip.view(-1)[::128], strip.view(-1)[100] = 1, 2  # one label on both sides, another between
    for labels in (two, strip):
        got = nearest_two(labels, spacing=steps), distance_transform(labels == 0, spacing=steps)
        with use_backend("cpp"):
            torch.testing.assert_close(got[0], nearest_two(labels, spacing=steps), **EXACT)
            torch.testing.assert_close(got[1], distance_transform(labels == 0, spacing=steps), **EXACT)
