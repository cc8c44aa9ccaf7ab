"""Files with predictions, decoded by the rules by which the labels beside them were: truth scored against itself is perfect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unet_fast.data.label_codes import Coding
from unet_fast.data.label_kinds import MAX_CLASS, distinct, shown
from unet_fast.data.pages import Pages
from unet_fast.errors import InputError

_FULL = (1, 255, 65535)  # what programs write for "foreground"


def prediction_pages(files: Sequence[Path]) -> Pages:
    """Prediction files, opened like label files: the indices of a palette count, and a mask in alpha."""
    return Pages(files, labels=True)


def decode_predictions(pages: Pages, coding: Coding, path: object) -> list[np.ndarray]:
    """Every page as ``(K, H, W)`` probabilities, or as ``(1, H, W)`` labels in the numbers of ``coding``.

    Colour images whose channels agree are grey. Whole numbers mean what the same numbers mean in the labels: of a mask,
    background and foreground come out as 0 and 1, whatever they are stored as; ignored pixels come out as 0. Other values stay
    as they are, for :func:`unet_fast.evaluate.evaluate` to tell apart.

    Raises :class:`InputError` for colours that differ from channel to channel.
    """
    images = [_one_channel(pages[index], pages.colour(index), pages.names[index], path) for index in range(len(pages))]
    if any(len(image) > 1 for image in images):
        return images
    if not all(_whole(image) for image in images):
        return images
    images = [image.astype(np.int64) if image.dtype.kind == "f" else image for image in images]
    return [image.astype(np.uint8) if image.dtype == np.bool_ else image for image in _decoded(images, coding, path)]


def _decoded(images: list[np.ndarray], coding: Coding, path: object) -> list[np.ndarray]:
    values = distinct(images)
    known = values if coding.ignored is None else values[values != coding.ignored]
    if coding.ignored is not None and len(known) < len(values):
        images = [
            np.where(image == coding.ignored, image.dtype.type(known[0] if len(known) else 0), image)
            for image in images
        ]
        values = known
    if coding.kind == "mask":
        return _mask(images, values, coding)
    if coding.kind == "classes" and len(values) and coding.num_classes <= values[-1] <= MAX_CLASS:
        raise InputError(
            f"{path} holds the classes {shown(values)} up to {values[-1]}, the labels have {coding.num_classes}, 0 to "
            f"{coding.num_classes - 1}; were they made for other labels?"
        )
    two = {int(value) for value in values} - {0}
    if len(two) == 1 and two <= {255, 65535} and coding.kind == "instances":
        return [(image != 0) for image in images]
    return images


def _mask(images: list[np.ndarray], values: np.ndarray, coding: Coding) -> list[np.ndarray]:
    """Masks as 0 and 1: by the two numbers of the labels where these are the only ones, else by their own two."""
    found = {int(value) for value in values}
    if found <= {coding.background, coding.foreground}:
        return [image == coding.foreground for image in images]
    if coding.threshold is not None and images[0].dtype != np.uint8 and found - {0, 1}:
        return [image > coding.threshold for image in images]
    if len(found) == 1:
        return [np.full(image.shape, image.flat[0] in (*_FULL, coding.foreground)) for image in images]
    if len(found) == 2:
        return [image == max(found) for image in images]
    return images  # probabilities in steps of 1/255, or objects that are numbered


def _whole(image: np.ndarray) -> bool:
    if image.dtype.kind != "f":
        return True
    with np.errstate(invalid="ignore"):
        return bool(((image == np.rint(image)) & (np.abs(image) < 2**53)).all())


def _one_channel(image: np.ndarray, colour: bool, name: str, path: object) -> np.ndarray:
    if len(image) == 1 or bool((image == image[:1]).all()):
        return image[:1]
    if colour:
        raise InputError(
            f"the prediction {name} of {path} has {len(image)} colours that differ; expected one number per pixel: save it as a grey or "
            "indexed image, or classes as one channel of probabilities each"
        )
    return image
