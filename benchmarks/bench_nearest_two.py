"""nearest_two against one EDT for each instance, for few and many instances, and its growth in the worst case.

python -m benchmarks.bench_nearest_two
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

import unet_fast.numpy
from benchmarks.common import Candidate, Options, Suite, run, sweep
from unet_fast.data.synthetic import crowded_cells
from unet_fast.ops import nearest_two
from unet_fast.ops._tolerances import DISTANCE


def opencv_edt(mask: np.ndarray) -> np.ndarray:
    return cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def by_opencv(labels: np.ndarray) -> np.ndarray:
    masks = [(labels != label).astype(np.uint8) for label in np.unique(labels[labels != 0])]
    return np.partition(np.stack([opencv_edt(m) for m in masks]), 1, axis=0)[:2]


def by_scipy(labels: np.ndarray) -> list[np.ndarray]:
    return [distance_transform_edt(labels != label) for label in np.unique(labels[labels != 0])]


def edt_of_each_cell(
    opencv: Callable[[np.ndarray], Any], scipy: Callable[[np.ndarray], Any], labels: np.ndarray
) -> dict[str, Candidate]:
    """The usual recipe as a peer, with the transform of each library."""
    recipes = {"an OpenCV EDT for each cell": opencv, "a SciPy EDT for each cell": scipy}
    return {name: Candidate(lambda recipe=recipe: recipe(labels), host=True) for name, recipe in recipes.items()}


def crowded(rng: np.random.Generator, batch: int, side: int, device: str) -> tuple[np.ndarray, torch.Tensor]:
    """An image of cells, one in 64 x 64 pixels, and a batch of it on the device."""
    cells = crowded_cells(rng, (side, side), side * side // 4096, 4.0)
    return cells, torch.from_numpy(cells).expand(batch, -1, -1).contiguous().to(device)


def far_corners(side: int) -> torch.Tensor:
    """Two instances of one pixel in opposite corners."""
    labels = torch.zeros(1, side, side, dtype=torch.int32)
    labels[0, 0, 0], labels[0, -1, -1] = 1, 2
    return labels


def main(options: Options) -> None:
    cv2.setNumThreads(torch.get_num_threads())
    rng = np.random.default_rng(0)
    suite = Suite("nearest_two", options)
    small = options.side(512)
    few, many = (crowded_cells(rng, (small, small), n, 4.0) for n in (60, 600))
    tensors = [torch.from_numpy(labels)[None].to(options.device) for labels in (few, many)]
    for result, truth in zip(nearest_two(tensors[0]), np.partition(by_scipy(few), 1, axis=0)[:2], strict=True):
        np.testing.assert_allclose(result[0].cpu(), truth, **DISTANCE)
    mask = (few != 0).astype(np.uint8)
    for side in (small, 2 * small, 4 * small):
        labels = far_corners(side).to(options.device)
        suite.measure(
            f"{side}x{side}, two far corners", options.ours("nearest_two", lambda labels=labels: nearest_two(labels))
        )
    suite.measure(
        f"{small}x{small}",
        {
            "one binary OpenCV EDT (precise)": Candidate(lambda: opencv_edt(mask), host=True),
            **options.ours("nearest_two", lambda: nearest_two(tensors[0]), "60 cells"),
            **options.ours("nearest_two", lambda: nearest_two(tensors[1]), "600 cells"),
            "unet_fast.numpy.nearest_two, 60 cells": Candidate(
                lambda: unet_fast.numpy.nearest_two(few), host=True, role="ours"
            ),
        },
    )
    suite.measure(
        f"{small}x{small}, 60 cells",
        {
            **options.ours("nearest_two", lambda: nearest_two(tensors[0])),
            **edt_of_each_cell(by_opencv, by_scipy, few),
        },
        rounds=3,
    )
    suite.finish()

    def sizes(batch: int, side: int) -> tuple[dict[str, Any], float]:
        cells, labels = crowded(rng, batch, side, options.device)
        binary = (cells != 0).astype(np.uint8)
        opencv = Candidate(lambda: [opencv_edt(binary) for _ in range(batch)], host=True)
        ours = options.ours("nearest_two", lambda: nearest_two(labels))
        return {"one binary OpenCV EDT an image": opencv, **ours}, 12.0 * labels.numel()

    sweep("nearest_two", options, 1 << (26 if options.device == "cuda" else 24), sizes)


if __name__ == "__main__":
    run(main)
