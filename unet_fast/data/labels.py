"""Label images: reading, and turning masks, classes and instances into one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unet_fast.data.label_codes import Coding, decide
from unet_fast.data.label_kinds import detect_kind
from unet_fast.data.stacks import PathLike, Stack, list_images, load_stack
from unet_fast.errors import InputError, InputTypeError
from unet_fast.labels import KINDS, Kind, check_kind, components

__all__ = [
    "KINDS",
    "Kind",
    "Labels",
    "detect_kind",
    "interpret_labels",
    "label_values",
    "read_labels",
    "to_classes",
    "to_instances",
]


@dataclass
class Labels:
    """Labels of a stack.

    labels: ``(N, H, W)`` uint8 (masks, and classes up to 256) or int32. Masks hold 0 and 1; class maps the class;
        instance maps 0 for the background and a number for each object. Ignored pixels hold 0.
    kind: ``"mask"``, ``"classes"`` or ``"instances"``.
    num_classes: 2 for masks and instances (background, foreground); largest class + 1 for class maps, if not given.
    names: one name an image, for messages.
    ignored: ``(N, H, W)`` bool, pixels that neither a loss nor a score counts; None for none.
    coding: what the numbers of the files meant, by which a prediction is read as well.
    """

    labels: np.ndarray
    kind: Kind
    num_classes: int
    names: list[str]
    ignored: np.ndarray | None = None
    coding: Coding | None = None


def read_labels(
    path: PathLike, kind: Kind | None = None, num_classes: int | None = None, ignore_index: int | None = None
) -> Labels:
    """Read a label stack (TIFF), a PNG, or a folder of them; see :func:`detect_kind` for how its kind is found.

    Whole-numbered float labels are accepted, as are RGB files whose channels agree, PNGs with a palette (the indices
    count), and masks that were painted on a transparent layer (alpha counts). Instance numbers beyond int32 are
    renumbered. ``kind`` overrides the detection. ``num_classes`` > 2 implies class maps. Pixels of ``ignore_index`` count
    nowhere; 255 and 65535 beside class numbers are taken as that unless it is given. Of a mask of two values the larger is
    the foreground; a mask with grey rims, as interpolation leaves them, is cut in the middle. What was guessed is
    said by a :class:`unet_fast.notes.Note`.

    Raises, besides what :func:`unet_fast.data.read_images` raises: :class:`InputError` for values that are not whole,
    negative values, several channels, labels outside ``num_classes``, a mask of more than two values that are not grey levels, class
    numbers of 1024 and more, and values that fit no kind.
    """
    return interpret_labels(load_stack(list_images(path), indexed=True), path, kind, num_classes, ignore_index)


def interpret_labels(
    stack: Stack, path: PathLike, kind: Kind | None, num_classes: int | None, ignore_index: int | None = None
) -> Labels:
    """The second half of :func:`read_labels`, for files that are decoded already; ``path`` is only named in errors."""
    values = label_values(stack, path)
    coding = decide([values], stack.names, path, kind, num_classes, ignore_index)
    return Labels(coding.decode(values), coding.kind, coding.num_classes, stack.names, coding.left_out(values), coding)


def label_values(stack: Stack, path: PathLike) -> np.ndarray:
    """The whole numbers ``(N, H, W)`` of label files; one clear error where they are none."""
    return _whole_numbers(_one_channel(stack, path), stack, path)


def to_classes(labels: np.ndarray, kind: Kind) -> np.ndarray:
    """Class map ``(N, H, W)`` int64: masks and instances give 0 (background) and 1, class maps stay as they are."""
    labels = _checked(labels, kind)
    return labels.astype(np.int64) if kind == "classes" else (labels != 0).astype(np.int64)


def to_instances(labels: np.ndarray, kind: Kind) -> np.ndarray:
    """Instance map ``(N, H, W)`` int32, 0 = background.

    Masks give the 4-connected components of their foreground, class maps the 4-connected components of each class but
    0, both numbered from 1 in every slice. Instances stay as they are, even where one consists of several pieces.

    Equivalent to (masks)::

        np.stack([scipy.ndimage.label(image)[0] for image in labels])
    """
    labels = _checked(labels, kind)
    if kind == "instances":
        return labels.astype(np.int32)
    if kind == "mask" and len(labels) == 1:  # as image by image is done: not copied
        return components(labels[0])[None]
    out = np.zeros(labels.shape, np.int32)
    if kind == "mask":
        for image, target in zip(labels, out, strict=True):
            target[...] = components(image)
    else:
        from skimage.measure import label as components_of_each_value

        for image, target in zip(labels, out, strict=True):
            target[...] = components_of_each_value(image, background=0, connectivity=1)
    return out


def _checked(labels: np.ndarray, kind: str) -> np.ndarray:
    check_kind(kind)
    labels = np.asarray(labels)
    if labels.ndim != 3:
        raise InputError(f"labels have {labels.ndim} dimensions, shape {labels.shape}; expected (N, H, W)")
    if labels.dtype.kind not in "bui":
        raise InputTypeError(f"labels have dtype {labels.dtype}, expected integers; round or convert them")
    return labels.view(np.uint8) if labels.dtype.kind == "b" else labels


def _one_channel(stack: Stack, path: PathLike) -> np.ndarray:
    pixels = stack.pixels
    if pixels.shape[1] > 1 and not (pixels == pixels[:, :1]).all():
        raise InputError(
            f"labels of {path} have {pixels.shape[1]} channels that differ, shape {pixels.shape} (N, C, H, W); "
            "expected one number per pixel: save the labels as a grey or indexed image"
        )
    return pixels[:, 0]


def _whole_numbers(values: np.ndarray, stack: Stack, path: PathLike) -> np.ndarray:
    """``values`` as integers."""
    if values.dtype.kind == "f":
        for index, image in enumerate(values):
            bad = image[~((image == np.rint(image)) & (np.abs(image) < 2**53))]  # the comparison is false for NaN, too
            if bad.size:
                raise InputError(
                    f"slice {index} ({stack.names[index]}) of {path} holds the label {bad[0]}, expected whole numbers; "
                    "threshold probabilities, or round the labels, and save them as integers"
                )
        values = values.astype(np.int64)
    return values
