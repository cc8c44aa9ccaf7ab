"""V_Rand, V_Info and the warping error against their formulas, scikit-image and plain sweeps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure
from skimage import metrics as oracle
from skimage.metrics._contingency_table import contingency_table
from skimage.segmentation import watershed

from tests.metric_samples import noisy, random_truth
from tests.places import needs
from tests.tolerances import METRIC
from tests.warping_plain import NEIGHBOURS, simple_table, warp_by_heap, warp_by_sweeps
from unet_fast import metrics
from unet_fast.metrics.warping_error import warp_truth

pytestmark = [pytest.mark.kernels, needs("cpp")]

# --- V_Rand, V_Info --------------------------------------------------------------------------------------------------


def test_v_rand_equals_its_formula_on_the_skimage_table(rng: np.random.Generator) -> None:
    truth, predicted = rng.integers(0, 5, (31, 29)), rng.integers(1, 7, (31, 29))
    table = contingency_table(truth, predicted, ignore_labels=[0]).toarray()
    p = table / table.sum()
    scores = metrics.v_rand_scores(predicted, truth, thin=False, kind="instances")
    both, s, t = (p**2).sum(), (p.sum(0) ** 2).sum(), (p.sum(1) ** 2).sum()
    assert (scores.score, scores.split, scores.merge) == pytest.approx(
        (both / (0.5 * s + 0.5 * t), both / t, both / s), **METRIC
    )
    assert metrics.v_rand(predicted, truth, thin=False, kind="instances") == float(scores)


def test_v_info_equals_skimage_variation_of_information(rng: np.random.Generator) -> None:
    truth = np.repeat(rng.integers(0, 5, (31, 8)), 4, axis=1)
    predicted = np.where(rng.random(truth.shape) < 0.8, truth + 1, rng.integers(1, 7, truth.shape))
    # H(predicted | truth) and H(truth | predicted), in bits
    split_bits, merge_bits = oracle.variation_of_information(truth, predicted, ignore_labels=[0])
    inside = truth > 0

    def entropy(labels: np.ndarray) -> float:
        q = np.bincount(labels) / labels.size
        return float(-(q[q > 0] * np.log2(q[q > 0])).sum())

    h_s, h_t = entropy(predicted[inside]), entropy(truth[inside])
    mutual = h_s - split_bits
    assert mutual == pytest.approx(h_t - merge_bits)
    scores = metrics.v_info_scores(predicted, truth, thin=False, kind="instances")
    assert (scores.score, scores.split, scores.merge) == pytest.approx(
        (mutual / (0.5 * h_s + 0.5 * h_t), mutual / h_s, mutual / h_t), **METRIC
    )


@pytest.mark.parametrize("score", [metrics.v_rand, metrics.v_info])
def test_v_scores_forgive_thick_borders_only_when_thinned(score: Callable[..., float]) -> None:
    truth = np.zeros((1, 33, 33), dtype=np.int32)
    truth[:, :16, :16], truth[:, :16, 17:], truth[:, 17:, :16], truth[:, 17:, 17:] = 1, 2, 3, 4
    thick = truth > 0
    thick[:, 13:20], thick[:, :, 13:20] = False, False
    assert score(truth, truth) == pytest.approx(1)
    assert score(thick.astype(np.float32), truth) == pytest.approx(1)
    assert score(thick.astype(np.float32), truth, thin=False) < 0.95


def test_v_scores_of_one_merged_cell_and_of_no_cell() -> None:
    truth = np.array([[1, 1, 1, 1, 2, 2, 2, 2]])
    one = np.ones(truth.shape, np.float32)
    # of 64 ordered pairs, 32 are together in truth and 64 in the prediction
    rand = metrics.v_rand_scores(one, truth, thresholds=[0.5])
    assert (rand.split, rand.merge, rand.score) == pytest.approx((1, 32 / 64, 32 / 48))
    info = metrics.v_info_scores(one, truth, thresholds=[0.5])
    assert (info.split, info.merge, info.score) == (1, 0, 0)
    # eight cells of one pixel: 8 of 32 pairs are left; I = H(T) = 1 bit, H(S) = 3 bits
    rand = metrics.v_rand_scores(0 * one, truth)
    assert (rand.split, rand.merge, rand.score) == pytest.approx((8 / 32, 1, 8 / 20))
    info = metrics.v_info_scores(0 * one, truth)
    assert (info.split, info.merge, info.score) == pytest.approx((1 / 3, 1, 1 / 2))


def test_thin_borders_leaves_lines_of_one_pixel() -> None:
    cells = np.zeros((9, 12), dtype=np.int32)
    cells[2:7, 1:3], cells[2:7, 9:11] = 1, 2
    thin = metrics.thin_borders(cells)
    assert set(np.unique(thin)) == {0, 1, 2}
    assert ((thin == 0).sum(axis=1) <= 1).all()
    assert (thin[cells > 0] == cells[cells > 0]).all()
    assert not metrics.thin_borders(np.zeros((3, 3), np.int32)).any()


# --- warping error ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [False, True])
def test_a_pixel_flips_exactly_where_its_components_say_that_it_is_simple(centre: bool) -> None:
    for bits, simple in enumerate(simple_table()):
        truth = np.zeros((3, 3), dtype=bool)
        for b, (dy, dx) in enumerate(NEIGHBOURS):
            truth[1 + dy, 1 + dx] = bits >> b & 1
        truth[1, 1] = centre
        wanted = truth.copy()
        wanted[1, 1] = not centre
        expected = wanted if simple else truth
        np.testing.assert_array_equal(warp_truth(wanted.astype(np.float32), truth, 0.5), expected, f"{bits:08b}")


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (3, 24, 31)])
def test_warping_error_equals_warp_by_sweeps(rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    truth = random_truth(rng, *shape)
    p = noisy(rng, truth, noise=0.6)
    for threshold in (0.3, 0.5):
        warped = [warp_by_sweeps(p[n], truth[n], threshold) for n in range(shape[0])]
        for n in range(shape[0]):
            assert (warp_truth(p[n], truth[n], threshold) == warped[n]).all()
        expected = np.mean([(w != (q > np.float32(threshold))).mean() for w, q in zip(warped, p, strict=True)])
        assert metrics.warping_error(p, truth, threshold=threshold) == pytest.approx(expected)


def blobs(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return ndimage.gaussian_filter(rng.normal(size=size), rng.uniform(0.6, 4)) > 0


MASKS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "random": lambda rng, size: rng.random(size) < rng.random(),
    "blobs": blobs,
    "noisy blobs": lambda rng, size: blobs(rng, size) ^ (rng.random(size) < 0.05),
    "one pixel": lambda rng, size: np.arange(size[0] * size[1]).reshape(size) == rng.integers(size[0] * size[1]),
    "empty": lambda rng, size: np.zeros(size, bool),
    "full": lambda rng, size: np.ones(size, bool),
}


@pytest.mark.parametrize("predicted", MASKS)
@pytest.mark.parametrize("true", MASKS)
def test_warping_equals_the_heap_in_python(rng: np.random.Generator, true: str, predicted: str) -> None:
    for size in ((1, 1), (1, 13), (17, 1), tuple(rng.integers(2, 60, 2))):
        truth, mask = MASKS[true](rng, size), MASKS[predicted](rng, size)
        sure = rng.uniform(0.5, 1, size)
        smooth = np.where(mask, sure, 1 - sure)
        # a mask and a few levels: many pixels of equal distance, whose order then matters
        for p in (mask.astype(np.float32), np.round(smooth * 4) / 4, smooth, smooth.astype(np.float32)):
            for threshold in (0.5, rng.random()):
                np.testing.assert_array_equal(warp_truth(p, truth, threshold), warp_by_heap(p, truth, threshold))


def test_equally_distant_pixels_are_warped_row_by_row() -> None:
    truth = np.array([[1, 0, 0, 1]], bool)
    wanted = np.ones((1, 4), np.float32)  # filling one of the gap's pixels leaves the other, which would merge
    np.testing.assert_array_equal(warp_truth(wanted, truth, 0.5), [[1, 1, 0, 1]])
    wanted[0, 1] = 0.9  # now the right one lies farther off, and so comes first
    np.testing.assert_array_equal(warp_truth(wanted, truth, 0.5), [[1, 0, 1, 1]])


def test_warping_error_of_any_layout(rng: np.random.Generator) -> None:
    truth = random_truth(rng, 2, 23, 31)
    p = noisy(rng, truth, noise=0.6)
    dense = metrics.warping_error_per_slice(p, truth)
    wide = np.repeat(p, 2, axis=2)[:, :, ::2]
    turned = np.ascontiguousarray(truth.astype(">i4").transpose(2, 1, 0)).transpose(2, 1, 0)
    for q, t in ((np.asfortranarray(p), truth), (wide, turned), (p.astype(">f4"), truth.astype(np.uint64))):
        np.testing.assert_array_equal(metrics.warping_error_per_slice(q, t), dense)
    assert dense.any()


def test_warping_keeps_the_topology(rng: np.random.Generator) -> None:
    truth = random_truth(rng, 1, 40, 43)[0]
    warped = warp_truth(noisy(rng, truth[None], 0.7)[0], truth, 0.5)
    for before, after, connectivity in ((truth, warped, 1), (~np.pad(truth, 1), ~np.pad(warped, 1), 2)):
        assert (
            measure.label(before, connectivity=connectivity).max()
            == measure.label(after, connectivity=connectivity).max()
        )
    assert (warped != truth).any()


def test_warping_error_by_hand() -> None:
    truth = np.zeros((2, 12, 12), dtype=np.uint8)
    truth[:, 2:10, 2:5] = truth[:, 2:10, 7:10] = 255
    p = np.zeros(truth.shape, dtype=np.float32)
    p[:, 1:10, 2:4] = p[:, 2:11, 6:10] = 1  # borders moved: free
    assert metrics.warping_error(p, truth) == 0
    p[1, 0, 11] = 1  # a new speck of one pixel costs one pixel of 144, in one slice of two
    assert metrics.warping_error_per_slice(p, truth) == pytest.approx([0, 1 / 144])
    assert metrics.warping_error(p, truth) == pytest.approx(0.5 / 144)


def test_thin_borders_keep_the_cells_and_part_them_by_one_pixel(rng: np.random.Generator) -> None:
    for _ in range(10):
        size = tuple(rng.integers(1, 70, 2))
        cells = ndimage.label(ndimage.gaussian_filter(rng.random(size), rng.uniform(0.5, 3)) > 0.51)[0]
        thin = metrics.thin_borders(cells)
        kept = cells > 0
        np.testing.assert_array_equal(thin[kept], cells[kept])
        if not kept.any():
            continue
        # seeds of different heights: the order of equally high ones is that of scikit-image's heap
        distance = ndimage.distance_transform_edt(~kept).astype(np.float32)
        distance[kept] = np.arange(-np.count_nonzero(kept), 0)
        np.testing.assert_array_equal(thin, watershed(distance, markers=cells, watershed_line=True))
        right, below = (thin[:, 1:], thin[:, :-1]), (thin[1:], thin[:-1])
        for a, b in (right, below):
            touching = (a != b) & (a > 0) & (b > 0)
            assert not touching.any(), "no two cells touch"


def test_thin_borders_of_any_layout_and_of_touching_cells(rng: np.random.Generator) -> None:
    cells = ndimage.label(ndimage.gaussian_filter(rng.random((41, 37)), 1.5) > 0.52)[0]
    dense = metrics.thin_borders(cells)
    np.testing.assert_array_equal(metrics.thin_borders(np.asfortranarray(cells)), dense)
    wide = np.repeat(cells.astype(np.uint16), 2, axis=1)
    np.testing.assert_array_equal(metrics.thin_borders(wide[:, ::2]), dense)
    np.testing.assert_array_equal(metrics.thin_borders(cells[:1, :1] * 0 + 7), [[7]])
    touching = np.zeros((5, 9), np.int32)
    touching[2, 2:4], touching[2, 4:6] = 3, 9
    thin = metrics.thin_borders(touching)
    np.testing.assert_array_equal(thin[2], [3, 3, 3, 3, 9, 9, 9, 9, 9])
    assert set(np.unique(thin)) == {0, 3, 9}
