"""Smooth random fields, the raw material of the synthetic images."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=64)
def _spline_basis(length: int, spacing: float) -> np.ndarray:
    """Matrix ``(length, controls)`` of the uniform cubic B-spline with a control point every ``spacing`` pixels."""
    position = np.arange(length) / spacing
    cell = np.floor(position).astype(int)
    t = position - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    basis = np.zeros((length, int(cell[-1]) + 4), np.float32)
    for k in range(4):
        basis[np.arange(length), cell + k] = weights[:, k]
    basis.flags.writeable = False
    return basis


def smooth_field(rng: np.random.Generator, size: tuple[int, int], spacing: float) -> np.ndarray:
    """Gaussian field ``(H, W)`` float32, mean 0, standard deviation about 1, that varies over about ``spacing`` pixels.

    A cubic B-spline surface over white noise: two small matrix products, whatever the spacing.
    """
    rows, columns = _spline_basis(size[0], spacing), _spline_basis(size[1], spacing)
    control = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
    # the mean over t of the sum of the squared weights is 151/315 an axis
    return (rows @ control @ columns.T) * np.float32(315 / 151)


def stamp(image: np.ndarray, patch: np.ndarray, y: int, x: int, combine: np.ufunc = np.add) -> None:
    """Combine ``patch`` into ``image`` in place, centred at ``(y, x)`` and clipped at the border."""
    top, left = y - patch.shape[0] // 2, x - patch.shape[1] // 2
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + patch.shape[0], image.shape[0]), min(left + patch.shape[1], image.shape[1])
    if y0 < y1 and x0 < x1:
        view = image[y0:y1, x0:x1]
        combine(view, patch[y0 - top : y1 - top, x0 - left : x1 - left], out=view)
