"""What a network learns so that touching objects come apart: background, the rim of each object, and its core."""

from __future__ import annotations

import numpy as np

from unet_fast.errors import InputError
from unet_fast.labels import Kind

BACKGROUND, RIM, CORE = range(3)
NUM_CLASSES = 3

# of the median of the objects' radii: what a network mistakes by grows with the objects, thin ones must keep a core
_RIM_SHARE, _LEAST_RIM = 0.15, 2.0


def check_kind(kind: Kind) -> None:
    """Raise unless labels of this kind tell objects apart."""
    if kind == "classes":
        raise InputError("separate is 'cores', which needs labels that number objects, but these are classes")


def median_radius(instances: np.ndarray) -> float | None:
    """The median of the radii of instances (N, H, W) in pixels; None for none.

    The radius of an object is the largest Euclidean distance of its pixels to the nearest background; touching ones are to be
    separate (:func:`unet_fast.data.touching.separate_touching`).
    """
    radii = [_distances(image)[1][1:] for image in instances]
    known = np.concatenate([radius[radius > 0] for radius in radii] or [np.zeros(0)])
    return float(np.median(known)) if known.size else None


def rim_width(instances: np.ndarray) -> float:
    """Width of the rim in pixels, of instances (N, H, W): max(2, 0.15 x their :func:`median_radius`)."""
    return max(_LEAST_RIM, _RIM_SHARE * (median_radius(instances) or 0.0))


def classes_of(instances: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, float]:
    """:func:`rims_and_cores` of a stack (N, H, W), with its :func:`rim_width`; ``drawn`` are the labels as they were, 0 = background."""
    width = rim_width(instances)
    classes = [rims_and_cores(image, width, labels > 0) for image, labels in zip(instances, drawn, strict=True)]
    return np.stack(classes), width


def rims_and_cores(instances: np.ndarray, width: float, foreground: np.ndarray) -> np.ndarray:
    """Classes (H, W) uint8 of instances (H, W), 0 = background, of which none touch; ``foreground`` (H, W) bool are the objects as
    they were drawn. What a ridge between touching ones took is rim, so that what grows out of the cores is as large as what was drawn.

    With ``d`` the Euclidean distance of a pixel to the nearest background and ``r`` the largest ``d`` of its object, the core is
    where ``d > min(width, r / 2)``. So every object has a core, whatever its size, and of two neighbours that are not tiny the
    cores are ``2 * width`` further apart than the objects: a network that errs by a pixel still keeps them apart.
    """
    distance, radius = _distances(instances)
    classes = np.where(foreground, np.uint8(RIM), np.uint8(BACKGROUND))
    classes[(instances > 0) & (distance > np.minimum(width, radius / 2)[instances])] = CORE
    return classes


def _distances(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distance to the background (H, W), the largest of every label)."""
    from unet_fast.numpy import distance_transform

    distance = distance_transform((image > 0)[None])[0]
    radius = np.zeros(int(image.max(initial=0)) + 1, np.float32)
    np.maximum.at(radius, image.ravel(), distance.ravel())
    return distance, radius
