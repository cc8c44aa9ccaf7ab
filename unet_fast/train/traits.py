"""What the defaults of a run take from its images and objects, besides the kind of the labels."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from unet_fast.data import Dataset, Pair
from unet_fast.train.recipe import Recipe
from unet_fast.train.windows import object_radius

_FEWEST_IMAGES = 4  # of which a spread says something
_PERCENTILE = 95.0


class Traits(TypedDict):
    """Arguments of :func:`unet_fast.train.default_config`; None: not known."""

    object_radius: float | None
    grey_spread: float | None
    image_side: int | None


def traits(training: Pair | Dataset, recipe: Recipe | None = None) -> Traits:
    """:func:`object_radius`, :func:`grey_spread` and the longest side of the training images.

    A recipe takes none of them, and nothing is measured.
    """
    if recipe is not None:
        return {"object_radius": None, "grey_spread": None, "image_side": None}
    sizes = [item.size for item in training.items] if isinstance(training, Dataset) else [training.images.shape[2:]]
    side = max(length for size in sizes for length in size)
    return {"object_radius": object_radius(training), "grey_spread": grey_spread(training), "image_side": side}


def grey_spread(training: Pair | Dataset) -> float | None:
    """How far images differ in what a normalised grey value means; None for fewer than four, and for windows that stay in files.

    The standard deviation, over the images, of the 95th percentile of their grey values, after each image was brought to mean 0 and
    standard deviation 1; the mean over the channels. Images of one kind, taken alike, are below 0.3, whatever their brightness. In a
    collection of few bright objects here and many dim ones there it is about 1: the same normalised value is a dim object in one
    image and background in another.

    Equivalent to::

        z = (images - images.mean((2, 3), keepdims=True)) / images.std((2, 3), keepdims=True)
        np.percentile(z, 95, axis=(2, 3)).std(0).mean()
    """
    if isinstance(training, Dataset) or training.normalized or len(training) < _FEWEST_IMAGES:
        return None
    heights = [[_height(channel) for channel in image] for image in training.images]
    return float(np.std(heights, axis=0).mean())


def _height(pixels: np.ndarray) -> float:
    """The percentile of one channel (H, W), in standard deviations above its mean; 0 for a constant one."""
    deviation = float(pixels.std(dtype=np.float64))
    height = float(np.percentile(pixels, _PERCENTILE)) - float(pixels.mean(dtype=np.float64))
    return height / deviation if deviation > 0 else 0.0
