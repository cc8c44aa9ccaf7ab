"""Synthetic microscopy with exact truth: EM-like membranes and touching fluorescent nuclei.

Made for demonstrations, tests and benchmarks that need labelled images without a download. A global threshold does not
solve them: organelles are as dark as membranes, nuclei differ in brightness, the light is uneven.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from unet_fast.errors import InputError


def membranes(
    num_images: int, size: tuple[int, int] = (256, 256), seed: int = 0, cells: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A stack of consecutive EM-like slices through neurites that are separated by thin dark membranes.

    num_images: slices; a longer stack of the same seed begins with the shorter one.
    size: ``(H, W)``. cells: about how many profiles a slice shows, one for 2000 pixels if not given.

    Returns (images uint8 ``(N, H, W)``, instances int32 ``(N, H, W)``). Instances are numbered from 1 in each slice, 0
    is membrane (about a fifth of the pixels). Each instance is 4-connected and no two touch, so the instances are
    exactly the 4-connected components of ``instances > 0``.

    Raises :class:`InputError` when a count or size is below 1 or the seed is negative.
    """
    from unet_fast.data._membranes import Tissue

    _check(num_images, size, seed)
    if cells is not None and cells < 1:
        raise InputError(f"cells is {cells}, expected at least 1")
    tissue = Tissue(size, seed, cells)
    return _collect(tissue.draw(z) for z in range(num_images))


def nuclei(num_images: int, size: tuple[int, int] = (256, 256), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Independent images of fluorescent nuclei, many of them touching.

    num_images: images; a longer series of the same seed begins with the shorter one. size: ``(H, W)``.

    Returns (images uint8 ``(N, H, W)``, instances int32 ``(N, H, W)``). Instances are numbered from 1 in each image, 0
    is background; each is 4-connected. Debris and nuclei that lie out of focus are not labelled.

    Raises :class:`InputError` when a count or size is below 1 or the seed is negative.
    """
    from unet_fast.data._nuclei import draw

    _check(num_images, size, seed)
    return _collect(draw(np.random.default_rng([seed, 2, index]), size) for index in range(num_images))


def _collect(slices: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    images, instances = zip(*slices, strict=True)
    return np.stack(images), np.stack(instances)


def crowded_cells(rng: np.random.Generator, size: tuple[int, int], num_cells: int, gap: float) -> np.ndarray:
    """Instances (H, W) int32, numbered from 1: Voronoi cells of random points, with gaps of about ``gap`` pixels."""
    from scipy.spatial import cKDTree

    pixels = np.indices(size).reshape(2, -1).T
    distance, nearest = cKDTree(rng.random((num_cells, 2)) * size).query(pixels, k=2)
    cells = np.where(distance[:, 1] - distance[:, 0] > gap, nearest[:, 0] + 1, 0)
    return cells.reshape(size).astype(np.int32)


def _check(num_images: int, size: tuple[int, int], seed: int) -> None:
    if num_images < 1:
        raise InputError(f"num_images is {num_images}, expected at least 1")
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size is {size}, expected (height, width), both at least 1")
    if seed < 0:
        raise InputError(f"seed is {seed}, expected a number that is not negative")
