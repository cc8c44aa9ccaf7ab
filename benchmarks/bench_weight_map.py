"""weight_map against ONE binary EDT (OpenCV; CuPy on a GPU), against one EDT for each cell, and by the number of cells.

python -m benchmarks.bench_weight_map
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

import unet_fast.numpy
from benchmarks import peers
from benchmarks.bench_distance_transform import by_cupy
from benchmarks.bench_nearest_two import beside_an_edt_a_cell, beside_one_edt, crowded, opencv_edt
from benchmarks.common import Candidate, Options, Suite, run, sweep
from unet_fast.data.synthetic import crowded_cells
from unet_fast.ops import weight_map
from unet_fast.ops._tolerances import WEIGHT_MAP


def by_opencv(labels: np.ndarray) -> np.ndarray:
    """The usual recipe: an EDT for each cell, sorted."""
    cells = np.unique(labels[labels != 0])
    return by_distances(labels, [opencv_edt((labels != label).astype(np.uint8)) for label in cells])


def by_scipy(labels: np.ndarray) -> np.ndarray:
    """The same with SciPy."""
    return by_distances(labels, [distance_transform_edt(labels != i) for i in np.unique(labels[labels != 0])])


def by_distances(labels: np.ndarray, distances: list[np.ndarray]) -> np.ndarray:
    d1, d2 = np.partition(np.stack(distances), 1, axis=0)[:2]
    return 1 + np.where(labels == 0, 10 * np.exp(-((d1 + d2) ** 2) / 50), 0)


def by_cupy_cells(labels: torch.Tensor) -> dict[str, Any]:
    """The usual recipe on the GPU: CuPy's EDT for each cell of one image."""
    ndimage = peers.optional("cupyx.scipy.ndimage") if labels.is_cuda else None
    cupy = peers.optional("cupy") if labels.is_cuda else None
    if ndimage is None or cupy is None:
        return {}
    array = cupy.from_dlpack(labels)
    cells = [int(cell) for cell in labels.unique() if cell]

    def distances() -> Any:
        edt = [ndimage.distance_transform_edt(array != cell, float64_distances=False) for cell in cells]
        d1, d2 = cupy.partition(cupy.stack(edt), 1, axis=0)[:2]
        return 1 + cupy.where(array == 0, 10 * cupy.exp(-((d1 + d2) ** 2) / 50), 0)

    return {"a CuPy EDT for each cell": Candidate(distances, capture=False)}


def main(options: Options) -> None:
    cv2.setNumThreads(torch.get_num_threads())
    rng = np.random.default_rng(0)
    side = options.side(512)
    few, many = (crowded_cells(rng, (side, side), n, 4.0) for n in (60, 600))
    mask = (few == 0).astype(np.uint8)
    tensors = [torch.from_numpy(labels)[None].to(options.device) for labels in (few, many)]
    batch = torch.stack([tensors[0][0]] * (16 if options.device == "cuda" else 8))
    # the truth for many cells takes seconds
    for labels, tensor in list(zip((few, many), tensors, strict=True))[: 1 if options.quick else 2]:
        np.testing.assert_allclose(weight_map(tensor)[0].cpu(), by_opencv(labels), **WEIGHT_MAP)
    suite = Suite("weight_map", options)
    suite.measure(
        f"{side}x{side}",
        {
            **beside_one_edt(options, weight_map, unet_fast.numpy.weight_map, tensors, few),
            **options.ours("weight_map", lambda: weight_map(tensors[0], sigma=20.0), "60 cells, sigma 20"),
        },
    )
    suite.measure(
        f"{len(batch)} x {side}x{side}, 60 cells each",
        {
            f"{len(batch)} binary OpenCV EDTs": Candidate(lambda: [opencv_edt(mask) for _ in batch], host=True),
            **options.ours("weight_map", lambda: weight_map(batch)),
            **by_cupy((batch == 0).byte()),
        },
        least_bytes=8.0 * batch.numel(),
    )
    suite.measure(
        f"{side}x{side}, 60 cells",
        {
            **beside_an_edt_a_cell(options, weight_map, tensors[0], (by_opencv, by_scipy), few),
            **by_cupy_cells(tensors[0][0]),
        },
        rounds=3,
    )
    suite.finish()

    def sizes(n: int, side: int) -> tuple[dict[str, Any], float]:
        cells, labels = crowded(rng, n, side, options.device)
        binary = (cells == 0).astype(np.uint8)
        return {
            "one binary OpenCV EDT an image": Candidate(lambda: [opencv_edt(binary) for _ in range(n)], host=True),
            **options.ours("weight_map", lambda: weight_map(labels)),
        }, 8.0 * labels.numel()

    sweep("weight_map", options, 1 << (26 if options.device == "cuda" else 24), sizes)


if __name__ == "__main__":
    run(main)
