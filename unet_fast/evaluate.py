"""Score a prediction against the truth: one report with a table, JSON and a picture of the worst and best slices.

Equivalent to ``unet-fast evaluate --prediction P.tif --labels L.tif --out metrics.json``::

    evaluate_files("P.tif", "L.tif", out="metrics.json").print()

and to ``unet-fast evaluate --prediction P.tif --data DRIVE --out metrics.json``, field of view and all::

    evaluate_dataset("P.tif", "DRIVE", out="metrics.json").print()
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast import metrics
from unet_fast._objects import object_scores
from unet_fast._predicted import Prediction, interpret
from unet_fast.errors import InputError
from unet_fast.files import refuse_overwrite
from unet_fast.labels import IGNORED, check_kind, components
from unet_fast.metrics._inputs import as_array, check_same_shape, is_mask, label_stack
from unet_fast.metrics._instances import KINDS
from unet_fast.report import Report, SliceScores, print_report

if TYPE_CHECKING:
    from unet_fast.data import Labels, Pair
    from unet_fast.data.labels import Kind
    from unet_fast.data.stacks import PathLike

__all__ = ["Report", "SliceScores", "evaluate", "evaluate_dataset", "evaluate_files", "print_report"]


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


def evaluate_files(
    prediction: PathLike,
    labels: PathLike,
    *,
    images: PathLike | None = None,
    mask: PathLike | None = None,
    slices: str | None = None,
    out: PathLike | None = None,
    kind: Kind | None = None,
    num_classes: int | None = None,
    ignore_index: int | None = None,
    tolerance: float | None = None,
) -> Report:
    """:func:`evaluate` of files: each a TIFF stack, a PNG, or a folder of them.

    Files of folders with a file for each image are matched with those of the labels by :func:`unet_fast.data.match_files`.

    Args:
        prediction: what :func:`evaluate` accepts, in the dtype of the file; whole numbers mean what they mean in the labels, see
            :func:`unet_fast.data.predictions.decode_predictions`.
        labels: read by :func:`unet_fast.data.read_labels`, whose guess at their kind ``kind`` overrides, and to which
            ``num_classes`` and ``ignore_index`` go. A prediction of more than two channels implies class labels.
        images: shown in the picture.
        mask: where it is 0 no score counts: a field of view for each image, or one for all.
        slices: the slices of ``labels``, ``images`` and ``mask`` that were predicted, such as ``"20:25"``, where the prediction
            holds only these (see :func:`unet_fast.data.parse_slices`); default: all.
        out: path of the JSON to write; a picture of the worst and best slices goes beside it, with the suffix ``.png``.
            Neither may be a file that is read.
        tolerance: as for :func:`evaluate`.

    Raises:
        InputError, OSError: as :func:`evaluate`, :func:`unet_fast.data.read_labels` and
            :func:`unet_fast.data.read_images`; an ``out`` that ends in ``.png``.
    """
    from unet_fast.data import parse_slices, read_images, read_labels
    from unet_fast.data.predictions import decode_predictions, prediction_pages
    from unet_fast.data.stacks import list_images

    label_files, files = list_images(labels), list_images(prediction)
    others = [file for path in (images, mask) if path is not None for file in list_images(path, nested=True)]
    _check_outputs(out, [*label_files, *files, *others])
    pages = prediction_pages(files)
    channels = {pages.shape(index)[0] for index in range(len(pages))}
    if (
        len(channels) == 1
        and not pages.colour(0)
        and max(channels) > 2
        and num_classes is None
        and kind in (None, "classes")
    ):
        kind, num_classes = "classes", max(channels)
    truth = read_labels(labels, kind, num_classes, ignore_index)
    count = len(truth.labels)
    chosen = list(range(count)) if slices is None else list(parse_slices(slices, count))
    if len(pages) != len(chosen):
        raise InputError(
            f"{prediction} holds {len(pages)} predictions, but {len(chosen)} images of {labels} are to be scored; "
            "name those that were predicted by --slices"
        )
    assert truth.coding is not None  # it came from files
    predicted = _stacked(decode_predictions(pages, truth.coding, prediction), pages.names)
    if len(label_files) == count:
        predicted = _by_name(predicted, files, [label_files[n] for n in chosen], "prediction")
    pictures = None
    if images is not None:
        pictures = read_images(images)
        if len(pictures) != count:
            raise InputError(f"{images} holds {len(pictures)} images, but {labels} holds {count}; give the same slices")
        pictures = _by_name(pictures, list_images(images, nested=True), label_files, "image")[chosen]
    outside = truth.ignored
    if mask is not None:
        outside = read_labels(mask, "mask").labels == 0
        if len(outside) not in (1, count):
            raise InputError(
                f"{mask} holds {len(outside)} masks, but {labels} holds {count}; give one for each, or one"
            )
        outside = _by_name(outside, list_images(mask), label_files, "mask")
        outside = np.broadcast_to(outside, (count, *outside.shape[1:]))
        if truth.ignored is not None:
            check_same_shape("mask", outside, "labels", truth.ignored)
            outside = outside | truth.ignored
    outside = None if outside is None else outside[chosen]
    names = [truth.names[n] for n in chosen]
    return _scored(predicted, truth.labels[chosen], truth, names, pictures, outside, out, tolerance)


def evaluate_dataset(
    prediction: PathLike,
    folder: PathLike,
    *,
    slices: str | None = None,
    out: PathLike | None = None,
    kind: Kind | None = None,
    num_classes: int | None = None,
    ignore_index: int | None = None,
    tolerance: float | None = None,
) -> Report:
    """:func:`evaluate` of a prediction of a data set's images, in the order in which training counts them.

    Args:
        prediction: a TIFF stack, or a folder with a TIFF for each image where these differ in size, both as
            ``unet-fast predict --data`` writes them; files that are named as it names them may be in any order.
        folder: of the data set, see :func:`unet_fast.data.read_dataset`; a field of view of its (DRIVE) is applied.
        slices: the images that were predicted, such as ``"20:25"`` or ``"sequence:02"``; default: all.
        out, kind, num_classes, ignore_index, tolerance: as for :func:`evaluate_files`.

    Raises:
        InputError, OSError: as :func:`evaluate_files` and :func:`unet_fast.data.read_dataset`.
    """
    from unet_fast.data import read_dataset
    from unet_fast.data.predictions import decode_predictions, prediction_pages
    from unet_fast.data.stacks import file_name, list_images

    files = list_images(prediction)
    _check_outputs(out, files)
    dataset = read_dataset(folder, kind=kind, num_classes=num_classes, ignore_index=ignore_index)
    _check_outputs(out, dataset.files)
    chosen = dataset.choose(slices)
    by_name, names = {file.stem: file for file in files}, [file_name(dataset.items[n].name) for n in chosen]
    if by_name.keys() == set(names):
        files = [by_name[name] for name in names]
    pages = decode_predictions(prediction_pages(files), dataset.coding, prediction)
    if len(pages) != len(chosen):
        raise InputError(
            f"{prediction} holds {len(pages)} predictions, but {len(chosen)} images of {folder} are to be scored; "
            "name those that were predicted by --slices"
        )
    for page, item in zip(pages, (dataset.items[index] for index in chosen), strict=True):
        if page.shape[1:] != item.size:
            raise InputError(
                f"the prediction of {item.name} is {page.shape[1]} x {page.shape[2]}, but its labels are "
                f"{item.size[0]} x {item.size[1]}; were other images predicted?"
            )
    truth = dataset.whole(chosen)
    shown = truth.images.copy()
    height, width = truth.labels.shape[1:]
    # beyond a smaller image the pixels are ignored
    padded = np.stack([np.pad(p, [(0, 0), (0, height - p.shape[1]), (0, width - p.shape[2])]) for p in pages])
    for image, page in zip(shown, pages, strict=True):
        lowest = image[:, : page.shape[1], : page.shape[2]].min()
        # nothing was there to predict: no mirror image in the picture
        image[:, page.shape[1] :], image[:, :, page.shape[2] :] = lowest, lowest
    return _scored(padded, truth.labels, truth, truth.names, shown, truth.ignored, out, tolerance)


def _stacked(pages: list[NDArray[Any]], names: Sequence[str]) -> NDArray[Any]:
    """Predictions of one size and one number of channels as ``(N, K, H, W)``."""
    for page, name in zip(pages, names, strict=True):
        if page.shape != pages[0].shape:
            raise InputError(
                f"predictions of different sizes: {names[0]} has shape {pages[0].shape}, {name} has {page.shape} (K, H, W); evaluate "
                "those of one size at a time"
            )
    return np.stack(pages)


def _check_outputs(out: PathLike | None, inputs: list[Path]) -> None:
    """Refuse to write scores or picture onto a file that is read, before anything is."""
    picture = _picture_beside(out)
    if out is not None and picture is not None:
        refuse_overwrite([Path(out), picture], inputs)


def _by_name(stack: NDArray[Any], files: list[Path], label_files: list[Path], what: str) -> NDArray[Any]:
    """``stack`` in the order of the labels, where both are folders with a file for each image."""
    from unet_fast.data import match_files

    if not len(stack) == len(files) == len(label_files) > 1:
        return stack
    partners = match_files(label_files, files, ("label", what))
    return stack[[files.index(file) for file in partners]]


def _scored(
    prediction: NDArray[Any],
    labels: NDArray[Any],
    described: Labels | Pair,
    names: Sequence[str],
    images: NDArray[Any] | None,
    ignored: NDArray[Any] | None,
    out: PathLike | None,
    tolerance: float | None,
) -> Report:
    """The report of ``labels``, of the kind that ``described`` tells, saved to ``out`` with its picture beside it."""
    report = evaluate(
        prediction,
        labels,
        kind=described.kind,
        num_classes=described.num_classes,
        names=names,
        images=images,
        ignored=ignored,
        tolerance=tolerance,
        picture=_picture_beside(out),
    )
    if out is not None:
        report.save(out)
    return report


def _picture_beside(out: PathLike | None) -> Path | None:
    picture = None if out is None else Path(out).with_suffix(".png")
    if out is not None and picture == Path(out):
        raise InputError(f"out is {out}, where the picture goes; give a path such as {Path(out).stem}.json")
    return picture


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
