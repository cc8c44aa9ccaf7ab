"""What a network learns so that touching objects come apart: background, the rim of each object, and its core."""

from __future__ import annotations

import numpy as np

from unet_fast.data.touching import separate_touching

BACKGROUND, RIM, CORE = range(3)
NUM_CLASSES = 3

# of the median of the objects' radii: what a network mistakes by grows with the objects, thin ones must keep a core
_RIM_SHARE, _LEAST_RIM = 0.15, 2.0


def rims_and_cores(instances: np.ndarray) -> tuple[np.ndarray, float]:
    """(classes (N, H, W) uint8, width of the rim in pixels) of instances (N, H, W), 0 = background.

    Touching objects are separated by a ridge of background (:func:`unet_fast.data.touching.separate_touching`). With ``d`` the
    Euclidean distance of a pixel to the nearest one outside of its object, ``r`` the largest ``d`` of its object and ``width`` =
    max(2, 0.15 x the median of all ``r``), the core is where ``d > min(width, r / 2)``. So every object has a core, whatever
    its size, and two cores are at least four pixels further apart than their objects.
    """
    from unet_fast.numpy import distance_transform

    separate = separate_touching(instances)
    distances, radii = [], []
    for image in separate:
        distance = distance_transform((image > 0)[None])[0]
        radius = np.zeros(int(image.max(initial=0)) + 1, np.float32)
        np.maximum.at(radius, image.ravel(), distance.ravel())
        distances.append(distance)
        radii.append(radius)
    known = np.concatenate([radius[1:][radius[1:] > 0] for radius in radii])
    width = max(_LEAST_RIM, _RIM_SHARE * float(np.median(known))) if known.size else _LEAST_RIM
    classes = np.zeros(instances.shape, np.uint8)
    for image, distance, radius, out in zip(separate, distances, radii, classes, strict=True):
        out[image > 0] = RIM
        out[(image > 0) & (distance > np.minimum(width, radius / 2)[image])] = CORE
    return classes, width
