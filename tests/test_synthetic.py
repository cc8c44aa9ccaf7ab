"""Synthetic images: their truth is exact, they repeat by seed, and a threshold does not solve them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from unet_fast.data import synthetic
from unet_fast.errors import InputError

Maker = Callable[..., tuple[np.ndarray, np.ndarray]]
MAKERS = [synthetic.membranes, synthetic.nuclei]


def best_f(images: np.ndarray, truth: np.ndarray) -> float:
    """The best F score of ``image > t`` over all thresholds."""
    positive = np.bincount(images[truth], minlength=256)[::-1].cumsum()
    chosen = np.bincount(images.ravel(), minlength=256)[::-1].cumsum()
    return float((2 * positive / (chosen + truth.sum())).max())


def touching_pairs(instances: np.ndarray) -> int:
    pairs = set()
    for a, b in ((instances[1:], instances[:-1]), (instances[:, 1:], instances[:, :-1])):
        meet = (a != b) & (a > 0) & (b > 0)
        pairs |= {(min(p), max(p)) for p in zip(a[meet].tolist(), b[meet].tolist(), strict=True)}
    return len(pairs)


@pytest.fixture(scope="module", params=MAKERS, ids=["membranes", "nuclei"])
def drawn(request: pytest.FixtureRequest) -> tuple[Maker, np.ndarray, np.ndarray]:
    return request.param, *request.param(3, (200, 260), seed=11)


def test_shapes_and_numbers(drawn: tuple[Maker, np.ndarray, np.ndarray]) -> None:
    """Every number from 1 to the largest is one 4-connected component."""
    _, images, instances = drawn
    assert images.shape == instances.shape == (3, 200, 260)
    assert images.dtype == np.uint8 and instances.dtype == np.int32
    for image in instances:
        count = image.max()
        np.testing.assert_array_equal(np.unique(image), np.arange(count + 1))
        assert count > 10
        for number in range(1, count + 1):
            assert ndimage.label(image == number)[1] == 1


def test_repeats_by_seed(drawn: tuple[Maker, np.ndarray, np.ndarray]) -> None:
    """The same seed gives the same images, whatever the number of images and the state of NumPy's global generator."""
    make, images, instances = drawn
    np.random.seed(1)
    for count in (1, 4):
        again = make(count, (200, 260), seed=11)
        np.testing.assert_array_equal(again[0][:3], images[:count])
        np.testing.assert_array_equal(again[1][:3], instances[:count])
    other = make(1, (200, 260), seed=12)
    assert (other[1][0] != instances[0]).mean() > 0.2
    assert np.abs(other[0][0].astype(int) - images[0]).mean() > 5


def test_uses_the_grey_range(drawn: tuple[Maker, np.ndarray, np.ndarray]) -> None:
    """Contrast, noise in every region, few clipped pixels."""
    _, images, _ = drawn
    for image in images:
        assert image.std() > 12
        assert np.mean((image == 0) | (image == 255)) < 0.06
        assert np.median(np.abs(np.diff(image.astype(int), axis=1))) >= 1


def test_a_threshold_does_not_do(drawn: tuple[Maker, np.ndarray, np.ndarray]) -> None:
    make, images, instances = drawn
    if make is synthetic.membranes:
        assert 0.45 < best_f(255 - images, instances == 0) < 0.75
    assert 0.7 < best_f(images, instances > 0) < 0.94


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_membrane_truth(seed: int) -> None:
    images, instances = synthetic.membranes(4, (256, 256), seed=seed)
    membrane = instances == 0
    assert 0.12 < membrane.mean() < 0.32
    for image, numbers, mask in zip(images, instances, membrane, strict=True):
        assert image[mask].mean() < image[~mask].mean() - 25
        assert ndimage.label(~mask)[1] == numbers.max()  # the components of the interior are the instances
        # the truth lies where the dark lines are: shifting it makes it worse
        score = image[mask].mean()
        for shift in ((0, 4), (4, 0), (-4, -4)):
            assert image[np.roll(mask, shift, (0, 1))].mean() > score + 5
    chance = membrane.mean()
    overlap = np.mean([(a & b).sum() / a.sum() for a, b in zip(membrane[:-1], membrane[1:], strict=True)])
    assert chance + 0.15 < overlap < 0.9  # neighbours resemble each other and differ
    far = synthetic.membranes(30, (64, 64), seed=seed)[1] == 0
    assert (far[0] & far[29]).sum() / far[0].sum() < 0.6


def test_dark_organelles(rng: np.random.Generator) -> None:
    """Well inside neurites there are pixels as dark as membranes."""
    images, instances = synthetic.membranes(3, (384, 384), seed=int(rng.integers(1000)))
    inner = np.stack([ndimage.distance_transform_edt(image > 0) > 8 for image in instances])
    smooth = ndimage.gaussian_filter(images.astype(np.float32), (0, 1.5, 1.5))
    dark = smooth[inner] < smooth[instances == 0].mean()
    assert 0.005 < dark.mean() < 0.25


def test_cells_sets_the_number() -> None:
    few, many = (synthetic.membranes(1, (256, 256), seed=3, cells=cells)[1].max() for cells in (12, 90))
    assert 4 <= few <= 30 < 50 <= many <= 160


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nuclei_touch(seed: int) -> None:
    images, instances = synthetic.nuclei(3, (256, 256), seed=seed)
    touching = [touching_pairs(numbers) for numbers in instances]
    assert min(touching) >= 1 and sum(touching) >= 15
    for image, numbers in zip(images, instances, strict=True):
        assert 0.08 < (numbers > 0).mean() < 0.5
        areas = np.bincount(numbers.ravel())[1:]
        assert 80 < np.median(areas) < 1200
        assert image[numbers > 0].mean() > image[numbers == 0].mean() + 15
        # brightness differs from nucleus to nucleus
        means = ndimage.mean(image, numbers, np.arange(1, numbers.max() + 1))
        assert means.std() > 0.15 * means.mean()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (16, 16), (5, 300)])
def test_small_sizes(make: Maker, size: tuple[int, int]) -> None:
    images, instances = make(2, size, seed=4)
    assert images.shape == instances.shape == (2, *size)
    assert instances.min() >= 0


@pytest.mark.parametrize("make", MAKERS)
def test_bad_input(make: Maker) -> None:
    with pytest.raises(InputError, match="num_images is 0, expected at least 1"):
        make(0)
    with pytest.raises(InputError, match=r"size is \(0, 4\), expected \(height, width\)"):
        make(1, (0, 4))
    with pytest.raises(InputError, match="seed is -1"):
        make(1, (8, 8), seed=-1)
    with pytest.raises(InputError, match="cells is 0, expected at least 1"):
        synthetic.membranes(1, (8, 8), cells=0)
