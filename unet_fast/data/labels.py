"""Label images: reading, telling masks, classes and instances apart, and turning one into another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from unet_fast.data.stacks import PathLike, Stack, list_images, load_stack
from unet_fast.errors import InputError, InputTypeError

Kind = Literal["mask", "classes", "instances"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The rule of detect_kind. Up to four values are rather classes (a crop may show each class once); class numbers beyond
# 63 are unheard of in class maps, while grey-coded masks and photographs given by mistake have them.
_MIN_INSTANCES = 5
_MAX_CLASS = 63
_PROBED_SLICES = 32


@dataclass
class Labels:
    """Labels of a stack.

    labels: ``(N, H, W)`` int32. Masks hold 0 and 1; class maps the class; instance maps 0 for the background and
        a number for each object.
    kind: ``"mask"``, ``"classes"`` or ``"instances"``.
    num_classes: 2 for masks and instances (background, foreground); largest class + 1 for class maps, if not given.
    names: one name an image, for messages.
    """

    labels: np.ndarray
    kind: Kind
    num_classes: int
    names: list[str]


def read_labels(path: PathLike, kind: Kind | None = None, num_classes: int | None = None) -> Labels:
    """Read a label stack (TIFF), a PNG, or a folder of them; see :func:`detect_kind` for how its kind is found.

    Whole-numbered float labels are accepted, as are RGB files whose channels agree and PNGs with a palette (the indices
    count). Instance numbers beyond int32 are renumbered. ``kind`` overrides the detection. ``num_classes`` > 2 implies
    class maps.

    Raises, besides what :func:`unet_fast.data.read_images` raises: :class:`InputError` for values that are not whole,
    negative values, several channels, labels outside ``num_classes``, a mask of more than two values, and values that
    fit no kind.
    """
    return interpret_labels(load_stack(list_images(path), indexed=True), path, kind, num_classes)


def interpret_labels(stack: Stack, path: PathLike, kind: Kind | None, num_classes: int | None) -> Labels:
    """The second half of :func:`read_labels`, for files that are decoded already; ``path`` is only named in errors."""
    if kind is not None:
        _check_kind(kind)
    if num_classes is not None and num_classes < 2:
        raise InputError(f"num_classes is {num_classes}, expected at least 2 (background and one class)")
    values = _whole_numbers(_one_channel(stack, path), stack, path)
    if kind is None:
        kind = "classes" if num_classes is not None and num_classes > 2 else _detect(values, path)
    if kind == "classes":
        largest = int(values.max())
        if num_classes is None:
            num_classes = max(largest + 1, 2)
        elif largest >= num_classes:
            index = int(np.argmax(values.reshape(len(values), -1).max(axis=1)))
            raise InputError(
                f"slice {index} ({stack.names[index]}) of {path} holds the label {largest}, outside the classes "
                f"0 to {num_classes - 1}; give num_classes={largest + 1}, or correct the labels"
            )
        labels = values.astype(np.int32)
    else:
        if num_classes not in (None, 2):
            raise InputError(
                f"num_classes is {num_classes}, but labels of kind {kind!r} have 2 (background, foreground)"
            )
        num_classes = 2
        labels = _binary(values, path) if kind == "mask" else _int32(values)
    return Labels(labels, kind, num_classes, stack.names)


def detect_kind(labels: np.ndarray) -> Kind:
    """Tell ``(N, H, W)`` labels without negative values apart. The rule, in this order:

    1. one or two distinct values (0/255, 0/1, ...): ``"mask"``;
    2. at least five different non-zero values, and for at least half of the (slice, value) pairs all pixels of the
       value form one 8-connected component: ``"instances"``;
    3. no value above 63: ``"classes"``;
    4. otherwise the labels are refused: grey-coded classes (0/128/255) have to be renumbered, and a grey image given
       in place of labels is found out.

    Components are counted in at most 32 slices, evenly spaced. Class maps of five or more organs that each appear in
    one piece look like instances, and images with fewer than five objects in all look like classes: give the kind then.
    """
    return _detect(np.asarray(labels), "the labels")


def _detect(labels: np.ndarray, path: PathLike) -> Kind:
    values = _distinct(labels)
    if len(values) <= 2:
        return "mask"
    objects = values[values != 0]
    if len(objects) >= _MIN_INSTANCES and _whole_fraction(labels) >= 0.5:
        return "instances"
    if values[-1] <= _MAX_CLASS:
        return "classes"
    shown = ", ".join(str(value) for value in values[:6]) + (", ..." if len(values) > 6 else "")
    raise InputError(
        f"{path} holds {len(values)} different labels ({shown}) that are neither a mask, nor classes 0 to "
        f"{_MAX_CLASS}, nor instances in one piece each; renumber the classes from 0, give the kind, or check that "
        "this is the label file"
    )


def _whole_fraction(labels: np.ndarray) -> float:
    """Share of the (slice, non-zero value) pairs whose pixels are 8-connected."""
    from skimage.measure import label as components

    step = -(-len(labels) // _PROBED_SLICES)
    pairs = whole = 0
    for image in labels[::step]:
        image = np.unique(image, return_inverse=True)[1].reshape(image.shape) + int(image.min() != 0)
        parts, count = components(image, background=0, connectivity=2, return_num=True)
        owner = np.zeros(count + 1, np.int64)
        owner[parts] = image  # every pixel of a component writes the same value
        pieces = np.bincount(owner[1:])
        pairs += int(np.count_nonzero(pieces))
        whole += int(np.count_nonzero(pieces == 1))
    return whole / max(pairs, 1)


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
    out = np.zeros(labels.shape, np.int32)
    if kind == "mask":
        from scipy import ndimage

        for image, target in zip(labels, out, strict=True):
            ndimage.label(image, output=target)
    else:
        from skimage.measure import label as components

        for image, target in zip(labels, out, strict=True):
            target[...] = components(image, background=0, connectivity=1)
    return out


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}, expected one of {', '.join(map(repr, KINDS))}")


def _checked(labels: np.ndarray, kind: str) -> np.ndarray:
    _check_kind(kind)
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
            "expected one number a pixel: save the labels as a grey or indexed image"
        )
    return pixels[:, 0]


def _whole_numbers(values: np.ndarray, stack: Stack, path: PathLike) -> np.ndarray:
    """``values`` as non-negative integers."""
    if values.dtype.kind == "f":
        for index, image in enumerate(values):
            bad = image[~((image == np.rint(image)) & (np.abs(image) < 2**53))]  # the comparison is false for NaN, too
            if bad.size:
                raise InputError(
                    f"slice {index} ({stack.names[index]}) of {path} holds the label {bad[0]}, expected whole numbers; "
                    "threshold probabilities, or round the labels, and save them as integers"
                )
        values = values.astype(np.int64)
    if values.dtype.kind == "i" and values.min() < 0:
        index = int(np.argmin(values.reshape(len(values), -1).min(axis=1)))
        raise InputError(
            f"slice {index} ({stack.names[index]}) of {path} holds the negative label {values[index].min()}; "
            "labels count from 0 (background): renumber them"
        )
    return values


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sorted distinct values; counting beats sorting where the values are small."""
    largest = int(values.max())
    if largest < 2**20:
        found = np.zeros(largest + 1, bool)
        found[values] = True
        return np.flatnonzero(found)
    return np.unique(values)


def _binary(values: np.ndarray, path: PathLike) -> np.ndarray:
    """A mask as int32 0 and 1; of two values the larger is the foreground, a single one is it unless it is 0."""
    found = _distinct(values)
    if len(found) > 2:
        shown = ", ".join(str(value) for value in found[:6]) + (", ..." if len(found) > 6 else "")
        raise InputError(
            f"the mask {path} holds {len(found)} different values ({shown}), expected two such as 0 and 255; "
            "threshold it, or give the kind that it is"
        )
    return cast(np.ndarray, (values == found[-1]) & (found[-1] != 0)).astype(np.int32)


def _int32(values: np.ndarray) -> np.ndarray:
    """Instance numbers as int32; numbers that do not fit are replaced by their rank."""
    if int(values.max()) <= np.iinfo(np.int32).max:
        return values.astype(np.int32)
    found, ranks = np.unique(values, return_inverse=True)
    return (ranks.reshape(values.shape) + int(found[0] != 0)).astype(np.int32)
