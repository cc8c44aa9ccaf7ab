"""Score a prediction against the truth: one report with a table, JSON and a picture of the worst and best slices.

Equivalent to ``unet-fast evaluate --prediction P.tif --labels L.tif --out metrics.json``::

    evaluate_files("P.tif", "L.tif", out="metrics.json").print()

and to ``unet-fast evaluate --prediction P.tif --data DRIVE --out metrics.json``, field of view and all::

    evaluate_dataset("P.tif", "DRIVE", out="metrics.json").print()
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unet_fast._scores import evaluate
from unet_fast.errors import InputError
from unet_fast.files import refuse_overwrite
from unet_fast.metrics._inputs import check_same_shape
from unet_fast.report import Report, SliceScores, print_report

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from unet_fast.data import Labels, Pair
    from unet_fast.data.label_codes import LabelOptions
    from unet_fast.data.labels import Kind
    from unet_fast.data.stacks import PathLike

__all__ = ["Report", "SliceScores", "evaluate", "evaluate_dataset", "evaluate_files", "print_report"]


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
            "give --slices of those that were predicted"
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
    tolerance: float | None = None,
    **options: Unpack[LabelOptions],
) -> Report:
    """:func:`evaluate` of a prediction of a data set's images, in the order in which training counts them.

    Args:
        prediction: a TIFF stack, or a folder with a TIFF for each image where these differ in size, both as
            ``unet-fast predict --data`` writes them; files that are named as it names them may be in any order.
        folder: of the data set, see :func:`unet_fast.data.read_dataset`; a field of view of its (DRIVE) is applied.
        slices: the images that were predicted, such as ``"20:25"`` or ``"sequence:02"``; default: all.
        out, tolerance, and kind, num_classes, ignore_index in ``options``: as for :func:`evaluate_files`.

    Raises:
        InputError, OSError: as :func:`evaluate_files` and :func:`unet_fast.data.read_dataset`.
    """
    from unet_fast.data import read_dataset
    from unet_fast.data.predictions import decode_predictions, prediction_pages
    from unet_fast.data.stacks import file_name, list_images

    files = list_images(prediction)
    _check_outputs(out, files)
    dataset = read_dataset(folder, **options)
    _check_outputs(out, dataset.files)
    chosen = dataset.choose(slices)
    by_name, names = {file.stem: file for file in files}, [file_name(dataset.items[n].name) for n in chosen]
    if by_name.keys() == set(names):
        files = [by_name[name] for name in names]
    pages = decode_predictions(prediction_pages(files), dataset.coding, prediction)
    if len(pages) != len(chosen):
        raise InputError(
            f"{prediction} holds {len(pages)} predictions, but {len(chosen)} images of {folder} are to be scored; "
            "give --slices of those that were predicted"
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
    if out is not None and Path(out).is_dir():
        raise InputError(f"out is the folder {out}; name the JSON file to write, such as {Path(out) / 'metrics.json'}")
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
