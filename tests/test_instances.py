"""Instances that come apart: rims and cores of labels, and what grows out of them again, whole or in bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed

from unet_fast import UNet, data, metrics, recipes, train
from unet_fast.data import synthetic
from unet_fast.data.cores import BACKGROUND, CORE, RIM, rim_width, rims_and_cores
from unet_fast.data.touching import separate_touching
from unet_fast.deploy.description import Description
from unet_fast.errors import InputError
from unet_fast.predict import Predictor, cores
from unet_fast.run import Run
from unet_fast.train import LOSSES
from unet_fast.train.prediction import predictor_of
from unet_fast.train.validation import validate

pytestmark = pytest.mark.core


def hard(classes: np.ndarray) -> np.ndarray:
    """Classes (N, H, W) as the levels that a network would give which is sure of them."""
    return cores.levels_of((classes[:, None] == np.arange(3)[:, None, None]).astype(np.float32), 0.5)


def targets(instances: np.ndarray) -> tuple[np.ndarray, float]:
    """What a network learns of instances (N, H, W), and the width of the rims."""
    separate = separate_touching(instances)
    width = rim_width(separate)
    return np.stack(
        [rims_and_cores(*pair) for pair in zip(separate, [width] * len(separate), instances > 0, strict=True)]
    ), width


def landscape(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth levels (H, W) with objects of about ten pixels that touch."""
    core, foreground = (ndimage.gaussian_filter(rng.normal(size=(height, width)), 2.5) for _ in range(2))
    probabilities = np.stack([foreground < 0.0, 0 * core, np.clip(0.5 + 6 * (core + foreground), 0, 1)])
    return cores.levels_of(probabilities[None].astype(np.float32), 0.5)[0]


def test_rims_and_cores_equal_scipy() -> None:
    _, instances = synthetic.nuclei(2, size=(96, 80), seed=3)
    separate = separate_touching(instances)
    width = rim_width(separate)
    classes = [rims_and_cores(image, width, drawn > 0) for image, drawn in zip(separate, instances, strict=True)]
    distance = [ndimage.distance_transform_edt(image > 0) for image in separate]
    radii = [
        [d[image == label].max() for label in np.unique(image[image > 0])]
        for d, image in zip(distance, separate, strict=True)
    ]
    assert width == pytest.approx(max(2, 0.15 * np.median(np.concatenate(radii))))
    assert (separate > 0).sum() < (instances > 0).sum()  # there is a ridge
    for image, drawn, d, found in zip(separate, instances, distance, classes, strict=True):
        assert ((found != BACKGROUND) == (drawn > 0)).all()
        assert (found[(drawn > 0) & (image == 0)] == RIM).all()
        for label in np.unique(image[image > 0]):
            inside = image == label
            core = d[inside] > min(width, d[inside].max() / 2)
            assert core.any() and ((found[inside] == CORE) == core).all() and ((found[inside] == RIM) == ~core).all()


def test_objects_of_any_size_keep_a_core_and_come_back() -> None:
    instances = np.zeros((1, 40, 60), np.int32)
    instances[0, 2, 2], instances[0, 5:7, 2:30], instances[0, 10:38, 2:30], instances[0, 10:38, 30:58] = 1, 2, 3, 4
    classes, width = targets(instances)
    assert width == 2  # of four radii of 1, 1 and twice about 13
    for label in (1, 2, 3, 4):
        assert (classes[instances == label] == CORE).any(), label
    found = cores.core_instances(hard(classes)[0], min_size=0)
    assert found.max() == 4
    assert metrics.average_precision(found[None], instances, iou=0.9) == 1
    assert cores.core_instances(hard(classes)[0], min_size=2).max() == 3
    empty, width = targets(np.zeros((1, 4, 5), np.int32))
    assert not empty.any() and width == 2


def test_touching_objects_come_back_as_large_as_they_were_drawn() -> None:
    """What the ridge between them took is theirs again: every pixel of two discs that share a border."""
    y, x = np.mgrid[:24, :40]
    instances = np.where((y - 12) ** 2 + (x - 12) ** 2 < 81, 1, 0)
    instances[((y - 12) ** 2 + (x - 27) ** 2 < 81) & (instances == 0)] = 2
    drawn = instances[None].astype(np.int32)
    assert (separate_touching(drawn) == 0).sum() > (drawn == 0).sum()
    found = cores.core_instances(hard(targets(drawn)[0])[0], min_size=9)
    assert ((found > 0) == (drawn[0] > 0)).all()
    assert metrics.average_precision(found[None], drawn, iou=0.95) == 1


def test_a_broken_ridge_splits_nothing_together() -> None:
    """Two touching squares, of whose ridge the network misses three pixels: components merge them, cores do not."""
    instances = np.zeros((1, 24, 44), np.int32)
    instances[0, 2:22, 2:22], instances[0, 2:22, 22:42] = 1, 2
    classes, _ = targets(instances)
    classes[0, 10:13, 18:26] = np.maximum(classes[0, 10:13, 18:26], RIM)
    assert ndimage.label(classes[0] > 0)[1] == 1
    assert metrics.average_precision(cores.core_instances(hard(classes)[0], min_size=9)[None], instances, iou=0.8) == 1


def summits_by_flooding(relief: np.ndarray, height: int) -> np.ndarray:
    """Extended maxima, (H, W) numbers: what lies above a level, component by component, the level going down.

    A summit is a component that has come down to ``height`` below its peak without having met a summit on the way.
    """
    out, number = np.zeros(relief.shape, int), 0
    for level in range(int(relief.max()), 0, -1):
        parts, count = ndimage.label(relief >= level)
        for part in range(1, count + 1):
            inside = parts == part
            peak = int(relief[inside].max())
            # alone down to its peak - height: no pixel of the part belongs to another summit yet
            if level == peak - height and not (out[inside] > 0).any():
                number += 1
                out[inside] = number
    return out


def test_core_instances_equal_the_plain_watershed(rng: np.random.Generator) -> None:
    levels = landscape(rng, 60, 70)
    foreground = levels > 0
    relief = cores.relief_of(levels)
    assert np.abs(relief - ndimage.gaussian_filter(levels.astype(float), 1))[foreground].max() <= 0.51
    summits = summits_by_flooding(relief, 64)
    np.testing.assert_array_equal(cores._summits(relief), summits > 0)
    pieces, _ = ndimage.label(foreground)
    alone = foreground & ~np.isin(pieces, np.unique(pieces[summits > 0]))
    assert alone.any()
    markers, count = ndimage.label((summits > 0) | alone)
    expected = watershed(-relief, markers, mask=foreground)
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


# --- a run ---------------------------------------------------------------------------------------------------------------


def test_a_run_on_instances_knows_how_its_objects_come_apart(tmp_path: Path) -> None:
    images, instances = synthetic.nuclei(4, size=(64, 64), seed=5)
    pair = data.Pair(images[:, None] if images.ndim == 3 else images, instances, "instances", 2, list("abcd"))
    training, validation = train.hold_out(pair, [3])
    options = {"steps": 3, "base_channels": 4, "depth": 2, "tile": 32, "in_channels": pair.images.shape[1]}
    config = train.default_config("cpu", kind="instances", **options)
    assert (config.separate, config.num_classes, config.loss.balance) == ("cores", 3, False)
    plain = train.default_config("cpu", kind="instances", separate="ridge", **options)
    assert (plain.separate, plain.num_classes, plain.loss.balance) == ("ridge", 2, True)
    assert train.default_config("cpu", kind="instances", recipe=recipes.get("em"), steps=1).separate == "ridge"

    summary = train.train(config, training, validation, tmp_path / "run", progress=False, announce=lambda text: None)
    assert summary.validation is not None and summary.validation.average_precision is not None
    assert summary.validation.criterion == 1 - summary.validation.mean_average_precision
    assert "val_average_precision" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    run = Run.load(tmp_path / "run", "cpu")
    areas = [np.bincount(image.ravel())[1:] for image in training.labels]
    areas = np.concatenate([area[area > 0] for area in areas])
    assert run.settings.min_size == int(0.75 * np.percentile(areas, 1))
    predictor = run.predictor(output="instances", tta=1)
    assert predictor.levels and predictor.min_size == run.settings.min_size
    probabilities = run.predict(validation.images, tta=1)
    assert probabilities.shape == (1, 2, 64, 64) and np.allclose(probabilities.sum(1), 1)
    mask = run.predict(validation.images, output="labels", tta=1)
    np.testing.assert_array_equal(mask, probabilities[:, 1] > 0.5)
    found = run.predict(validation.images, output="instances", tta=1, min_size=1)
    np.testing.assert_array_equal(found > 0, mask > 0)
    # and so does what an exported file says of it
    described = Description.read(Description.of(run.model, run.settings).metadata(), "a file")
    again = predictor_of(run.model, described, output="instances", tta=1, amp=predictor.tiles.amp)(validation.images)
    np.testing.assert_array_equal(again, predictor(validation.images))


@pytest.mark.parametrize(
    ("radius", "factor"), [(None, 1), (2.0, 1), (13.9, 1), (14.0, 2), (45.0, 4), (56.0, 8), (999.0, 8)]
)
def test_large_objects_are_seen_at_a_coarser_resolution(radius: float | None, factor: int) -> None:
    config = train.default_config("cpu", kind="instances", object_radius=radius, steps=1)
    assert config.model["downsample"] == factor
    assert config.tile == (192 if factor == 1 else 128 * factor)
    other = {"kind": "instances", "object_radius": radius, "steps": 1}
    assert train.default_config("cpu", separate="ridge", **other).model["downsample"] == 1
    assert train.default_config("cpu", downsample=2, **other).model["downsample"] == 2
    assert "downsample" not in train.default_config("cpu", padding="valid", **other).model
    assert train.default_config("cpu", recipe=recipes.get("keras"), **other).model.get("downsample", 1) == 1


def test_the_radius_of_objects_is_that_of_the_largest_disc_inside() -> None:
    y, x = np.mgrid[:64, :64]
    labels = np.zeros((2, 64, 64), np.int32)
    for number, (row, column, radius) in enumerate([(14, 14, 5), (14, 40, 9), (44, 30, 13)], start=1):
        labels[0][(y - row) ** 2 + (x - column) ** 2 < radius**2] = number
    pair = data.Pair(np.zeros((2, 1, 64, 64), np.uint8), labels, "instances", 2, ["a", "b"])
    assert train.object_radius(pair) == pytest.approx(9, abs=0.5)
    assert train.object_radius(pair.select([1])) is None
    assert train.object_radius(data.Pair(pair.images, (labels > 0).astype(np.uint8), "mask", 2, ["a", "b"])) is None


def test_images_that_differ_in_their_grey_values_are_normalised_one_by_one(rng: np.random.Generator) -> None:
    """Few bright objects here and many dim ones there, in contrast to images of one kind at any brightness."""
    alike = rng.normal(size=(6, 2, 40, 50)) * rng.uniform(1, 9, (6, 1, 1, 1)) + rng.uniform(0, 50, (6, 1, 1, 1))
    labels = np.ones((6, 40, 50), np.int32)
    pair = data.Pair(alike, labels, "instances", 2, list("abcdef"))
    z = (alike - alike.mean((2, 3), keepdims=True)) / alike.std((2, 3), keepdims=True)
    assert train.grey_spread(pair) == pytest.approx(np.percentile(z, 95, axis=(2, 3)).std(0).mean(), rel=1e-6)
    assert train.grey_spread(pair) < 0.1
    differing = rng.normal(size=(6, 1, 40, 50))
    differing[::2, :, :10] += 20  # a quarter of the image in some
    differing[1::2, :, :1] += 20  # 2 % of it in others
    other = data.Pair(differing, labels, "instances", 2, list("abcdef"))
    assert train.grey_spread(other) > 0.5
    assert train.traits(other) == {
        "object_radius": train.object_radius(other),
        "grey_spread": train.grey_spread(other),
        "image_side": 50,
    }
    assert train.grey_spread(other.select([0, 1, 2])) is None
    assert (
        train.grey_spread(data.Pair(np.zeros((4, 1, 8, 8), np.uint8), labels[:4, :8, :8], "mask", 2, list("abcd"))) == 0
    )
    for spread, norm in ((None, "batch"), (0.4, "batch"), (0.6, "instance")):
        config = train.default_config("cpu", kind="instances", grey_spread=spread, minutes=4.0)
        assert (config.model["norm"], config.optimizer.learning_rate, config.threshold) == (norm, 3e-3, 0.4)
        assert train.default_config("cpu", kind="mask", grey_spread=spread, minutes=4.0).model["norm"] == "batch"
        assert (
            train.default_config("cpu", kind="instances", grey_spread=spread, norm="group", steps=1).model["norm"]
            == "group"
        )
    assert train.default_config("cpu", kind="mask", steps=1).threshold == 0.5


def test_a_validation_counts_the_objects_that_a_prediction_would_have(rng: np.random.Generator) -> None:
    """A foreground of 0.45 is one for a run whose threshold is 0.4."""
    labels = np.zeros((1, 24, 24), np.int32)
    labels[0, 4:20, 4:20] = 1
    background = np.where(labels > 0, 0.55, 1.0)
    core = np.where(labels > 0, 0.4, 0.0)
    probabilities = np.stack([background, 1 - background - core, core], axis=1).astype(np.float32)
    pair = data.Pair(np.zeros((1, 1, 24, 24), np.uint8), labels, "instances", 2, ["a"])
    found = [
        validate(probabilities, pair, LOSSES["weighted_cross_entropy"](), separate="cores", threshold=threshold)
        for threshold in (0.4, 0.5)
    ]
    assert [scores.average_precision for scores in found] == [1, 0]


def test_cores_are_refused_where_they_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="separate is 'cores', which takes a network of 3 classes"):
        train.default_config("cpu", steps=1).changed(separate="cores")
    with pytest.raises(InputError, match="separate is 'islands', expected one of 'ridge', 'cores'"):
        train.default_config("cpu", steps=1, separate="islands")
    with pytest.raises(InputError, match="separate is 'cores', for a network of 3 classes .* but this one has 2"):
        Predictor(UNet(1, 2, base_channels=2, depth=1), separate="cores")
    config = train.default_config("cpu", steps=1, separate="cores", base_channels=2, depth=1, tile=16)
    pair = data.Pair(np.zeros((1, 1, 32, 32), np.uint8), np.eye(32, dtype=np.uint8)[None] * 2, "classes", 3, ["a"])
    with pytest.raises(InputError, match="needs labels that number objects, but these are classes"):
        train.train(config, pair, None, tmp_path / "run", progress=False)
