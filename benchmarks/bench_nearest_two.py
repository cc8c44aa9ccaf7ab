"""nearest_two against one EDT for each instance, for few and many instances, and its growth in the worst case.

python -m benchmarks.bench_nearest_two
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def beside_an_edt_a_cell(
    options: Options,
    op: Callable[[torch.Tensor], Any],
    tensor: torch.Tensor,
    recipes: Sequence[Callable[[np.ndarray], Any]],
    labels: np.ndarray,
) -> dict[str, Candidate]:
    """``op`` beside the usual recipe, with the transform of OpenCV and that of SciPy."""
    peers = {
        f"{name} EDT for each cell": Candidate(lambda recipe=recipe: recipe(labels), host=True)
        for name, recipe in zip(("an OpenCV", "a SciPy"), recipes, strict=True)
    }
    return {**options.ours(op.__name__, lambda: op(tensor)), **peers}


def beside_one_edt(
    options: Options,
    op: Callable[[torch.Tensor], Any],
    by_numpy: Callable[[np.ndarray], Any],
    tensors: Any,
    few: np.ndarray,
) -> dict[str, Candidate]:
    """``op`` for 60 and for 600 cells beside a single EDT of all cells."""
    name, mask = op.__name__, (few == 0).astype(np.uint8)
    return {
        "one binary OpenCV EDT (precise)": Candidate(lambda: opencv_edt(mask), host=True),
        **options.ours(name, lambda: op(tensors[0]), "60 cells"),
        **options.ours(name, lambda: op(tensors[1]), "600 cells"),
        f"unet_fast.numpy.{name}, 60 cells": Candidate(lambda: by_numpy(few), host=True, role="ours"),
    }


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
    for side in (small, 2 * small, 4 * small):
        labels = far_corners(side).to(options.device)
        suite.measure(
            f"{side}x{side}, two far corners", options.ours("nearest_two", lambda labels=labels: nearest_two(labels))
        )
    suite.measure(
        f"{small}x{small}",
        beside_one_edt(options, nearest_two, unet_fast.numpy.nearest_two, tensors, few),
    )
    suite.measure(
        f"{small}x{small}, 60 cells",
        beside_an_edt_a_cell(options, nearest_two, tensors[0], (by_opencv, by_scipy), few),
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
