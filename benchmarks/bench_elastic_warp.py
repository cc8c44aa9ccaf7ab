"""elastic_warp of an image (bilinear) and its labels (nearest) by one 3x3 bicubic field, against OpenCV and others.

python -m benchmarks.bench_elastic_warp
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import elasticdeform
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates

from benchmarks.common import Suite
from unet_fast.ops import elastic_warp

SIZE = 512


def by_opencv(image: np.ndarray, labels: np.ndarray, points: np.ndarray, grid: np.ndarray) -> tuple[Any, Any]:
    """The usual recipe: resize the control points to a field, add the pixel grid, remap twice."""
    field = cv2.resize(points, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    y, x = grid[0] + field[..., 0], grid[1] + field[..., 1]
    mirrored = {"borderMode": cv2.BORDER_REFLECT_101}
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, **mirrored), cv2.remap(labels, x, y, cv2.INTER_NEAREST, **mirrored)


def by_grid_sample(image: torch.Tensor, labels: torch.Tensor, points: torch.Tensor, grid: torch.Tensor) -> Any:
    """PyTorch alone: labels have to become floats and back."""
    field = F.interpolate(points, (SIZE, SIZE), mode="bicubic", align_corners=True)
    where = ((grid + field[0]).flip(0).permute(1, 2, 0)[None] * (2 / (SIZE - 1))) - 1
    options = {"padding_mode": "reflection", "align_corners": True}
    warped = F.grid_sample(labels.float(), where, mode="nearest", **options)
    return F.grid_sample(image, where, **options), warped.to(labels.dtype)


def by_scipy(image: np.ndarray, labels: np.ndarray, points: np.ndarray, grid: np.ndarray) -> tuple[Any, Any]:
    """map_coordinates with the same field."""
    where = grid + cv2.resize(points, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
    return map_coordinates(image, where, order=1, mode="mirror"), map_coordinates(labels, where, order=0, mode="mirror")


def main() -> None:
    cv2.setNumThreads(torch.get_num_threads())
    rng = np.random.default_rng(0)
    points = rng.normal(0, 10, (3, 3, 2)).astype(np.float32)
    image = rng.random((SIZE, SIZE), dtype=np.float32)
    labels = rng.integers(0, 60, (SIZE, SIZE)).astype(np.uint8)
    grid = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    displacement = torch.from_numpy(points.transpose(2, 0, 1)[None].copy())
    image_tensor, label_tensor = (torch.from_numpy(array)[None, None] for array in (image, labels))
    grid_tensor = torch.from_numpy(grid)
    interpolation = ("bilinear", "nearest")

    def ours() -> Any:
        return elastic_warp((image_tensor, label_tensor), displacement, interpolation=interpolation)

    compiled = torch.compile(by_grid_sample)
    truth = by_grid_sample(image_tensor, label_tensor, displacement, grid_tensor)
    for warped, expected in zip(ours(), truth, strict=True):
        # float32 coordinates: a pixel in a thousand may round to the other neighbour
        assert (warped.float() - expected.float()).abs().gt(1e-3).float().mean() < 2e-3
    candidates: dict[str, Callable[[], Any]] = {
        "elastic_warp": ours,
        "OpenCV resize + 2 remap, float32 image": lambda: by_opencv(image, labels, points, grid),
        "OpenCV resize + 2 remap, uint8 image": lambda: by_opencv(labels, labels, points, grid),
        "torch interpolate + 2 grid_sample": lambda: by_grid_sample(
            image_tensor, label_tensor, displacement, grid_tensor
        ),
        "the same, torch.compile": lambda: compiled(image_tensor, label_tensor, displacement, grid_tensor),
        "SciPy map_coordinates": lambda: by_scipy(image, labels, points, grid),
        "elasticdeform, order 1 and 0": lambda: elasticdeform.deform_grid(
            [image, labels], points.transpose(2, 0, 1), order=[1, 0], mode="mirror"
        ),
    }
    suite = Suite("elastic_warp")
    suite.measure(f"{SIZE}x{SIZE}, float32 image + uint8 labels", candidates)
    suite.finish()


if __name__ == "__main__":
    main()
