"""Random truth and noisy predictions for the tests of metrics."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage import measure


def noisy(rng: np.random.Generator, truth: np.ndarray, noise: float = 0.35) -> np.ndarray:
    """A blurred, noisy prediction of ``truth > 0``."""
    p = ndimage.gaussian_filter((truth > 0).astype(np.float32), (0, 1, 1)) + rng.normal(0, noise, truth.shape)
    return np.clip(p, 0, 1).astype(np.float32)


def random_truth(rng: np.random.Generator, n: int, h: int, w: int) -> np.ndarray:
    return np.stack([ndimage.gaussian_filter(rng.normal(size=(h, w)), 1.2) > -0.1 for _ in range(n)])


def instances_of(mask: np.ndarray) -> np.ndarray:
    """Instances by scikit-image, not by the code under test."""
    return np.stack([measure.label(m, connectivity=1) for m in mask])
