"""The scores of a prediction that is in memory; :mod:`unet_fast.evaluate` reads files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast import metrics
from unet_fast._objects import object_scores
from unet_fast._predicted import Prediction, interpret
from unet_fast.errors import InputError
from unet_fast.labels import IGNORED, check_kind, components
from unet_fast.metrics._inputs import as_array, check_same_shape, is_mask, label_stack
from unet_fast.metrics._instances import KINDS
from unet_fast.report import Report, SliceScores


def evaluate(
    prediction: ArrayLike,
    labels: ArrayLike,
    *,
    kind: str = "auto",
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    images: ArrayLike | None = None,
    ignored: ArrayLike | None = None,
    tolerance: float | None = None,
    picture: str | os.PathLike[str] | None = None,
) -> Report:
    """Score a stack; optionally draw its worst and best slices: by Rand error, of instances by average precision.

    Args:
        prediction: any of

            * probabilities of the foreground, ``(N, H, W)``, ``(N, 1, H, W)`` or one slice ``(H, W)``; of K classes,
              ``(N, K, H, W)``; floating point in [0, 1], or whole numbers 0..255, which are divided by 255;
            * a mask 0/1 or 0/255; class numbers, where ``labels`` are classes; instance numbers.
        labels: ``(N, H, W)`` or ``(H, W)`` integer: mask, classes or instances, 0 = background.
        kind: ``"mask"``, ``"classes"``, ``"instances"``, or ``"auto"``: classes where ``num_classes`` is above 2 (or
            the prediction has more than 2 channels), a mask where the labels hold one non-zero value, else instances.
        num_classes: K of class labels; default: the channels of the prediction, or as many as occur.
        names: one per slice, for the table; default 0, 1, ...
        images: ``(N, C, H, W)`` or ``(N, H, W)``, only for the picture.
        ignored: boolean, the shape of ``labels``: pixels that no score counts, such as those outside a field of view.
        tolerance: for variation of information and adapted Rand error, leave out what lies within this many pixels of a
            true border; None: nothing.
        picture: path of a PNG with the worst and best slices.

    Pixel and Rand errors of K > 2 classes are those of the foreground, which is everything but class 0.

    Raises:
        InputError: shapes that differ, values that are neither probabilities nor labels, labels without foreground.
        OSError: ``picture`` cannot be written.
    """
    array = as_array("prediction", prediction)
    truth = label_stack("labels", labels)
    if array.ndim == 4 and array.shape[1] > 2 and kind == "auto" and num_classes is None:
        kind, num_classes = "classes", array.shape[1]
    kind, num_classes = _kind_of(truth, kind, num_classes)
    truth = truth != 0 if kind == "mask" else truth
    outside = _check_ignored(ignored, truth)
    if outside is not None:
        truth = np.where(outside, np.zeros_like(truth), truth)
    if not truth.any():
        raise InputError("labels hold no foreground (all are 0), so there is nothing to score; check the label file")
    predicted = interpret(array, truth, kind, num_classes)
    if outside is not None:
        predicted = predicted.without(outside)
    if names is not None and len(names) != len(truth):
        raise InputError(f"names has {len(names)} entries, expected one for each of the {len(truth)} slices")

    foreground = predicted.foreground
    # pixels that do not count are background in both; only the scores that count background need to know which they are
    marked = truth if outside is None else np.where(outside, IGNORED, truth.astype(np.int64))
    pixel = metrics.pixel_scan(foreground, marked, ignore_index=IGNORED)
    rand = metrics.rand_scan(predicted.instances if predicted.instances is not None else foreground, truth, kind=kind)
    best = metrics.best_threshold(foreground, truth, metric="dice")
    if predicted.instances is not None:
        cells = predicted.instances
    else:
        cells = np.stack([components(p > p.dtype.type(rand.threshold)) for p in foreground])
    thinned = np.stack([metrics.thin_borders(cells_of_slice) for cells_of_slice in cells])
    if predicted.classes is not None:
        compared, true_classes = predicted.classes, marked
    else:
        compared, true_classes = foreground, np.where(marked == IGNORED, IGNORED, marked != 0)
    if predicted.classes is None:
        num_classes = 2
    options: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORED}
    counted = 1.0 if outside is None else 1 - outside.mean(axis=(1, 2))
    dice, iou = (f(compared, true_classes, **options) for f in (metrics.dice_per_class, metrics.iou_per_class))
    per_slice = [
        SliceScores(
            name=names[n] if names is not None else str(n),
            pixel_error=float(pixel.per_slice[n]),
            rand_error=float(rand.per_slice[n]),
            dice=metrics.dice(compared[n], true_classes[n], **options),
            iou=metrics.iou(compared[n], true_classes[n], **options),
        )
        for n in range(len(truth))
    ]
    report = Report(
        pixel_error=pixel.error,
        rand_error=rand.error,
        dice=metrics.dice(compared, true_classes, **options),
        iou=metrics.iou(compared, true_classes, **options),
        best_threshold=best.threshold,
        best_dice=best.score,
        num_slices=len(truth),
        num_classes=num_classes,
        squared_difference=pixel.squared_difference,
        pixel_threshold=pixel.threshold,
        rand_threshold=None if math.isnan(rand.threshold) else rand.threshold,
        rand_precision=rand.precision,
        rand_recall=rand.recall,
        v_rand=metrics.v_rand(thinned, truth, thin=False, kind=kind),
        v_info=metrics.v_info(thinned, truth, thin=False, kind=kind),
        warping_error=float((metrics.warping_error_per_slice(foreground, truth) / counted).mean()),
        **object_scores(cells, truth, kind, tolerance),
        dice_per_class=dice.tolist(),
        iou_per_class=iou.tolist(),
        per_slice=per_slice,
        thresholds=pixel.thresholds.tolist(),
        pixel_scores=pixel.scores.tolist(),
        rand_scores=rand.scores.tolist(),
        dice_thresholds=best.curve[0].tolist(),
        dice_scores=best.curve[1].tolist(),
    )
    if picture is not None and kind == "instances":
        from unet_fast.plots import objects

        objects(images, truth, cells, picture, names=_slice_names(report))
    elif picture is not None:
        _draw(report, predicted, truth, images, outside, picture)
    return report


def _check_ignored(ignored: ArrayLike | None, truth: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Which pixels no score counts, (N, H, W); None where all count."""
    if ignored is None:
        return None
    outside = as_array("ignored", ignored) != 0
    check_same_shape("ignored", outside if outside.ndim == 3 else outside[None], "labels", truth)
    outside = outside.reshape(truth.shape)
    for n, nothing_counts in enumerate(outside.all(axis=(1, 2))):
        if nothing_counts:
            raise InputError(f"all pixels of slice {n} are ignored, so there is nothing to score; check the mask")
    return outside if outside.any() else None


def _kind_of(truth: NDArray[Any], kind: str, num_classes: int | None) -> tuple[str, int]:
    check_kind(kind, KINDS)
    if kind == "auto":
        if num_classes is not None and num_classes > 2:
            kind = "classes"
        else:
            kind = "mask" if is_mask(truth) else "instances"
    if kind != "classes":
        return kind, 2
    return kind, num_classes if num_classes is not None else max(int(truth.max()) + 1, 2)


def _draw(
    report: Report,
    predicted: Prediction,
    truth: NDArray[Any],
    images: ArrayLike | None,
    outside: NDArray[np.bool_] | None,
    out: str | os.PathLike[str],
) -> None:
    from unet_fast.plots import worst_best

    scores = {name: [getattr(row, key) for row in report.per_slice] for key, name in _COLUMNS.items()}
    threshold = 0.5 if report.rand_threshold is None else report.rand_threshold
    worst_best(
        images, truth, predicted.shown, scores, out, threshold=threshold, names=_slice_names(report), ignored=outside
    )


def _slice_names(report: Report) -> list[str]:
    return [f"slice {row.name}" if row.name.isdecimal() else row.name for row in report.per_slice]


_COLUMNS = {"rand_error": "Rand error", "pixel_error": "pixel error"}
