"""How the numbers of label files are read: decided once from all of them, and then applied alike to each, predictions too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from unet_fast.data.label_kinds import MAX_CLASS, Slices, distinct, kind_of, shown
from unet_fast.errors import InputError
from unet_fast.labels import Kind, check_kind
from unet_fast.notes import note

MAX_CLASSES = 1024  # a network has an output channel for each
_RARE = 0.05


@dataclass(frozen=True)
class Coding:
    """What the numbers of label files mean.

    kind, num_classes: as in :class:`unet_fast.data.Labels`.
    background, foreground: the two numbers of a mask; the background is None where a single number was found.
    threshold: of a mask with grey values, above which a number is foreground; None for two numbers.
    ignored: the number of pixels that count nowhere, or None.
    """

    kind: Kind
    num_classes: int
    background: int | None = None
    foreground: int | None = None
    threshold: float | None = None
    ignored: int | None = None

    @property
    def dtype(self) -> np.dtype:
        """Of decoded labels: uint8 for masks and up to 256 classes, else int32."""
        small = self.kind == "mask" or (self.kind == "classes" and self.num_classes <= 256)
        return np.dtype(np.uint8 if small else np.int32)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Whole numbers (N, H, W) as labels of :attr:`dtype`; 0 where ignored.

        Instance numbers beyond int32 are replaced by their rank.
        """
        if self.ignored is not None:
            values = np.where(values == self.ignored, values.dtype.type(0), values)
            if self.kind == "mask" and self.background not in (None, 0):
                values = np.where(values == 0, values.dtype.type(self.background), values)
        if self.kind == "mask":
            if self.threshold is not None:
                return (values > self.threshold).view(np.uint8)
            if self.foreground is None:
                return np.zeros(values.shape, np.uint8)
            return (values == self.foreground).view(np.uint8)
        if self.kind == "classes":
            return values.astype(self.dtype)
        if values.size == 0 or int(values.max()) <= np.iinfo(np.int32).max:
            return values.astype(np.int32)
        found, ranks = np.unique(values, return_inverse=True)
        return (ranks.reshape(values.shape) + int(found[0] != 0)).astype(np.int32)

    def left_out(self, values: np.ndarray) -> np.ndarray | None:
        """Which pixels count nowhere, (N, H, W) bool; None where all do."""
        if self.ignored is None:
            return None
        mask = values == self.ignored
        return mask if bool(mask.any()) else None


class LabelOptions(TypedDict, total=False):
    """What a user may say of label files; :func:`unet_fast.data.read_labels` says what it means."""

    kind: Kind | None
    num_classes: int | None
    ignore_index: int | None


def decide(
    stacks: Sequence[Slices],
    names: Sequence[str],
    path: object,
    kind: Kind | None = None,
    num_classes: int | None = None,
    ignore_index: int | None = None,
) -> Coding:
    """How to read these stacks, each a sequence of ``(H, W)`` whole numbers; ``names`` has one a slice of them all, for errors.

    ``kind``, ``num_classes`` and ``ignore_index`` are what the user says; the rest is detected, and what is uncertain is
    said in a note.
    """
    if kind is not None:
        check_kind(kind)
    if num_classes is not None and not 2 <= num_classes <= MAX_CLASSES:
        raise InputError(
            f"num_classes is {num_classes}, expected at least 2 (background and one class), at most {MAX_CLASSES}"
        )
    values = distinct(stacks)
    if ignore_index is not None:
        values = values[values != ignore_index]
    _check_not_negative(stacks, names, path, values, ignore_index)
    ignored = ignore_index
    if kind is None and num_classes is not None and num_classes > 2:
        kind = "classes"
    if ignored is None and kind != "instances":
        ignored = _void(stacks, values, path, kind, num_classes)
        values = values[values != ignored] if ignored is not None else values
    if len(values) == 0:
        raise InputError(
            f"{path} holds nothing but the ignored label {ignored}, so there is nothing to learn or to score"
        )
    if kind is None:
        counted = stacks if ignored is None else [_Without(stack, ignored) for stack in stacks]
        kind = kind_of(counted, values, path)
    if kind == "classes":
        return _classes(stacks, names, path, values, num_classes, ignored)
    if num_classes not in (None, 2):
        raise InputError(f"num_classes is {num_classes}, but labels of kind {kind!r} have 2 (background, foreground)")
    if kind == "instances":
        return Coding("instances", 2, ignored=ignored)
    return _mask(path, values, ignored)


class _Without(Sequence[np.ndarray]):
    """A stack whose pixels of ``number`` are 0, image by image."""

    def __init__(self, stack: Slices, number: int) -> None:
        self._stack, self._number = stack, number

    def __len__(self) -> int:
        return len(self._stack)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # slices are not taken
        image = self._stack[index]
        return np.where(image == self._number, image.dtype.type(0), image)


def _check_not_negative(
    stacks: Sequence[Slices],
    names: Sequence[str],
    path: object,
    values: np.ndarray,
    ignore_index: int | None,
) -> None:
    if len(values) and values[0] < 0:
        index = _slice_with(stacks, lambda image: bool((image == values[0]).any()))
        raise InputError(
            f"slice {index} ({names[index]}) of {path} holds the negative label {values[0]}; labels count from 0 (background): "
            f"renumber them, or give ignore_index={values[0]} (--ignore-index) if such pixels should not count"
        )


def _void(
    stacks: Sequence[Slices], values: np.ndarray, path: object, kind: Kind | None, num_classes: int | None
) -> int | None:
    """255 (or 65535) beside class numbers: pixels that nobody wanted to count, as rims in class maps often are."""
    from unet_fast.data.label_kinds import has_grey_rims

    top, rest = (int(values[-1]), values[:-1]) if len(values) > 2 else (0, values)
    if top not in (255, 65535) or rest[-1] > MAX_CLASS or rest[0] < 0 or has_grey_rims(stacks, values):
        return None
    if num_classes is not None and top < num_classes:
        return None
    voids = drawn = 0
    for image in (image for stack in stacks for image in stack):
        void = image == top
        voids += int(void.sum())
        drawn += int((~void & (image != 0)).sum())
    if drawn < _RARE * voids:
        if kind == "mask":
            return None
        raise InputError(
            f"{path} holds the labels {shown(values)}: a mask with {drawn} stray pixels, or classes with pixels of {top} that "
            f"should not count; give the kind mask (--label-kind mask), or ignore_index={top} (--ignore-index {top})"
        )
    if kind == "mask" and len(rest) > 2:
        return None
    note(f"{top} beside the labels {shown(rest)} is taken as ignored: {voids:,} pixels do not count", path)
    return top


def _classes(
    stacks: Sequence[Slices],
    names: Sequence[str],
    path: object,
    values: np.ndarray,
    num_classes: int | None,
    ignored: int | None,
) -> Coding:
    largest = int(values[-1])
    if num_classes is None and largest >= MAX_CLASSES:
        raise InputError(
            f"{path} holds the class numbers {shown(values)} up to {largest}, but a network has a channel for each number, at most "
            f"{MAX_CLASSES}; renumber the classes from 0"
        )
    if num_classes is not None and largest >= num_classes:
        index = _slice_with(stacks, lambda image: int(np.where(image == ignored, 0, image).max()) == largest)
        raise InputError(
            f"slice {index} ({names[index]}) of {path} holds the label {largest}, outside the classes "
            f"0 to {num_classes - 1}; give num_classes={largest + 1}, or correct the labels"
        )
    count = max(largest + 1, 2) if num_classes is None else num_classes
    absent = sorted(set(range(largest)) - {int(value) for value in values})
    if absent:
        note(
            f"the classes {shown(np.array(absent))} occur nowhere, only {shown(values)}; the numbers are kept, and the network "
            f"has {count} classes (renumber the labels if that is not intended)",
            path,
        )
    return Coding("classes", count, ignored=ignored)


def _mask(path: object, values: np.ndarray, ignored: int | None) -> Coding:
    """Of two numbers the larger is the foreground, a single one is it unless it is 0; grey ones are cut in the middle."""
    found = [int(value) for value in values]
    if len(found) == 1:
        return Coding("mask", 2, 0 if found[0] == 0 else None, found[0] or None, ignored=ignored)
    if len(found) == 2:
        if found[0] != 0:
            note(f"of the mask's two values {found[0]} and {found[1]} the larger is taken as the foreground", path)
        return Coding("mask", 2, found[0], found[1], ignored=ignored)
    if found[-1] <= MAX_CLASS:
        raise InputError(
            f"the mask {path} holds {len(found)} different values ({shown(values)}), expected two such as 0 and 255; "
            "threshold it, or give its kind (--label-kind)"
        )
    threshold = (found[0] + found[-1]) / 2
    note(
        f"a mask of {len(found)} grey values from {found[0]} to {found[-1]}; what is above {threshold:g} is foreground",
        path,
    )
    return Coding("mask", 2, found[0], found[-1], threshold, ignored)


def _slice_with(stacks: Sequence[Slices], holds: object) -> int:
    images = (image for stack in stacks for image in stack)
    return next((index for index, image in enumerate(images) if holds(image)), 0)  # type: ignore[operator]
