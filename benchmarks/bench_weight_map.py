"""weight_map of a 512x512 image against one binary OpenCV EDT, one EDT for each cell, and the number of cells.

python -m benchmarks.bench_weight_map
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

import unet_fast.numpy
from benchmarks.common import Suite
from tests.instance_maps import voronoi_cells
from tests.tolerances import WEIGHT_MAP
from unet_fast.ops import weight_map


def by_opencv(labels: np.ndarray) -> np.ndarray:
    """The usual recipe: an EDT for each cell, sorted."""
    masks = [(labels != label).astype(np.uint8) for label in np.unique(labels[labels != 0])]
    return by_distances(labels, [cv2.distanceTransform(m, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for m in masks])


def by_scipy(labels: np.ndarray) -> np.ndarray:
    """The same with SciPy."""
    return by_distances(labels, [distance_transform_edt(labels != i) for i in np.unique(labels[labels != 0])])


def by_distances(labels: np.ndarray, distances: list[np.ndarray]) -> np.ndarray:
    d1, d2 = np.partition(np.stack(distances), 1, axis=0)[:2]
    return 1 + np.where(labels == 0, 10 * np.exp(-((d1 + d2) ** 2) / 50), 0)


def main() -> None:
    cv2.setNumThreads(torch.get_num_threads())
    rng = np.random.default_rng(0)
    few, many = (voronoi_cells(rng, (512, 512), n, 4.0) for n in (60, 600))
    mask = (few == 0).astype(np.uint8)
    tensors = [torch.from_numpy(labels)[None] for labels in (few, many)]
    batch = torch.stack([tensors[0][0]] * 8)
    for labels, tensor in zip((few, many), tensors, strict=True):
        np.testing.assert_allclose(weight_map(tensor)[0], by_opencv(labels), **WEIGHT_MAP)
    suite = Suite("weight_map")
    suite.measure(
        "512x512",
        {
            "one binary OpenCV EDT (precise)": lambda: cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE),
            "weight_map, 60 cells": lambda: weight_map(tensors[0]),
            "weight_map, 600 cells": lambda: weight_map(tensors[1]),
            "weight_map, 60 cells, sigma 20": lambda: weight_map(tensors[0], sigma=20.0),
            "weight_map, 60 cells, batch of 8": lambda: weight_map(batch),
            "unet_fast.numpy.weight_map, 60 cells": lambda: unet_fast.numpy.weight_map(few),
        },
    )
    suite.measure(
        "512x512, 60 cells",
        {
            "weight_map": lambda: weight_map(tensors[0]),
            "an OpenCV EDT for each cell": lambda: by_opencv(few),
            "a SciPy EDT for each cell": lambda: by_scipy(few),
        },
        rounds=3,
    )
    suite.finish()


if __name__ == "__main__":
    main()
