"""Label maps for the tests of the distance ops, and their truth: one SciPy EDT for each instance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from unet_fast.ops import use_backend


def random_instances(rng: np.random.Generator, shape: Sequence[int], num_labels: int, density: float) -> np.ndarray:
    """Scattered pixels with random labels: everything from single dots to a full mosaic."""
    labels = rng.integers(1, num_labels + 1, size=shape)
    return (labels * (rng.random(shape) < density)).astype(np.int32)


def two_distances(labels: np.ndarray, spacing: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """d1, d2 in float64 of a batch of label maps."""
    first, second = np.full(labels.shape, np.inf), np.full(labels.shape, np.inf)
    for n, image in enumerate(labels):
        for label in np.unique(image[image != 0]):
            here = distance_transform_edt(image != label, sampling=spacing)
            second[n] = np.minimum(second[n], np.maximum(first[n], here))
            first[n] = np.minimum(first[n], here)
    return first, second


def mask_distances(masks: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """The distance to the nearest zero in float64 of a batch of masks; infinite where there is none."""
    out = np.full(masks.shape, np.inf)
    for n, mask in enumerate(masks):
        if mask.size and not mask.all():
            out[n] = distance_transform_edt(mask, sampling=spacing)
    return out


def weights_of(
    labels: np.ndarray,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: str | tuple[float, float] | None = None,
    inside: bool = False,
) -> np.ndarray:
    """The paper's weight map on SciPy's distances, in float64."""
    d1, d2 = two_distances(labels)
    border = w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    if not inside:
        border[labels != 0] = 0
    if class_weights != "balanced":
        return np.where(labels != 0, *((class_weights or (1.0, 1.0))[::-1])) + border
    for n, image in enumerate(labels):
        counts = {False: np.sum(image == 0), True: np.sum(image != 0)}
        present = sum(count > 0 for count in counts.values())
        for cells, count in counts.items():
            if count:
                border[n][(image != 0) == cells] += image.size / (present * count)
    return border


def assert_distances(result: torch.Tensor | np.ndarray, truth: np.ndarray, tolerance: dict[str, float]) -> None:
    result = torch.as_tensor(result)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), torch.from_numpy(truth), **tolerance)


def real_instances(folder: Path, name: str, pages: int) -> np.ndarray:
    """The first label maps of one of the real stacks."""
    import tifffile

    return np.stack([tifffile.imread(folder / name / "instances.tif", key=page) for page in range(pages)])


def check_host_backends(call, truth, tolerance):
    """Each backend of the CPU gives the reference's result."""
    for backend in ("cpp", "reference"):
        with use_backend(backend):
            torch.testing.assert_close(call(), truth, **tolerance)
