"""What labels mean, for reading, training and scoring alike: their kinds, their instances, and pixels that are ignored.

An *ignored* pixel is one that neither a loss nor a score counts. Beside labels it is a boolean mask named ``ignored``; in
a map of classes it is the value :data:`IGNORED`, which losses and scores get as their ``ignore_index``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from unet_fast.errors import InputError

Kind = Literal["mask", "classes", "instances"]
KINDS: tuple[Kind, ...] = get_args(Kind)
IGNORED = -100  # torch's own default, and that of all losses


def check_kind(kind: str, choices: Sequence[str] = KINDS, name: str = "kind") -> None:
    """Raise unless ``kind`` is one of the kinds of labels that are possible here."""
    if kind not in choices:
        raise InputError(f"{name} is {kind!r}, expected one of {', '.join(map(repr, choices))}")


def components(mask: NDArray[Any]) -> NDArray[np.int32]:
    """4-connected components of what is not 0 in a 2-D map, numbered from 1."""
    from scipy import ndimage

    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=labels)  # SciPy's default structure joins the four edge neighbours only
    return labels


def count_classes(classes: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """Pixels of each class, of whole numbers or booleans: at least ``num_classes`` numbers, as many as there are classes."""
    if classes.dtype != np.bool_:
        return np.bincount(classes.ravel(), minlength=num_classes)
    # of booleans bincount would make integers of 64 bits first
    counts = np.zeros(max(2, num_classes), np.int64)
    counts[1] = np.count_nonzero(classes)
    counts[0] = classes.size - counts[1]
    return counts
