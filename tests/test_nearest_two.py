"""nearest_two against one SciPy EDT for each instance: random, adversarial, real and degenerate maps, bad input."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import unet_fast.numpy
from tests.instance_maps import (
    assert_distances,
    check_host_backends,
    random_instances,
    real_instances,
    two_distances,
)
from tests.places import needs, opcheck
from tests.tolerances import DISTANCE, EXACT
from unet_fast import reference
from unet_fast.data.synthetic import crowded_cells
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import nearest_two, use_backend

pytestmark = [pytest.mark.kernels, needs("speed")]  # smaller ones: test_kernels_distance.py

DTYPES = [torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64]
SPACINGS = (None, 1.0, 0.37, "uneven")


def check(labels: np.ndarray, spacing: object = None, place: str = "cpu") -> None:
    truth = two_distances(labels, spacing)
    for result in (
        tuple(d.cpu() for d in nearest_two(torch.from_numpy(labels).to(place), spacing=spacing)),
        unet_fast.numpy.nearest_two(labels, spacing=spacing),
    ):
        for d, expected in zip(result, truth, strict=True):
            assert_distances(d, expected, DISTANCE)


def stripes(shape: tuple[int, int], step: int, axis: int) -> np.ndarray:
    index = np.arange(shape[axis])
    line = np.where(index % step == 0, index // step + 1, 0)
    return np.broadcast_to(np.expand_dims(line, 1 - axis), shape)


ADVERSARIAL = {
    "every pixel another instance": np.arange(1, 13 * 17 + 1).reshape(13, 17),
    "lines across": stripes((30, 23), 3, 0),
    "lines down": stripes((30, 23), 4, 1),
    "two labels in turn": (np.indices((21, 34)).sum(0) % 2 + 1) * (np.indices((21, 34))[0] % 3 == 0),
    "one instance in two parts": np.where(np.indices((9, 40))[1] % 39 == 0, 5, 0),
    "a ring around a dot": np.pad(np.pad(np.array([[7]]), 9), 1, constant_values=3),
    "nested rings": np.minimum.reduce([i := np.indices((25, 31)), np.array([[[24]], [[30]]]) - i]).min(0) % 5,
    "two far corners": np.diag(np.r_[1, np.zeros(38, int), 2]),
    "a long row": np.where(np.arange(500) % 83 == 0, np.arange(500) // 83 % 3 + 1, 0)[None],
    "a long column": np.where(np.arange(500) % 71 == 0, np.arange(500) // 71 % 3 + 1, 0)[:, None],
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_label_maps(name, place):
    labels = np.ascontiguousarray(ADVERSARIAL[name])[None].astype(np.int64)
    for turned in (labels, labels.transpose(0, 2, 1).copy(), labels[:, ::-1, ::-1].copy()):
        check(turned, place=place)
        check(turned, (0.5, 3.0), place)


def test_crowded_cells(place, rng):
    check(np.stack([crowded_cells(rng, (150, 201), n, 2.5) for n in (3, 60)]), place=place)


@pytest.mark.parametrize("name", ["dsb2018-fluo520", "usiigaci", "dic-hela", "phc-u373"])
def test_real_label_maps(name, real_data):
    check(real_instances(real_data, name, 1)[:, :300, :420])


def test_whole_real_image_is_right_at_random_pixels(real_data, rng):
    # 1022 x 1024: brute force over all labelled pixels
    labels = real_instances(real_data, "usiigaci", 1)
    d1, d2 = nearest_two(torch.from_numpy(labels))
    where = np.argwhere(labels[0])
    names = labels[0][tuple(where.T)]
    for y, x in rng.integers(0, (1022, 1024), size=(40, 2)):
        squared = ((where - (y, x)) ** 2).sum(1)
        nearest = squared.argmin()
        other = squared[names != names[nearest]].min()
        assert d1[0, y, x] == np.float32(np.sqrt(squared[nearest]))
        assert d2[0, y, x] == np.float32(np.sqrt(other))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, rng):
    labels = random_instances(rng, (2, 19, 33), 6, 0.05)
    result = nearest_two(torch.from_numpy(labels).to(dtype))
    for d, expected in zip(result, two_distances(labels), strict=True):
        assert_distances(d, expected, DISTANCE)


def test_large_labels_are_told_apart():
    labels = torch.zeros(1, 1, 9, dtype=torch.int64)
    labels[0, 0, 0], labels[0, 0, 8] = 2**31 - 1, 2**31 - 2
    _, d2 = nearest_two(labels)
    assert d2[0, 0].tolist() == [8, 7, 6, 5, 4, 5, 6, 7, 8]


def test_strided_inputs(rng):
    base = torch.from_numpy(random_instances(rng, (4, 40, 36), 5, 0.05))
    for view in (base[::2, 3:35, 1:30], base.transpose(1, 2), base[:, ::3, ::2], base[:1].expand(3, -1, -1)):
        torch.testing.assert_close(nearest_two(view), nearest_two(view.clone().contiguous()), **EXACT)
        numpy_result = unet_fast.numpy.nearest_two(view.numpy()[:, ::-1])
        for a, b in zip(numpy_result, nearest_two(view.flip(1)), strict=True):
            np.testing.assert_array_equal(a, b.numpy())


@needs("speed")
def test_sides_over_1024_px(place):
    labels = np.zeros((1, 3, 5000), np.int32)
    labels[0, 1, 0], labels[0, 2, 4999] = 1, 2
    check(labels, place=place)
    check(labels.transpose(0, 2, 1).copy(), place=place)


@needs("large")
def test_largest_integer_grid_and_beyond():
    for width in (32768, 40000, 70000):  # the last two do not fit squared distances in int32
        labels = torch.zeros(1, 2, width, dtype=torch.uint8)
        labels[0, 0, 0], labels[0, 1, -1] = 1, 2
        d1, d2 = nearest_two(labels)
        x = torch.arange(width, dtype=torch.float64)
        near, far = x, (1 + (width - 1 - x) ** 2).sqrt()
        assert torch.equal(d1[0, 0], torch.minimum(near, far).float())
        assert torch.equal(d2[0, 0], torch.maximum(near, far).float())


def test_fewer_than_two_instances():
    labels = torch.zeros(3, 4, 5, dtype=torch.int32)
    labels[1, 2, 2] = 9
    labels[2, 0, 0], labels[2, 3, 4] = 1, 2
    d1, d2 = nearest_two(labels)
    assert d1[0].isinf().all() and d2[:2].isinf().all()
    assert d1[1, 2].tolist() == [2, 1, 0, 1, 2]
    assert d2[2, 0, 0] == d2[2, 3, 4] == 5
    one = torch.ones(1, 3, 3, dtype=torch.int32)
    assert nearest_two(one)[0].eq(0).all() and nearest_two(one)[1].isinf().all()


@pytest.mark.parametrize(
    "shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (0, 2, 3, 4), (1, 3, 0, 2), (1, 1, 1), (1, 1, 1, 1)]
)
def test_empty_and_single_pixel_shapes(shape):
    d1, d2 = nearest_two(torch.ones(shape, dtype=torch.int32))
    assert d1.shape == d2.shape == shape and d1.dtype == torch.float32
    assert d1.eq(0).all() and d2.isinf().all()
    assert unet_fast.numpy.nearest_two(np.ones(shape, int))[0].shape == shape


def test_many_small_images_equal_single_calls(rng):
    labels = torch.from_numpy(random_instances(rng, (300, 13, 7), 3, 0.1))
    d1, d2 = nearest_two(labels)
    for n in range(0, 300, 37):
        torch.testing.assert_close(nearest_two(labels[n : n + 1]), (d1[n : n + 1], d2[n : n + 1]), **EXACT)


@needs("threads")
def test_number_of_threads_changes_nothing(rng):
    labels = torch.from_numpy(crowded_cells(rng, (90, 131), 20, 2.0)[None])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(nearest_two(labels))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1], **EXACT)
    torch.testing.assert_close(results[0], results[2], **EXACT)


@needs("host")
def test_reference_and_backends(rng):
    labels = torch.from_numpy(random_instances(rng, (2, 5, 12, 14), 4, 0.05))
    truth = reference.nearest_two(labels, spacing=(2.0, 1.0, 0.5))
    check_host_backends(lambda: nearest_two(labels, spacing=(2.0, 1.0, 0.5)), truth, DISTANCE)


@needs("compiler")
def test_registration_and_compile(rng):
    labels = torch.from_numpy(random_instances(rng, (2, 9, 14), 4, 0.1))
    for sample, spacing in ((labels, [1.0, 2.0]), (labels[None], [1.0, 1.0, 1.0]), (labels[:, ::2], [1.0, 1.0])):
        opcheck(torch.ops.unet_fast.nearest_two.default, (sample, spacing))
    compiled = torch.compile(
        lambda x: torch.stack(nearest_two(x, spacing=2.0)).sum(0), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for sample in (labels, labels[:, :6, :11]):
        torch.testing.assert_close(compiled(sample), sum(nearest_two(sample, spacing=2.0)), **EXACT)


@needs("host")
def test_numpy_functions_leave_torch_alone():
    code = (
        "import sys, numpy as np, unet_fast.numpy as un\n"
        "a = np.zeros((8, 9), '>i4'); a[1, 1] = 1; a[6, 7] = 2\n"
        "d1, d2 = un.nearest_two(a); w = un.weight_map(a); d = un.distance_transform(a == 0)\n"
        "assert d2[1, 1] == np.float32(np.sqrt(61)) and (d == d1).all() and w.shape == (8, 9)\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'torch'], 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs("host")
@pytest.mark.parametrize(
    ("labels", "spacing", "error", "message"),
    [
        (np.zeros((1, 4, 4), int), None, InputTypeError, "instances is a ndarray, expected a torch.Tensor"),
        (torch.zeros(1, 4, 4), None, InputTypeError, "instances has dtype float32, expected one of uint8"),
        (torch.zeros(1, 4, 4, dtype=torch.bool), None, InputTypeError, "instances has dtype bool"),
        (torch.zeros(4, 4, dtype=torch.int32), None, InputError, r"2 dimensions.*\(N, H, W\) or \(N, D, H, W\)"),
        (torch.full((1, 4, 4), -3), None, InputError, "instances contains -3, expected labels 0"),
        (torch.full((1, 2, 2), -1, dtype=torch.int8), None, InputError, "instances contains -1"),
        (torch.full((1, 2, 2), 2**31), None, InputError, "instances contains 2147483648, expected"),
        (torch.zeros(1, 4, 4, dtype=torch.int32), (1.0, 0.0), InputError, "expected positive finite numbers"),
        (torch.zeros(1, 4, 4, dtype=torch.int32), float("nan"), InputError, "spacing is nan"),
        (torch.zeros(1, 4, 4, dtype=torch.int32), (1.0,), InputError, "has 1 values, expected 2"),
        (torch.zeros(1, 4, 4, dtype=torch.int32), (1.0, "2"), InputTypeError, "expected a number or 2 numbers"),
        (torch.zeros(1, 4, 4, dtype=torch.int32), (1e-200, 1.0), InputError, "differ by less than a factor"),
    ],
)
def test_bad_input(labels, spacing, error, message):
    with pytest.raises(error, match=message):
        nearest_two(labels, spacing=spacing)


@needs("errors")
def test_bad_labels_are_told_by_every_backend():
    labels = torch.tensor([[[0, 3, -7]]])
    for backend in ("cpp", "reference"):
        with use_backend(backend), pytest.raises(InputError, match=r"instances contains -7, .* relabel the cells$"):
            nearest_two(labels)
    with pytest.raises(InputError, match="instances contains -7"):
        unet_fast.numpy.nearest_two(labels.numpy())
    with pytest.raises(InputError, match="has 1 dimensions"):
        unet_fast.numpy.nearest_two(np.zeros(3, int))
    with pytest.raises(InputTypeError, match="has dtype float64, expected an integer dtype"):
        unet_fast.numpy.nearest_two(np.zeros((3, 3)))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinities of processes are Linux's")
def test_the_pool_heeds_the_cpus_of_the_process_and_can_be_set():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); os.environ.pop('OMP_NUM_THREADS', None)\n"
        "import numpy as np, unet_fast.numpy as ufn\n"
        "cells = np.random.default_rng(0).integers(0, 9, (3, 200, 200)); print(ufn.get_num_threads())\n"
        "truth = ufn.weight_map(cells)\n"
        "for count in (3, 1, 5):\n"
        "    ufn.set_num_threads(count); assert ufn.get_num_threads() == count\n"
        "    assert (ufn.weight_map(cells) == truth).all()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize(("count", "error"), [(0, InputError), (2.0, InputTypeError), (True, InputTypeError)])
def test_impossible_numbers_of_threads_are_refused(count, error):
    with pytest.raises(error, match="count is"):
        unet_fast.numpy.set_num_threads(count)
