"""Scores of instances against counts made by hand, plain loops, an assignment solver and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage import metrics as oracle

from tests.tolerances import METRIC
from unet_fast import metrics
from unet_fast.errors import InputError, InputTypeError

pytestmark = pytest.mark.core

LABELS = arrays.arrays(np.int32, (2, 5, 6), elements=st.integers(0, 4))


def strip(*runs: tuple[int, int]) -> np.ndarray:
    """One row of pixels, (label, length) after (label, length)."""
    return np.concatenate([np.full(length, label) for label, length in runs])[None]


# --- average precision -----------------------------------------------------------------------------------------------


def test_average_precision_by_hand() -> None:
    truth = strip((1, 10), (0, 5), (2, 10), (0, 5), (3, 4))
    #        8 of 10: IoU 0.8; 6 of 10 and 2 outside: 6 / 12; nothing; an object in the background
    found = strip((7, 8), (0, 7), (9, 6), (0, 4), (0, 5), (0, 2), (4, 2))
    found[0, 25:28] = 9 * np.array([1, 1, 0])
    pair = metrics.detections(found, truth, ious=(0.3, 0.5, 0.7, 0.8, 0.81))
    assert pair.true_positives[:, 0].tolist() == [3, 3, 1, 1, 0]  # 4 has 2 of the 4 pixels of 3
    assert pair.false_positives[:, 0].tolist() == [0, 0, 2, 2, 3]
    assert pair.false_negatives[:, 0].tolist() == [0, 0, 2, 2, 3]
    assert pair.average_precision == pytest.approx([1, 1, 1 / 5, 1 / 5, 0])
    assert metrics.average_precision(found, truth, iou=0.7) == pytest.approx(1 / 5)


def test_an_object_has_one_partner_of_those_that_compete() -> None:
    # 3 of 9 each: all three pairs reach an IoU of 1/3, one counts
    thirds = metrics.detections(strip((1, 3), (2, 3), (3, 3)), strip((1, 9)), ious=0.3)
    assert (thirds.true_positives.item(), thirds.false_positives.item(), thirds.false_negatives.item()) == (1, 2, 0)
    # a true object that fits two predicted ones, of which one fits another true one too: greed by IoU would take the pair
    # with 4 / 6 first and leave both others alone
    truth, found = strip((1, 4), (2, 3)), strip((6, 2), (5, 5))
    greedy = metrics.detections(found, truth, ious=(0.25, 0.5))
    assert greedy.true_positives[:, 0].tolist() == [2, 2]  # 1 with 6: 2 / 4, 2 with 5: 3 / 5


def test_average_precision_sums_objects_over_slices_and_says_which() -> None:
    truth, found = np.zeros((2, 3, 2, 4), int)[:, :, :, :]
    truth[0, :, :2], found[0, :, :2] = 3, 1
    truth[1, 0, 0], truth[1, 1, 0] = 3, 1  # two objects, one found; the label 3 of slice 0 is another
    found[1, 0, 0] = 3
    pair = metrics.detections(found, truth, ious=0.5)
    assert pair.per_slice[0].tolist() == [1, 0.5, 1]  # of the last slice nothing is to be found
    assert pair.average_precision.tolist() == [2 / 3]


def test_splits_and_merges_by_hand() -> None:
    truth = strip((1, 10), (0, 2), (2, 5), (3, 5), (0, 2), (4, 8))
    found = strip((1, 5), (2, 5), (0, 2), (3, 10), (0, 2), (4, 7), (5, 1))
    pair = metrics.detections(found, truth)
    assert (pair.splits.item(), pair.merges.item()) == (2, 1)  # 1 and 4; 3
    swapped = metrics.detections(truth, found)
    assert (swapped.splits.item(), swapped.merges.item()) == (1, 2)
    # half of an object is not more than half: none of these belongs to another
    halves = metrics.detections(strip((1, 4), (2, 4)), strip((1, 2), (2, 4), (3, 2)))
    assert (halves.splits.item(), halves.merges.item()) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(found=LABELS, truth=LABELS, iou=st.sampled_from([0.1, 1 / 3, 0.5, 0.51, 0.75, 1.0]))
def test_average_precision_equals_the_assignment_of_stardist(found: np.ndarray, truth: np.ndarray, iou: float) -> None:
    tp = predicted = true = 0
    for p, t in zip(found * 1000, truth, strict=True):
        table = np.array(
            [
                [
                    np.count_nonzero((t == i) & (p == j)) / np.count_nonzero((t == i) | (p == j))
                    for j in np.unique(p[p > 0])
                ]
                for i in np.unique(t[t > 0])
            ]
        ).reshape(len(np.unique(t[t > 0])), len(np.unique(p[p > 0])))
        true, predicted = true + table.shape[0], predicted + table.shape[1]
        if table.size:
            cost = -(table >= iou).astype(float) - table / (2 * min(table.shape))
            tp += int((table[linear_sum_assignment(cost)] >= iou).sum())
    expected = tp / (true + predicted - tp) if true + predicted else 1.0
    assert metrics.average_precision(found * 1000, truth, iou=iou) == pytest.approx(expected)


# --- variation of information and adapted Rand error -----------------------------------------------------------------


def test_variation_by_hand() -> None:
    # 4 pixels in two true segments, one predicted: 1 bit is lost by the merge; the other way round by the split
    halves, whole = strip((1, 2), (2, 2)), strip((1, 4))
    assert metrics.variation_of_information_scores(whole, halves) == metrics.Variation(split=0, merge=1)
    assert metrics.variation_of_information_scores(halves, whole) == metrics.Variation(split=1, merge=0)
    assert metrics.variation_of_information(whole, np.zeros_like(whole)) == 0
    # as one volume the second slice's segment is that of the first
    stack, merged = np.stack([halves, halves[:, ::-1]]), np.stack([whole, whole])
    assert metrics.variation_of_information(stack, merged, volume=False) == pytest.approx(1)
    assert metrics.variation_of_information(stack, np.stack([whole, whole + 1]), volume=False) == pytest.approx(1)
    assert metrics.variation_of_information(merged, np.stack([whole, whole + 1])) == pytest.approx(1)
    assert metrics.variation_of_information(merged, np.stack([whole, whole + 1]), volume=False) == 0


def test_adapted_rand_by_hand() -> None:
    truth, found = strip((0, 2), (1, 4), (2, 2)), strip((5, 2), (5, 2), (0, 1), (6, 3))
    # c: (1, 5) 2, (1, 0) 1, (1, 6) 1, (2, 6) 2; 8 pixels
    both, predicted, true = 4 + 1 + 4 + 1 / 8, 4 + 9 + 1 / 8, 16 + 4
    scores = metrics.adapted_rand_scores(found, truth)
    assert (scores.precision, scores.recall) == pytest.approx((both / predicted, both / true))
    assert float(scores) == metrics.adapted_rand_error(found, truth) == pytest.approx(1 - 2 * both / (predicted + true))
    assert metrics.adapted_rand_error(found, truth * 0) == 0
    assert metrics.adapted_rand_error(found * 0, truth) > 0.9


@settings(max_examples=30, deadline=None)
@given(found=LABELS, truth=LABELS)
def test_both_equal_scikit_image(found: np.ndarray, truth: np.ndarray) -> None:
    if not truth.any():
        return
    counted = truth > 0
    split, merge = oracle.variation_of_information(truth[counted], found[counted])
    scores = metrics.variation_of_information_scores(found, truth)
    assert (scores.split, scores.merge) == pytest.approx((split, merge), abs=1e-9)
    # scikit-image leaves out the pairs of a pixel with itself, CREMI counts them
    table = np.zeros((5, 6))
    np.add.at(table, (truth[counted], found[counted] + 1), 1)
    both, predicted, true = (table**2).sum(), (table.sum(0) ** 2).sum(), (table.sum(1) ** 2).sum()
    rand = metrics.adapted_rand_scores(found + 1, truth)
    assert (rand.precision, rand.recall) == pytest.approx((both / predicted, both / true), **METRIC)
    alone = counted.sum()
    if predicted > alone and true > alone:
        # its precision is the recall here: it takes the first argument for the prediction
        _, recall, precision = oracle.adapted_rand_error(truth, found + 1, ignore_labels=(0,))
        assert precision == pytest.approx((both - alone) / (predicted - alone), **METRIC)
        assert recall == pytest.approx((both - alone) / (true - alone), **METRIC)


def test_tolerance_leaves_borders_out(rng: np.random.Generator) -> None:
    truth = np.kron(rng.integers(0, 3, (2, 3, 4)), np.ones((9, 9), int))
    found = np.where(rng.random(truth.shape) < 0.3, 7, truth + 1)
    for tolerance in (0, 1, 1.5, 3):
        left = truth.copy()
        for image, out in zip(truth, left, strict=True):
            border = np.zeros(image.shape, bool)
            for axis in (0, 1):
                change = np.diff(image, axis=axis) != 0
                border |= np.pad(change, [(0, int(axis == a)) for a in (0, 1)])
                border |= np.pad(change, [(int(axis == a), 0) for a in (0, 1)])
            near = np.zeros(image.shape, bool)
            for y, x in np.argwhere(border):
                ys, xs = np.ogrid[: image.shape[0], : image.shape[1]]
                near |= (ys - y) ** 2 + (xs - x) ** 2 <= tolerance**2
            out[near] = 0
        for score in (metrics.variation_of_information, metrics.adapted_rand_error):
            assert score(found, truth, tolerance=tolerance) == pytest.approx(score(found, left))
    # a shift of the border by one pixel costs nothing within the tolerance
    moved = ndimage.grey_dilation(truth, (1, 1, 2))
    assert metrics.variation_of_information(moved, truth) > 0
    assert metrics.variation_of_information(moved, truth, tolerance=1) == 0
    one = np.ones((1, 4, 4), int)
    assert metrics.variation_of_information(one, one, tolerance=2) == 0  # no border at all


# --- input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric", [metrics.average_precision, metrics.variation_of_information, metrics.adapted_rand_error]
)
def test_bad_input_is_one_clear_error(metric: object) -> None:
    assert callable(metric)
    labels = np.ones((2, 4, 5), np.int32)
    with pytest.raises(InputError, match=r"prediction has shape \(2, 4, 5\) but truth has \(1, 4, 5\)"):
        metric(labels, labels[:1])
    with pytest.raises(InputTypeError, match="prediction has dtype float64, expected integer labels"):
        metric(labels / 1.0, labels)
    with pytest.raises(InputError, match="truth holds the negative label -1"):
        metric(labels, -labels)


def test_bad_options_are_one_clear_error() -> None:
    labels = np.ones((4, 5), np.int32)
    for bad in (0, 1.1, float("nan"), -1):
        with pytest.raises(InputError, match="expected a number above 0 and at most 1"):
            metrics.average_precision(labels, labels, iou=bad)
        with pytest.raises(InputError, match="expected a number of pixels of at least 0"):
            metrics.adapted_rand_error(labels, labels, tolerance=-1)
    with pytest.raises(InputError, match="or several that increase"):
        metrics.detections(labels, labels, ious=(0.7, 0.5))
