"""Score a prediction against the truth: one report with a table, JSON and a picture of the worst and best slices.

Equivalent to ``unet-fast evaluate --prediction P.tif --labels L.tif --out metrics.json``::

    evaluate_files("P.tif", "L.tif", out="metrics.json").print()
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast import metrics
from unet_fast.errors import InputError
from unet_fast.metrics._inputs import as_array, check_kind, check_probabilities, check_same_shape, is_mask, label_stack
from unet_fast.metrics._instances import components, to_instances
from unet_fast.report import Report, SliceScores, print_report

if TYPE_CHECKING:
    from unet_fast.data.labels import Kind
    from unet_fast.data.stacks import PathLike

__all__ = ["Report", "SliceScores", "evaluate", "evaluate_files", "print_report"]

# data.detect_kind allows class maps of 64 classes; a uint8 prediction that stays below cannot be told from one
_LARGEST_CLASS = 63


@dataclass(frozen=True)
class _Prediction:
    """A prediction of any kind, as foreground probability, as classes (K > 2), and as instances where it came so."""

    foreground: NDArray[Any]  # (N, H, W) float in [0, 1]
    classes: NDArray[Any] | None  # (N, H, W) integer
    instances: NDArray[Any] | None  # (N, H, W) integer
    shown: NDArray[Any]  # what the picture shows: foreground, or (N, K, H, W)


def evaluate(
    prediction: ArrayLike,
    labels: ArrayLike,
    *,
    kind: str = "auto",
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    images: ArrayLike | None = None,
    picture: str | os.PathLike[str] | None = None,
) -> Report:
    """Score a stack; optionally draw its worst and best slices by Rand error.

    Args:
        prediction: any of

            * probabilities of the foreground, ``(N, H, W)``, ``(N, 1, H, W)`` or one slice ``(H, W)``; of K classes,
              ``(N, K, H, W)``; floating point in [0, 1], or whole numbers 0..255, which are divided by 255;
            * a mask 0/1 or 0/255; class numbers, where ``labels`` are classes; instance numbers.
        labels: ``(N, H, W)`` or ``(H, W)`` integer: mask, classes or instances, 0 = background.
        kind: ``"mask"``, ``"classes"``, ``"instances"``, or ``"auto"``: classes where ``num_classes`` is above 2 (or
            the prediction has more than 2 channels), a mask where the labels hold one non-zero value, else instances.
        num_classes: K of class labels; default: the channels of the prediction, or as many as occur.
        names: one a slice, for the table; default 0, 1, ...
        images: ``(N, C, H, W)`` or ``(N, H, W)``, only for the picture.
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
    if not truth.any():
        raise InputError("labels hold no foreground (all are 0), so there is nothing to score; check the label file")
    predicted = _interpret(array, truth, kind, num_classes)
    if names is not None and len(names) != len(truth):
        raise InputError(f"names has {len(names)} entries, expected one for each of the {len(truth)} slices")

    foreground = predicted.foreground
    pixel = metrics.pixel_scan(foreground, truth)
    rand = metrics.rand_scan(predicted.instances if predicted.instances is not None else foreground, truth, kind=kind)
    best = metrics.best_threshold(foreground, truth, metric="dice")
    if predicted.instances is not None:
        cells = predicted.instances
    else:
        cells = np.stack([components(p > p.dtype.type(rand.threshold)) for p in foreground])
    thinned = np.stack([metrics.thin_borders(cells_of_slice) for cells_of_slice in cells])
    compared, true_classes = (predicted.classes, truth) if predicted.classes is not None else (foreground, truth != 0)
    if predicted.classes is None:
        num_classes = 2
    options: dict[str, Any] = {"num_classes": num_classes}
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
        warping_error=metrics.warping_error(foreground, truth),
        seg=metrics.seg(cells, truth) if kind == "instances" else None,
        dice_per_class=dice.tolist(),
        iou_per_class=iou.tolist(),
        per_slice=per_slice,
        thresholds=pixel.thresholds.tolist(),
        pixel_scores=pixel.scores.tolist(),
        rand_scores=rand.scores.tolist(),
        dice_thresholds=best.curve[0].tolist(),
        dice_scores=best.curve[1].tolist(),
    )
    if picture is not None:
        _draw(report, predicted, truth, images, picture)
    return report


def evaluate_files(
    prediction: PathLike,
    labels: PathLike,
    *,
    images: PathLike | None = None,
    slices: str | None = None,
    out: PathLike | None = None,
    kind: Kind | None = None,
    num_classes: int | None = None,
) -> Report:
    """:func:`evaluate` of files: each a TIFF stack, a PNG, or a folder of them.

    Args:
        prediction: what :func:`evaluate` accepts, in the dtype of the file.
        labels: read by :func:`unet_fast.data.read_labels`, whose guess at their kind ``kind`` overrides. A prediction
            of more than two channels implies class labels.
        images: shown in the picture.
        slices: the slices of ``labels`` and ``images`` that were predicted, such as ``"20:25"``, where the prediction
            holds only these (see :func:`unet_fast.data.parse_slices`); default: all.
        out: path of the JSON to write; a picture of the worst and best slices goes beside it, with the suffix ``.png``.

    Raises:
        InputError, OSError: as :func:`evaluate`, :func:`unet_fast.data.read_labels` and
            :func:`unet_fast.data.read_images`; an ``out`` that ends in ``.png``.
    """
    from unet_fast.data import parse_slices, read_images, read_labels
    from unet_fast.data.stacks import list_images, load_stack

    picture = None if out is None else Path(out).with_suffix(".png")
    if out is not None and picture == Path(out):
        raise InputError(f"out is {out}, where the picture goes; give a path such as {Path(out).stem}.json")
    predicted = load_stack(list_images(prediction)).pixels  # in the stored dtype, which tells probabilities from labels
    if predicted.shape[1] > 2 and num_classes is None and kind in (None, "classes"):
        kind, num_classes = "classes", predicted.shape[1]
    truth = read_labels(labels, kind, num_classes)
    count = len(truth.labels)
    chosen = list(range(count)) if slices is None else list(parse_slices(slices, count))
    pictures = None
    if images is not None:
        pictures = read_images(images)
        if len(pictures) != count:
            raise InputError(f"{images} holds {len(pictures)} images, but {labels} holds {count}; give the same slices")
        pictures = pictures[chosen]
    report = evaluate(
        predicted,
        truth.labels[chosen],
        kind=truth.kind,
        num_classes=truth.num_classes,
        names=[truth.names[n] for n in chosen],
        images=pictures,
        picture=picture,
    )
    if out is not None:
        report.save(out)
    return report


def _kind_of(truth: NDArray[Any], kind: str, num_classes: int | None) -> tuple[str, int]:
    check_kind(kind)
    if kind == "auto":
        if num_classes is not None and num_classes > 2:
            kind = "classes"
        else:
            kind = "mask" if is_mask(truth) else "instances"
    if kind != "classes":
        return kind, 2
    return kind, num_classes if num_classes is not None else max(int(truth.max()) + 1, 2)


def _interpret(array: NDArray[Any], truth: NDArray[Any], kind: str, num_classes: int) -> _Prediction:
    """Tell probabilities, masks, classes and instances apart, and check them."""
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim not in (3, 4) or array.size == 0:
        raise InputError(f"prediction has shape {array.shape}, expected a non-empty (H, W), (N, H, W) or (N, K, H, W)")
    check_same_shape("prediction", array if array.ndim == 3 else array[:, 0], "labels", truth)
    bytes_like = array.dtype == np.uint8
    if array.dtype.kind == "f" and array.max() > 1 and bool((array == np.rint(array)).all()):
        # whole numbers that went through a float, as readers of image files like to return them
        bytes_like = 0 <= float(array.min()) and float(array.max()) <= 255
        array = array.astype(np.int64)

    if array.ndim == 4:
        if array.dtype.kind != "f":
            array = array.astype(np.float32) / (255 if array.max() > 1 else 1)
        array = check_probabilities("prediction", array)
        if kind == "classes" and array.shape[1] != num_classes:
            raise InputError(f"prediction has {array.shape[1]} channels, but the labels have {num_classes} classes")
        foreground = 1 - array[:, 0]
        classes = array.argmax(axis=1) if kind == "classes" and num_classes > 2 else None
        return _Prediction(foreground, classes, None, array if classes is not None else foreground)

    if array.dtype.kind == "f":
        foreground = check_probabilities("prediction", array)
        if kind == "classes" and num_classes > 2:
            raise InputError(
                f"prediction has one channel of probabilities, but the labels have {num_classes} classes; "
                "give (N, K, H, W) probabilities or class numbers"
            )
        return _Prediction(foreground, None, None, foreground)
    label_stack("prediction", array)
    largest = int(array.max())
    multiclass = kind == "classes" and num_classes > 2
    if multiclass and largest < num_classes:
        hard = (array != 0).astype(np.float32)
        one_hot = (array[:, None] == np.arange(num_classes)[:, None, None]).astype(np.float32)
        return _Prediction(hard, array, None, one_hot)
    if multiclass:
        raise InputError(
            f"prediction holds class {largest}, but the labels have {num_classes} classes, 0..{num_classes - 1}"
        )
    if is_mask(array) and largest in (0, 1, 255):
        hard = (array != 0).astype(np.float32)
        return _Prediction(hard, None, None, hard)
    if bytes_like and largest > _LARGEST_CLASS and not _look_like_instances(array):
        foreground = array.astype(np.float32) / 255
        return _Prediction(foreground, None, None, foreground)
    if kind == "instances" or _look_like_instances(array):
        hard = (array != 0).astype(np.float32)
        return _Prediction(hard, None, to_instances(array, "instances"), hard)
    raise InputError(
        f"prediction holds integers up to {largest} of dtype {array.dtype}, which are neither probabilities (0..255), "
        f"nor a mask (0/1 or 0/255), nor instances; expected one of these for labels of kind {kind!r}"
    )


def _look_like_instances(array: NDArray[Any]) -> bool:
    from unet_fast.data import detect_kind

    try:
        return detect_kind(array) == "instances"
    except InputError:
        return False


def _draw(
    report: Report, predicted: _Prediction, truth: NDArray[Any], images: ArrayLike | None, out: str | os.PathLike[str]
) -> None:
    from unet_fast.plots import worst_best

    scores = {name: [getattr(row, key) for row in report.per_slice] for key, name in _COLUMNS.items()}
    names = [f"slice {row.name}" if row.name.isdecimal() else row.name for row in report.per_slice]
    threshold = 0.5 if report.rand_threshold is None else report.rand_threshold
    worst_best(images, truth, predicted.shown, scores, out, threshold=threshold, names=names)


_COLUMNS = {"rand_error": "Rand error", "pixel_error": "pixel error"}
