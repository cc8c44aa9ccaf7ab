"""Predicted objects beside the true ones: each in its own colour, with those that were split, merged, missed or invented."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError
from unet_fast.metrics._inputs import check_same_shape, label_stack
from unet_fast.metrics._instances import compact
from unet_fast.metrics.average_precision import Pairing, pairing
from unet_fast.plots._canvas import (
    BLUE,
    GREEN,
    PURPLE,
    VERMILLION,
    YELLOW,
    as_pictures,
    line_width,
    new_figure,
    panel_size,
    plain,
    rgb,
    save,
    show,
)

FATES = {"found": GREEN, "split": YELLOW, "merged": VERMILLION, "missed": BLUE, "invented": PURPLE}
IOU = 0.5
_GOLDEN = 0.618034  # of the colour circle: numbers that follow each other lie far apart, and so do any few


@dataclass(frozen=True)
class Fates:
    """What became of the objects of one slice, by compact label: indices of :data:`FATES`, -1 for labels that do not occur."""

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    partner: NDArray[np.int64]  # of each predicted object the true one that it shares most pixels with, 0 for none


def fates_of(pair: Pairing) -> Fates:
    """Found: an IoU of 0.5 or more. Split and merged as in :class:`unet_fast.metrics.Detections`; they win over found."""
    found, split, merged, missed, invented = range(len(FATES))
    true = np.where(pair.true_sizes > 0, missed, -1)
    predicted = np.where(pair.predicted_sizes > 0, invented, -1)
    true[:1], predicted[:1] = -1, -1
    table, partner = pair.table, np.zeros(len(predicted), np.int64)
    order = np.argsort(table.counts, kind="stable")  # the largest comes last and stays
    partner[table.predicted[order]] = table.true[order]
    enough = pair.iou >= IOU
    true[table.true[enough]], predicted[table.predicted[enough]] = found, found
    for label in pair.split():
        true[label] = split
        predicted[table.predicted[pair.parts & (table.true == label)]] = split
    for label in pair.merged():
        predicted[label] = merged
        true[table.true[pair.wholes & (table.predicted == label)]] = merged
    return Fates(true, predicted, partner)


def _colours(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """(n, 3) colours of numbers from 1; 0 is dark."""
    values = [
        colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.45 + 0.2 * (number % 3), 1.0 - 0.15 * (number // 3 % 3))
        for number in numbers.tolist()
    ]
    table = np.array(values, dtype=np.float32).reshape(-1, 3)
    table[numbers == 0] = 0.12
    return table


def _edges(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """The inner boundary of every object, wide enough to be seen in a panel."""
    from scipy import ndimage

    size = 2 * line_width((labels.shape[0], labels.shape[1])) + 1
    differs = ndimage.maximum_filter(labels, size) != labels
    return (differs | (ndimage.minimum_filter(labels, size) != labels)) & (labels > 0)


def _outlined(picture: NDArray[Any], labels: NDArray[Any], fates: NDArray[Any], shown: Sequence[str]) -> NDArray[Any]:
    """``picture`` (H, W, 3) with the outlines of the objects of some fates, in their colours."""
    out = picture.copy()
    edges, fate = _edges(labels), fates[labels]
    for number, (name, colour) in enumerate(FATES.items()):
        if name in shown:
            out[edges & (fate == number)] = np.array(rgb(colour)) / 255
    return out


def _panels(
    image: NDArray[Any] | None, truth: NDArray[Any], found: NDArray[Any]
) -> tuple[list[tuple[NDArray[Any], str]], Pairing]:
    truth, found = compact(truth), compact(found)
    pair = pairing(found, truth)
    fates = fates_of(pair)
    # a predicted object has the colour of the true one that it lies on, so that a split shows as two of one colour
    numbers = np.where(fates.partner > 0, fates.partner, len(fates.true) + np.arange(len(fates.partner)))
    numbers[:1] = 0
    base = np.full((*truth.shape, 3), 0.12, np.float32) if image is None else 0.75 * image
    marked = _outlined(base, truth, fates.true, ("missed", "merged", "split"))
    marked = _outlined(marked, found, fates.predicted, ("found", "split", "merged", "invented"))
    panels = [
        (_colours(np.arange(len(fates.true)))[truth], "true objects"),
        (_outlined(_colours(numbers)[found], found, fates.predicted, ("split", "merged")), "predicted objects"),
        (marked, "what became of them"),
    ]
    return ([] if image is None else [(image, "image")]) + panels, pair


def objects(
    images: ArrayLike | None,
    truth: ArrayLike,
    prediction: ArrayLike,
    out: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    count: int = 2,
) -> Path:
    """The ``count`` worst and the ``count`` best slices by average precision at an IoU of 0.5, worst first.

    A row shows the image, the true objects, the predicted ones in the colours of those that they lie on, and outlines that say
    what became of them: found (IoU of at least 0.5), split, merged, missed, invented.

    Args:
        images: ``(N, C, H, W)`` or ``(N, H, W)``, any scale; None leaves the column out.
        truth, prediction: instances ``(N, H, W)``, integer, 0 = background; labels count per slice.
        out: path of the PNG.
        names: one per slice, default ``slice 0``, ``slice 1``, ...
        count: of each end; of a stack with fewer slices than twice that, each is shown once.

    Raises:
        InputError: shapes that do not fit, negative labels. InputTypeError: floating-point labels.
        OSError: ``out`` cannot be written.
    """
    from matplotlib.patches import Patch

    true, predicted = label_stack("truth", truth), label_stack("prediction", prediction)
    check_same_shape("prediction", predicted, "truth", true)
    n = len(true)
    pictures = None if images is None else as_pictures("images", images)
    if pictures is not None and pictures.shape[:3] != true.shape:
        raise InputError(
            f"images show {pictures.shape[:3]} but truth has shape {true.shape}; give the same slices of both"
        )
    from unet_fast.metrics import detections

    scores = detections(predicted, true, ious=IOU)
    order = np.argsort(scores.per_slice[0], kind="stable")
    count = min(count, (n + 1) // 2)
    rows = [*order[:count], *order[max(count, n - count) :]]
    height, width = panel_size(*true.shape[1:])
    columns = 3 if pictures is None else 4
    figure = new_figure(columns * (width + 12), len(rows) * (height + 54) + 75)
    bands = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for place, (band, k) in enumerate(zip(bands, rows, strict=True)):
        panels, pair = _panels(None if pictures is None else pictures[k], true[k], predicted[k])
        found, invented, missed = (
            int(each[0, k]) for each in (scores.true_positives, scores.false_positives, scores.false_negatives)
        )
        heading = f"{'worst' if place < count else 'best'}: " if n > 1 else ""
        heading += (
            f"{names[k] if names is not None else f'slice {k}'},  average precision {scores.per_slice[0, k]:.3f}:  "
        )
        heading += f"{found} found, {missed} missed, {invented} invented, {len(pair.split())} split, {len(pair.merged())} merges"
        band.suptitle(plain(heading), fontsize=11, x=0.01, ha="left", fontweight="bold")
        for axes, (picture, title) in zip(band.subplots(1, columns, squeeze=False)[0], panels, strict=True):
            show(axes, picture, title, interpolation="nearest")
    handles = [Patch(color=colour, label=name) for name, colour in FATES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    return save(figure, out)
