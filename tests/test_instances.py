"""Instances that come apart: rims and cores of labels, and what grows out of them again, whole or in bands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed

from unet_fast import metrics
from unet_fast.data import synthetic
from unet_fast.data.cores import BACKGROUND, CORE, RIM, rims_and_cores
from unet_fast.data.touching import separate_touching
from unet_fast.predict import cores

pytestmark = pytest.mark.core


def hard(classes: np.ndarray) -> np.ndarray:
    """Classes (N, H, W) as the levels that a network would give which is sure of them."""
    return cores.levels_of((classes[:, None] == np.arange(3)[:, None, None]).astype(np.float32), 0.5)


def landscape(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth levels (H, W) with objects of about ten pixels that touch."""
    core, foreground = (ndimage.gaussian_filter(rng.normal(size=(height, width)), 2.5) for _ in range(2))
    probabilities = np.stack([foreground < 0.0, 0 * core, np.clip(0.5 + 6 * (core + foreground), 0, 1)])
    return cores.levels_of(probabilities[None].astype(np.float32), 0.5)[0]


def test_rims_and_cores_equal_scipy() -> None:
    _, instances = synthetic.nuclei(2, size=(96, 80), seed=3)
    classes, width = rims_and_cores(instances)
    separate = separate_touching(instances)
    distance = [ndimage.distance_transform_edt(image > 0) for image in separate]
    radii = [
        [d[image == label].max() for label in np.unique(image[image > 0])]
        for d, image in zip(distance, separate, strict=True)
    ]
    assert width == pytest.approx(max(2, 0.15 * np.median(np.concatenate(radii))))
    for image, d, found in zip(separate, distance, classes, strict=True):
        assert ((found != BACKGROUND) == (image > 0)).all()
        for label in np.unique(image[image > 0]):
            inside = image == label
            core = d[inside] > min(width, d[inside].max() / 2)
            assert core.any() and ((found[inside] == CORE) == core).all() and ((found[inside] == RIM) == ~core).all()


def test_objects_of_any_size_keep_a_core_and_come_back() -> None:
    instances = np.zeros((1, 40, 60), np.int32)
    instances[0, 2, 2], instances[0, 5:7, 2:30], instances[0, 10:38, 2:30], instances[0, 10:38, 30:58] = 1, 2, 3, 4
    classes, width = rims_and_cores(instances)
    assert width == 2  # of four radii of 1, 1 and twice about 13
    for label in (1, 2, 3, 4):
        assert (classes[instances == label] == CORE).any(), label
    found = cores.core_instances(hard(classes)[0], min_size=0)
    assert found.max() == 4
    assert metrics.average_precision(found[None], instances, iou=0.9) == 1
    assert cores.core_instances(hard(classes)[0], min_size=2).max() == 3
    empty, width = rims_and_cores(np.zeros((1, 4, 5), np.int32))
    assert not empty.any() and width == 2


def test_a_broken_ridge_splits_nothing_together() -> None:
    """Two touching squares, of whose ridge the network misses three pixels: components merge them, cores do not."""
    instances = np.zeros((1, 24, 44), np.int32)
    instances[0, 2:22, 2:22], instances[0, 2:22, 22:42] = 1, 2
    classes, _ = rims_and_cores(instances)
    classes[0, 10:13, 18:26] = np.maximum(classes[0, 10:13, 18:26], RIM)
    assert ndimage.label(classes[0] > 0)[1] == 1
    assert metrics.average_precision(cores.core_instances(hard(classes)[0], min_size=9)[None], instances, iou=0.8) == 1


def test_core_instances_equal_the_plain_watershed(rng: np.random.Generator) -> None:
    levels = landscape(rng, 70, 90)
    foreground = levels > 0
    pieces, _ = ndimage.label(foreground)
    alone = foreground & ~np.isin(pieces, np.unique(pieces[levels > 128]))
    assert alone.any()
    markers, count = ndimage.label((levels > 128) | alone)
    expected = watershed(-levels.astype(int), markers, mask=foreground)
    assert count > 10 and (expected > 0).sum() == foreground.sum()
    np.testing.assert_array_equal(cores.core_instances(levels, min_size=0), expected)
    sizes = np.bincount(expected.ravel())
    kept = cores.core_instances(levels, min_size=12)
    assert 0 < kept.max() == np.count_nonzero(sizes[1:] >= 12) < count
    np.testing.assert_array_equal(kept > 0, foreground & (sizes[expected] >= 12))


@given(st.integers(1, 90), st.integers(1, 60), st.integers(0, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_bands_give_what_the_whole_gives(height: int, width: int, min_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = landscape(rng, height, width)
    cuts = sorted({0, height, *rng.integers(0, height + 1, 5).tolist()})
    bands = [levels[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    found = list(cores.grown(lambda: iter(bands), min_size))
    assert [len(band) for band in found] == [len(band) for band in bands]
    np.testing.assert_array_equal(np.concatenate(found), cores.core_instances(levels, min_size=min_size))


def test_a_band_sees_no_further_than_it_says(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "HALO", 32)
    levels = landscape(rng, 400, 50)
    read: list[int] = []

    def bands() -> list[np.ndarray]:
        read.append(0)
        return [levels[top : top + 8] for top in range(0, 400, 8)]

    seen: list[int] = []
    grow = cores._watershed
    monkeypatch.setattr(cores, "_watershed", lambda window, marks: seen.append(len(window)) or grow(window, marks))
    found = np.concatenate(list(cores.grown(lambda: iter(bands()), 5)))
    assert max(seen) <= 8 + 2 * (32 + 8)
    # markers and numbers are exact; of the lines between them at most some pixels depend on the bands
    expected = cores.core_instances(levels, min_size=5)
    assert found.max() == expected.max() and (found != expected).mean() < 0.01
