"""The evaluation report: every kind of prediction, the table, the JSON, the picture and the errors."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console
from scipy import ndimage
from skimage import measure

from tests.tolerances import METRIC
from unet_fast import metrics
from unet_fast.data import write_stack
from unet_fast.errors import InputError
from unet_fast.evaluate import Report, evaluate, evaluate_files

MAIN_SCORES = ("pixel_error", "rand_error", "dice", "iou", "best_threshold")


@pytest.fixture
def truth(rng: np.random.Generator) -> np.ndarray:
    return np.stack([ndimage.gaussian_filter(rng.normal(size=(48, 40)), 3) > -0.02 for _ in range(3)])


@pytest.fixture
def probabilities(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """On a grid of 255ths, so that float and uint8 hold the same."""
    noisy = ndimage.gaussian_filter(truth.astype(np.float32), (0, 1, 1)) + rng.normal(0, 0.25, truth.shape)
    return (np.rint(np.clip(noisy, 0, 1) * 255) / 255).astype(np.float32)


def main_scores(report: Report) -> dict[str, Any]:
    return {key: getattr(report, key) for key in MAIN_SCORES}


def test_report_holds_the_metrics(truth: np.ndarray, probabilities: np.ndarray) -> None:
    report = evaluate(probabilities, truth, names=["a", "b", "c"])
    assert report.pixel_error == metrics.pixel_error(probabilities, truth)
    assert report.rand_error == metrics.rand_error(probabilities, truth)
    assert report.dice == metrics.dice(probabilities, truth)
    assert report.iou == metrics.iou(probabilities, truth)
    assert report.best_threshold == metrics.best_threshold(probabilities, truth).threshold
    assert report.best_dice == pytest.approx(metrics.dice(probabilities, truth, threshold=report.best_threshold))
    assert report.warping_error == metrics.warping_error(probabilities, truth)
    assert report.v_rand == pytest.approx(
        metrics.v_rand(probabilities, truth, thresholds=[report.rand_threshold]), **METRIC
    )
    assert report.seg is None and report.num_classes == 2 and report.num_slices == 3
    assert [row.name for row in report.per_slice] == ["a", "b", "c"]
    for n, row in enumerate(report.per_slice):
        assert row.dice == metrics.dice(probabilities[n], truth[n])
        rand = metrics.rand_error(probabilities[n], truth[n], thresholds=[report.rand_threshold])
        assert row.rand_error == pytest.approx(rand, **METRIC)
        pixel = metrics.pixel_error(probabilities[n], truth[n], thresholds=[report.pixel_threshold])
        assert row.pixel_error == pytest.approx(pixel, **METRIC)


def test_every_form_of_the_same_probabilities_scores_the_same(truth: np.ndarray, probabilities: np.ndarray) -> None:
    expected = main_scores(evaluate(probabilities, truth))
    bytes_ = np.rint(probabilities * 255).astype(np.uint8)
    forms = {
        "uint8": bytes_,
        "whole floats": bytes_.astype(np.float32),
        "float64": probabilities.astype(np.float64),
        "one channel": probabilities[:, None],
        "two channels": np.stack([1 - probabilities, probabilities], axis=1),
        "two uint8 channels": np.stack([255 - bytes_, bytes_], axis=1),
        "whole floats in one channel": bytes_[:, None].astype(np.float32),
    }
    for name, form in forms.items():
        for labels in (truth, truth.astype(np.uint8) * 255):
            assert main_scores(evaluate(form, labels)) == pytest.approx(expected, abs=1e-3), name


def test_masks_and_perfect_predictions(truth: np.ndarray) -> None:
    for mask in (truth, truth.astype(np.uint8), truth.astype(np.uint8) * 255, truth.astype(np.float32)):
        report = evaluate(mask, truth.astype(np.int32))
        assert main_scores(report) == {
            "pixel_error": 0,
            "rand_error": 0,
            "dice": 1,
            "iou": 1,
            "best_threshold": 0.5,
        }
        assert report.warping_error == 0


def test_instances(truth: np.ndarray, rng: np.random.Generator) -> None:
    instances = np.stack([measure.label(mask, connectivity=1) for mask in truth]).astype(np.int32)
    assert instances.max() > 1
    perfect = evaluate(instances, instances, kind="instances")
    assert perfect.rand_error == 0 and perfect.seg == 1 and perfect.rand_threshold is None
    eroded = np.where(ndimage.minimum_filter(instances, (1, 3, 3)) == instances, instances, 0)
    report = evaluate(eroded.astype(np.uint16) * 3, instances, kind="instances")
    assert report.seg == pytest.approx(metrics.seg(eroded, instances))
    assert report.rand_error == pytest.approx(metrics.rand_error(eroded, instances, kind="instances"))
    assert report.dice == pytest.approx(metrics.dice(eroded > 0, instances > 0))
    # probabilities against true instances: components, and SEG of them
    from_mask = evaluate((eroded > 0).astype(np.float32), instances)
    parts = np.stack([measure.label(mask, connectivity=1) for mask in eroded > 0])
    assert from_mask.seg == pytest.approx(metrics.seg(parts, instances))
    found = metrics.detections(parts, instances)
    assert from_mask.average_precision == pytest.approx(found.average_precision.tolist())
    assert from_mask.ious == found.ious.tolist() and from_mask.merges == found.merges.sum()
    assert perfect.average_precision == [1.0] * 5 and perfect.splits == perfect.merges == 0


def test_what_cremi_scores_is_scored_slice_by_slice(truth: np.ndarray, probabilities: np.ndarray) -> None:
    cells = np.stack([measure.label(mask, connectivity=1) for mask in truth])
    for tolerance in (None, 1.0):
        report = evaluate(probabilities, truth, tolerance=tolerance)
        assert report.average_precision is None and report.splits is None
        parts = np.stack(
            [measure.label(p > p.dtype.type(report.rand_threshold), connectivity=1) for p in probabilities]
        )
        both = {"tolerance": tolerance, "volume": False}
        scores = metrics.variation_of_information_scores(parts, cells, **both)
        assert (report.vi_split, report.vi_merge) == pytest.approx((scores.split, scores.merge))
        assert report.adapted_rand_error == pytest.approx(metrics.adapted_rand_error(parts, cells, **both))


def test_classes(rng: np.random.Generator) -> None:
    labels = np.repeat(np.repeat(rng.integers(0, 4, (2, 8, 8)), 4, 1), 4, 2)
    predicted = np.where(rng.random(labels.shape) < 0.8, labels, rng.integers(0, 4, labels.shape))
    probabilities = np.full((2, 4, 32, 32), 0.1, np.float32)
    np.put_along_axis(probabilities, predicted[:, None], 0.7, axis=1)
    from_probabilities = evaluate(probabilities, labels)  # four channels say that the labels are classes
    from_numbers = evaluate(predicted.astype(np.uint8), labels, num_classes=4)
    for report in (from_probabilities, from_numbers):
        assert report.num_classes == 4
        assert report.dice == pytest.approx(metrics.dice(predicted, labels, num_classes=4))
        assert report.iou_per_class == pytest.approx(metrics.iou_per_class(predicted, labels, num_classes=4))
        assert report.per_slice[1].iou == pytest.approx(metrics.iou(predicted[1], labels[1], num_classes=4))
        assert report.rand_error == pytest.approx(metrics.rand_error(predicted != 0, labels, kind="classes"))
        assert report.pixel_error == pytest.approx(1 - metrics.dice(predicted != 0, labels != 0))


def test_json_is_strict_and_starts_with_the_main_scores(tmp_path: Path, truth: np.ndarray) -> None:
    truth = truth.copy()
    truth[1] = False  # its Rand error is undefined
    report = evaluate(truth.astype(np.float32), truth)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    read = json.loads(report.save(tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert tuple(read)[:5] == MAIN_SCORES
    assert all(isinstance(read[key], float) for key in MAIN_SCORES)
    assert {key: read[key] for key in MAIN_SCORES} == main_scores(report)
    assert [row["rand_error"] for row in read["per_slice"]] == [0, None, 0]
    assert read["thresholds"] == [k / 10 for k in range(11)]
    assert len(read["rand_scores"]) == len(read["pixel_scores"]) == 11
    assert len(read["dice_scores"]) == len(read["dice_thresholds"]) == 51


def test_printed_report(truth: np.ndarray, probabilities: np.ndarray) -> None:
    def printed(report: Report, **options: Any) -> str:
        console = Console(file=io.StringIO(), width=100)
        report.print(console, **options)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    report = evaluate(probabilities, truth, names=["first[b]", "second[b]", "third[b]"])
    text = printed(report)
    for value in (report.pixel_error, report.rand_error, report.dice, report.per_slice[2].rand_error):
        assert f"{value:.4f}" in text
    assert "third[b]" in text and "SEG" not in text
    worst = max(report.per_slice, key=lambda row: row.rand_error)
    short = printed(report, max_slices=1)
    assert [row.name in short for row in report.per_slice] == [row is worst for row in report.per_slice]
    classes = evaluate(truth.astype(np.int64) * 2, truth.astype(np.int64) * 2, num_classes=3)
    assert "by class" in printed(classes) and "most probable class" in printed(classes)


@pytest.mark.usefixtures("real_pictures")
def test_picture_of_worst_and_best(tmp_path: Path, truth: np.ndarray, probabilities: np.ndarray) -> None:
    images = np.random.default_rng(0).normal(size=(3, 1, 48, 40))
    evaluate(probabilities, truth, images=images, picture=tmp_path / "a.png")
    evaluate(probabilities, truth, picture=tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert a.height == b.height and a.width > b.width  # one column more


def test_files(tmp_path: Path, truth: np.ndarray, probabilities: np.ndarray) -> None:
    expected = main_scores(evaluate(probabilities, truth))
    tifffile.imwrite(tmp_path / "labels.tif", truth.astype(np.uint8) * 255, photometric="minisblack")
    write_stack(tmp_path / "float.tif", probabilities)
    write_stack(tmp_path / "uint8.tif", np.rint(probabilities * 255).astype(np.uint8))
    write_stack(tmp_path / "images.tif", (probabilities * 1000).astype(np.uint16))
    for name in ("float.tif", "uint8.tif"):
        report = evaluate_files(tmp_path / name, tmp_path / "labels.tif")
        assert main_scores(report) == pytest.approx(expected, abs=1e-3)
    out = tmp_path / "scores" / "metrics.json"
    report = evaluate_files(tmp_path / "float.tif", tmp_path / "labels.tif", images=tmp_path / "images.tif", out=out)
    assert json.loads(out.read_text()) == report.to_dict()
    assert Image.open(out.with_suffix(".png")).format == "PNG"
    # a prediction of two slices only
    write_stack(tmp_path / "part.tif", probabilities[1:])
    part = evaluate_files(tmp_path / "part.tif", tmp_path / "labels.tif", slices="1:3", images=tmp_path / "images.tif")
    assert main_scores(part) == pytest.approx(main_scores(evaluate(probabilities[1:], truth[1:])), abs=1e-6)
    assert [row.name for row in part.per_slice] == [row.name for row in report.per_slice[1:]]
    with pytest.raises(InputError, match="part.tif holds 2 images, but .*labels.tif holds 3"):
        evaluate_files(tmp_path / "float.tif", tmp_path / "labels.tif", images=tmp_path / "part.tif")
    with pytest.raises(InputError, match="a.png, where the picture goes; give a path such as a.json"):
        evaluate_files(tmp_path / "float.tif", tmp_path / "labels.tif", out=tmp_path / "a.png")
    write_stack(tmp_path / "three.tif", np.stack([1 - probabilities, probabilities / 2, probabilities / 2], axis=1))
    tifffile.imwrite(tmp_path / "classes.tif", truth.astype(np.uint8) * 2, photometric="minisblack")
    assert evaluate_files(tmp_path / "three.tif", tmp_path / "classes.tif").num_classes == 3
    with pytest.raises(FileNotFoundError, match=r"none.tif does not exist"):
        evaluate_files(tmp_path / "none.tif", tmp_path / "labels.tif")


def test_errors(truth: np.ndarray, probabilities: np.ndarray, rng: np.random.Generator) -> None:
    labels = truth.astype(np.int32)
    with pytest.raises(InputError, match=r"prediction has shape \(2, 48, 40\) but labels has \(3, 48, 40\)"):
        evaluate(probabilities[:2], labels)
    with pytest.raises(InputError, match=r"prediction has shape \(3,\), expected a non-empty"):
        evaluate(probabilities[:, 0, 0], labels)
    with pytest.raises(InputError, match=r"labels hold no foreground \(all are 0\)"):
        evaluate(probabilities, labels * 0)
    with pytest.raises(InputError, match="prediction holds NaN"):
        evaluate(probabilities * np.nan, labels)
    with pytest.raises(InputError, match=r"prediction runs from .* expected probabilities in \[0, 1\]; apply softmax"):
        evaluate(probabilities * 12.3 - 6, labels)
    with pytest.raises(InputError, match="prediction holds the negative label -1"):
        evaluate(-labels, labels)
    with pytest.raises(InputError, match="prediction has 3 channels, but the labels have 4 classes"):
        evaluate(np.full((3, 3, 48, 40), 1 / 3), labels, num_classes=4)
    with pytest.raises(InputError, match="one channel of probabilities, but the labels have 3 classes"):
        evaluate(probabilities, labels, num_classes=3)
    with pytest.raises(InputError, match="prediction holds class 9, but the labels have 3 classes, 0..2"):
        evaluate(labels * 9, labels, num_classes=3)
    noise = rng.integers(0, 9, truth.shape)
    with pytest.raises(InputError, match="holds integers up to 8 of dtype int64, which are neither probabilities"):
        evaluate(noise, labels)
    with pytest.raises(InputError, match="names has 1 entries, expected one for each of the 3 slices"):
        evaluate(probabilities, labels, names=["a"])
    with pytest.raises(InputError, match="kind is 'cells', expected one of"):
        evaluate(probabilities, labels, kind="cells")
