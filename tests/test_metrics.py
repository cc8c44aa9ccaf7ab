"""Metrics against counts made by hand, brute force over all pairs of pixels, and scikit-image."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage
from skimage import measure
from skimage import metrics as oracle
from skimage.metrics._contingency_table import contingency_table

from tests.metric_samples import instances_of, noisy, random_truth
from tests.tolerances import METRIC
from unet_fast import metrics
from unet_fast.errors import InputError, InputTypeError

pytestmark = pytest.mark.core

# --- pixel error -----------------------------------------------------------------------------------------------------


def test_pixel_error_by_hand() -> None:
    p = np.array([[0.95, 0.55], [0.35, 0.05]], dtype=np.float32)
    t = np.array([[1, 0], [1, 0]])
    # threshold below 0.35: predicted 3 (0.0: 4), hits 2, true 2 -> F = 4/5; 0.4, 0.5: predicted 2, hits 1 -> 2/4;
    # 0.6 .. 0.9: predicted 1, hits 1 -> 2/3; 1.0: 0
    scan = metrics.pixel_scan(p, t)
    assert scan.scores == pytest.approx([4 / 6] + [4 / 5] * 3 + [2 / 4] * 2 + [2 / 3] * 4 + [0])
    assert metrics.pixel_error(p, t) == pytest.approx(0.2)
    assert float(scan) == scan.error and scan.threshold == 0.3
    assert (scan.precision, scan.recall) == pytest.approx((2 / 3, 1))
    # (0.05^2 + 0.55^2 + 0.65^2 + 0.05^2) / 4
    assert metrics.squared_difference(p, t) == pytest.approx((0.0025 + 0.3025 + 0.4225 + 0.0025) / 4)


def test_pixel_scan_equals_plain_comparison(rng: np.random.Generator) -> None:
    t = random_truth(rng, 3, 17, 23)
    p = (np.round(noisy(rng, t) * 20) / 20).astype(np.float32)  # many values lie exactly on a threshold
    thresholds = np.arange(21) / 20
    scan = metrics.pixel_scan(p, t, thresholds=thresholds)
    for k, level in enumerate(thresholds):
        for n in range(3):
            b = p[n] > np.float32(level)
            total = b.sum() + t[n].sum()
            assert scan.slice_scores[k, n] == pytest.approx(2 * (b & t[n]).sum() / total)
        b = p > np.float32(level)
        assert scan.scores[k] == pytest.approx(2 * (b & t).sum() / (b.sum() + t.sum()))
    assert scan.squared_difference == pytest.approx(((p.astype(float) - t) ** 2).mean())


def test_pixel_error_ignores_labelled_pixels() -> None:
    p = np.array([[0.9, 0.9], [0.1, 0.9]])
    t = np.array([[1, -100], [0, 1]])
    assert metrics.pixel_error(p, t, ignore_index=-100) == 0
    assert metrics.squared_difference(p, t, ignore_index=-100) == pytest.approx(0.01)


# --- Rand error ------------------------------------------------------------------------------------------------------


def brute_force_rand(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """Pairs of pixels of one slice, one by one: together in both, in the prediction, in truth."""
    both = in_predicted = in_truth = 0
    pixels = [(i, j) for i, j in zip(truth.ravel(), predicted.ravel(), strict=True) if i > 0]
    for (i1, j1), (i2, j2) in itertools.combinations(pixels, 2):
        in_truth += i1 == i2
        in_predicted += j1 == j2 > 0
        both += i1 == i2 and j1 == j2 > 0
    return both, in_predicted, in_truth


def test_rand_error_by_hand() -> None:
    truth = np.array([[1, 1, 0, 2], [1, 1, 0, 2], [0, 0, 0, 2], [3, 3, 3, 0]])
    # column 0..1 of the last row joins object 1 through a leak at (2, 0); one pixel of 2 is lost
    p = np.array([[1, 1, 0, 1], [1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=np.float32)
    # components: A = object 1 + leak + object 3, B = two pixels of object 2. c_1A = 4, c_3A = 3, c_2B = 2, c_20 = 1.
    # TP = 6 + 3 + 1 = 10; predicted = pairs(7) + pairs(2) = 21 + 1 = 22; true = pairs(4) + pairs(3) + pairs(3) = 12
    scan = metrics.rand_scan(p, truth)
    assert scan.precision == pytest.approx(10 / 22)
    assert scan.recall == pytest.approx(10 / 12)
    assert metrics.rand_error(p, truth) == pytest.approx(1 - 20 / 34)
    assert scan.per_slice == pytest.approx([1 - 20 / 34])


def test_rand_error_extremes() -> None:
    truth = np.ones((1, 9, 9), dtype=np.uint8) * 255
    truth[:, 4] = truth[:, :, 4] = 0  # four cells of 16 pixels
    perfect = (truth > 0).astype(np.float32)
    assert metrics.rand_error(perfect, truth) == 0
    merged = metrics.rand_scan(np.full(truth.shape, 0.95, np.float32), truth)
    # TP = true = 4 * 120 = 480 of predicted = 64 * 63 / 2 = 2016
    assert (merged.precision, merged.recall) == pytest.approx((480 / 2016, 1))
    assert merged.error == pytest.approx(1 - 960 / 2496)
    split = np.indices(truth.shape).sum(0) % 2 == 0  # a checkerboard has no 4-neighbours, so no pair at all
    assert metrics.rand_error(split, truth) == 1
    assert metrics.rand_error(np.zeros(truth.shape, np.float32), truth) == 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (2, 7, 5), (3, 9, 8)])
def test_rand_equals_brute_force(rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    truth = random_truth(rng, *shape)
    p = noisy(rng, truth)
    scan = metrics.rand_scan(p, truth)
    cells = instances_of(truth)
    for k, level in enumerate(np.arange(11) / 10):
        counts = [
            brute_force_rand(measure.label(p[n] > np.float32(level), connectivity=1), cells[n]) for n in range(shape[0])
        ]
        both, in_predicted, in_truth = np.sum(counts, axis=0)
        total = in_predicted + in_truth
        assert scan.scores[k] == pytest.approx(2 * both / total if total else 1.0)
        for n, (b, i, t) in enumerate(counts):
            if (cells[n] > 0).any():
                assert scan.slice_scores[k, n] == pytest.approx(2 * b / (i + t) if i + t else 1.0)
            else:
                assert np.isnan(scan.slice_scores[k, n])


def test_rand_equals_skimage_where_no_predicted_background(rng: np.random.Generator) -> None:
    truth = rng.integers(0, 6, (40, 37))
    predicted = rng.integers(1, 9, (40, 37))
    # scikit-image calls TP / (pairs of truth) precision and TP / (pairs of the prediction) recall: the other way round
    error, recall, precision = oracle.adapted_rand_error(truth, predicted)
    scan = metrics.rand_scan(predicted, truth, kind="instances")
    assert (scan.error, scan.precision, scan.recall) == pytest.approx((error, precision, recall), **METRIC)
    assert np.isnan(scan.threshold)


def test_rand_with_huge_labels_and_large_tables(rng: np.random.Generator) -> None:
    truth = rng.integers(0, 400, (30, 31))
    predicted = rng.integers(1, 500, (30, 31))
    expected = oracle.adapted_rand_error(truth, predicted)[0]
    assert metrics.rand_error(predicted, truth) == pytest.approx(expected, **METRIC)
    huge = np.where(truth > 0, truth * 2**50, 0)
    assert metrics.rand_error(predicted.astype(np.uint16), huge) == pytest.approx(expected, **METRIC)


def test_rand_on_a_real_slice_equals_an_independent_count(real_data: Path, rng: np.random.Generator) -> None:
    truth = tifffile.imread(real_data / "isbi2012" / "train-labels.tif", key=3)
    p = noisy(rng, ndimage.gaussian_filter(truth[None] / 255.0, 2) > 0.4)[0]
    cells = measure.label(truth > 0, connectivity=1)
    scores = []
    for level in np.arange(11) / 10:
        parts = measure.label(p > np.float32(level), connectivity=1)
        table = contingency_table(cells, parts, ignore_labels=[0]).toarray()[1:]
        counts = (table[:, 1:], table[:, 1:].sum(0), table.sum(1))
        both, in_predicted, in_truth = (float((c * (c - 1) / 2).sum()) for c in counts)
        scores.append(2 * both / (in_predicted + in_truth))
    assert metrics.rand_scan(p, truth).scores == pytest.approx(scores, **METRIC)
    assert metrics.rand_error(truth > 0, truth) == 0


def test_kind_of_truth() -> None:
    one_cell_in_two_parts = np.array([[7, 7, 0, 7, 7]])
    p = (one_cell_in_two_parts > 0).astype(np.float32)
    assert metrics.rand_error(p, one_cell_in_two_parts) == 0  # auto: one value is a mask, so two cells
    # one true cell of 4 pixels: 6 true pairs, of which 1 + 1 predicted: F = 4 / 8
    assert metrics.rand_error(p, one_cell_in_two_parts, kind="instances") == pytest.approx(0.5)
    two_classes = np.array([[1, 1, 2, 2, 0]])
    # as classes the foreground is one cell, as instances two
    assert metrics.rand_error(two_classes > 0, two_classes, kind="classes") == 0
    assert metrics.rand_error(two_classes > 0, two_classes) == pytest.approx(1 - 2 * 2 / (6 + 2))


def test_ties_go_to_the_threshold_nearest_one_half() -> None:
    truth = np.array([[1, 0], [0, 1]])
    assert metrics.rand_scan(truth.astype(np.float32), truth).threshold == 0.5
    assert metrics.pixel_scan(truth.astype(np.float32), truth).threshold == 0.5
    assert metrics.best_threshold(truth.astype(np.float32), truth).threshold == 0.5


# --- Dice, IoU, SEG --------------------------------------------------------------------------------------------------


def test_dice_and_iou_by_hand() -> None:
    t = np.array([[0, 1, 1, 2]])
    p = np.array([[0, 1, 2, 2]])
    # class 1: both 1, |A| = 1, |B| = 2; class 2: both 1, |A| = 2, |B| = 1
    assert metrics.dice_per_class(p, t) == pytest.approx([1, 2 / 3, 2 / 3])
    assert metrics.iou_per_class(p, t) == pytest.approx([1, 1 / 2, 1 / 2])
    assert metrics.dice(p, t) == pytest.approx(2 / 3)
    assert metrics.iou(p, t) == pytest.approx(1 / 2)
    absent = metrics.dice_per_class(p, t, num_classes=4)
    assert absent.shape == (4,) and np.isnan(absent[3])
    assert metrics.dice(p, t, num_classes=4) == pytest.approx(2 / 3)  # absent classes do not count
    # without the third pixel everything agrees
    assert metrics.dice(p, np.array([[0, 1, 9, 2]]), ignore_index=9) == 1


def test_dice_accepts_masks_and_probabilities(rng: np.random.Generator) -> None:
    t = random_truth(rng, 2, 13, 11)
    p = noisy(rng, t)
    hard = p > 0.5
    expected = 2 * (hard & t).sum() / (hard.sum() + t.sum())
    stacked = np.stack([1 - p, p], axis=1)
    for prediction in (hard, hard.astype(np.uint8) * 255, p, stacked, p[:, None], torch.from_numpy(p)):
        for truth in (t, t.astype(np.uint8), t.astype(np.uint8) * 255):
            assert metrics.dice(prediction, truth) == pytest.approx(expected, **METRIC)
            assert metrics.iou(prediction, truth) == pytest.approx(expected / (2 - expected), **METRIC)
    assert metrics.dice(np.zeros((4, 4), int), np.zeros((4, 4), int)) == 1
    # {0, 2} is class 2, not a mask of class 1
    assert metrics.dice(np.array([[0, 1]]), np.array([[0, 2]])) == 0


def test_seg_by_hand() -> None:
    truth = np.zeros((2, 6, 10), dtype=np.int32)
    truth[0, 0:2, 0:5] = 1  # 10 pixels
    truth[0, 4:6, 0:4] = 2  # 8 pixels
    truth[1, 0:2, 0:2] = 1  # another object: labels count per slice
    predicted = np.zeros_like(truth)
    predicted[0, 0:3, 0:3] = 5  # 6 of object 1 and 3 outside: IoU 6 / (10 + 9 - 6)
    predicted[0, 4:6, 0:2] = 6  # 4 of 8 is not more than half
    predicted[1, 0:2, 0:2] = 5
    assert metrics.seg_per_object(predicted, truth) == pytest.approx([6 / 13, 0, 1])
    assert metrics.seg(predicted, truth) == pytest.approx((6 / 13 + 1) / 3)
    assert metrics.seg(truth, truth) == 1
    assert metrics.seg(np.zeros_like(truth), truth) == 0


def test_seg_equals_plain_loops(rng: np.random.Generator) -> None:
    truth = np.repeat(np.repeat(rng.integers(0, 5, (2, 5, 6)), 3, 1), 3, 2)
    predicted = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 7, truth.shape)) * 1000
    expected = []
    for p, t in zip(predicted, truth, strict=True):
        for i in np.unique(t[t > 0]):
            value = 0.0
            for j in np.unique(p[p > 0]):
                both = ((t == i) & (p == j)).sum()
                if 2 * both > (t == i).sum():
                    value = both / ((t == i) | (p == j)).sum()
            expected.append(value)
    assert metrics.seg_per_object(predicted, truth) == pytest.approx(expected)


# --- best threshold --------------------------------------------------------------------------------------------------


def test_best_threshold_finds_the_best_of_every_metric(rng: np.random.Generator) -> None:
    t = random_truth(rng, 2, 21, 19)
    p = noisy(rng, t)
    levels = np.arange(1, 20) / 20
    masks = [p > np.float32(level) for level in levels]
    curves: dict[str, list[float]] = {
        "f1": [metrics.dice(m, t) for m in masks],
        "dice": [metrics.dice(m, t) for m in masks],
        "iou": [metrics.iou(m, t) for m in masks],
        "accuracy": [float((m == t).mean()) for m in masks],
        "rand": [1 - metrics.rand_error(m, t) for m in masks],
    }
    for metric, curve in curves.items():
        best = metrics.best_threshold(p, t, metric=metric, thresholds=levels)
        assert best.curve[1] == pytest.approx(curve, **METRIC)
        assert best.score == pytest.approx(max(curve), **METRIC)
        assert curve[int(np.argmin(abs(levels - best.threshold)))] == pytest.approx(max(curve), **METRIC)
        assert float(best) == best.threshold


# --- input -----------------------------------------------------------------------------------------------------------

PROBABILITY_METRICS: list[Callable[..., Any]] = [
    metrics.pixel_error,
    metrics.rand_error,
    metrics.v_rand,
    metrics.v_info,
    metrics.warping_error,
    metrics.dice,
    metrics.iou,
    metrics.best_threshold,
    metrics.squared_difference,
]
IDS = [f.__name__ for f in PROBABILITY_METRICS]


@pytest.mark.parametrize("metric", PROBABILITY_METRICS, ids=IDS)
def test_tensors_views_and_single_slices_score_the_same(metric: Callable[..., Any], rng: np.random.Generator) -> None:
    t = random_truth(rng, 2, 15, 14)
    p = (np.round(noisy(rng, t) * 16) / 16).astype(np.float32)  # exact in half precision too
    expected = float(metric(p, t.astype(np.int64)))
    assert float(metric(torch.from_numpy(p), torch.from_numpy(t))) == expected
    assert float(metric(torch.from_numpy(p).bfloat16().requires_grad_(), torch.from_numpy(t).int())) == expected
    assert float(metric(p.astype(np.float16), t.astype(np.uint8) * 255)) == expected
    wide = np.full((2, 30, 29), np.nan, np.float32)
    wide[:, ::2, 1::2] = p
    assert float(metric(wide[:, ::2, 1::2], np.asfortranarray(t))) == expected
    assert float(metric(p[0], t[0])) == float(metric(p[:1], t[:1]))
    assert np.isfinite(float(metric(p, np.zeros_like(t))))  # no foreground at all


@pytest.mark.parametrize("metric", PROBABILITY_METRICS, ids=IDS)
def test_bad_input_is_one_clear_error(metric: Callable[..., Any]) -> None:
    p, t = np.full((2, 4, 5), 0.5, np.float32), np.ones((2, 4, 5), np.int32)
    with pytest.raises(InputError, match=r"prediction has shape \(2, 4, 5\) but truth has \(1, 4, 5\)"):
        metric(p, t[:1])
    with pytest.raises(InputError, match=r"truth has shape \(5,\), expected \(H, W\), \(N, H, W\) or \(N, 1, H, W\)"):
        metric(p, t[0, 0])
    with pytest.raises(InputError, match=r"prediction is empty, shape \(0, 4, 5\)"):
        metric(p[:0], t[:0])
    with pytest.raises(InputError, match=r"prediction holds NaN \(40 of 40 values\)"):
        metric(p * np.nan, t)
    with pytest.raises(InputError, match=r"prediction runs from 3 to 3, expected probabilities in \[0, 1\]"):
        metric(p + 2.5, t)
    with pytest.raises(InputError, match="truth holds the negative label -1"):
        metric(p, -t)
    with pytest.raises(InputTypeError, match="truth has dtype float32, expected integer labels"):
        metric(p, p)
    with pytest.raises(InputTypeError, match="prediction has dtype <U1, expected a numeric array"):
        metric(np.array([["a"]]), t)


def test_bad_options_are_clear_errors() -> None:
    p, t = np.full((2, 4, 5), 0.5, np.float32), np.ones((2, 4, 5), np.int32)
    with pytest.raises(InputError, match=r"thresholds is \[0.5, 0.1\], expected increasing numbers in \[0, 1\]"):
        metrics.rand_error(p, t, thresholds=[0.5, 0.1])
    with pytest.raises(InputError, match="kind is 'cells', expected one of 'auto', 'mask', 'classes', 'instances'"):
        metrics.rand_error(p, t, kind="cells")
    with pytest.raises(InputError, match="metric is 'auc', expected one of 'f1', 'dice'"):
        metrics.best_threshold(p, t, metric="auc")
    with pytest.raises(InputError, match=r"threshold is 2, expected a number in \[0, 1\]"):
        metrics.warping_error(p, t, threshold=2)
    with pytest.raises(InputError, match=r"truth holds class 7, expected 0..2; raise num_classes"):
        metrics.dice(t, t * 7, num_classes=3)
    with pytest.raises(InputError, match="every pixel of truth is ignore_index 1"):
        metrics.iou(t, t, ignore_index=1)
    with pytest.raises(InputError, match=r"truth holds no object \(all labels are 0\)"):
        metrics.seg(t, t * 0)
    with pytest.raises(InputTypeError, match="prediction has dtype float32, expected integer labels"):
        metrics.seg(p, t)
    with pytest.raises(InputTypeError, match="prediction has dtype uint8, expected floating-point probabilities"):
        metrics.pixel_error(t.astype(np.uint8), t)
