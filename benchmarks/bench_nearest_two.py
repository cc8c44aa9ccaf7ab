"""nearest_two against one EDT for each instance, for few and many instances, and its growth in the worst case.

python -m benchmarks.bench_nearest_two
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

import unet_fast.numpy
from benchmarks.common import Suite
from tests.instance_maps import two_distances, voronoi_cells
from tests.tolerances import DISTANCE
from unet_fast.ops import nearest_two


def by_opencv(labels: np.ndarray) -> np.ndarray:
    masks = [(labels != label).astype(np.uint8) for label in np.unique(labels[labels != 0])]
    distances = np.stack([cv2.distanceTransform(m, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for m in masks])
    return np.partition(distances, 1, axis=0)[:2]


def far_corners(side: int) -> torch.Tensor:
    """Two instances of one pixel in opposite corners."""
    labels = torch.zeros(1, side, side, dtype=torch.int32)
    labels[0, 0, 0], labels[0, -1, -1] = 1, 2
    return labels


def main() -> None:
    cv2.setNumThreads(torch.get_num_threads())
    rng = np.random.default_rng(0)
    suite = Suite("nearest_two")
    few, many = (voronoi_cells(rng, (512, 512), n, 4.0) for n in (60, 600))
    tensors = [torch.from_numpy(labels)[None] for labels in (few, many)]
    for result, truth in zip(nearest_two(tensors[0]), two_distances(few[None]), strict=True):
        np.testing.assert_allclose(result, truth, **DISTANCE)
    mask = (few != 0).astype(np.uint8)
    suite.measure(
        "512x512",
        {
            "one binary OpenCV EDT (precise)": lambda: cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE),
            "nearest_two, 60 cells": lambda: nearest_two(tensors[0]),
            "nearest_two, 600 cells": lambda: nearest_two(tensors[1]),
            "unet_fast.numpy.nearest_two, 60 cells": lambda: unet_fast.numpy.nearest_two(few),
        },
    )
    suite.measure(
        "512x512, 60 cells",
        {
            "nearest_two": lambda: nearest_two(tensors[0]),
            "an OpenCV EDT for each cell": lambda: by_opencv(few),
            "a SciPy EDT for each cell": lambda: [distance_transform_edt(few != i) for i in np.unique(few[few != 0])],
        },
        rounds=3,
    )
    worst = {side: far_corners(side) for side in (512, 1024, 2048)}
    suite.measure(
        "two far corners",
        {f"{side}x{side}": lambda labels=labels: nearest_two(labels) for side, labels in worst.items()},
    )
    suite.finish()


if __name__ == "__main__":
    main()
