"""distance_transform against OpenCV's precise EDT and SciPy's, and its growth in the worst case.

python -m benchmarks.bench_distance_transform
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from benchmarks.common import Suite
from tests.instance_maps import voronoi_cells
from tests.tolerances import DISTANCE
from unet_fast.ops import distance_transform


def far_zero(side: int) -> np.ndarray:
    """All ones but for one corner: the distances reach across the whole image."""
    mask = np.ones((side, side), np.uint8)
    mask[-1, -1] = 0
    return mask


def candidates(mask: np.ndarray, *, scipy: bool = True) -> dict[str, Callable[[], Any]]:
    tensor = torch.from_numpy(mask)[None]
    np.testing.assert_allclose(distance_transform(tensor)[0], distance_transform_edt(mask), **DISTANCE)
    calls: dict[str, Callable[[], Any]] = {
        "OpenCV (precise)": lambda: cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE),
        "distance_transform": lambda: distance_transform(tensor),
    }
    return calls | ({"SciPy": lambda: distance_transform_edt(mask)} if scipy else {})


def main() -> None:
    cv2.setNumThreads(torch.get_num_threads())
    rng = np.random.default_rng(0)
    suite = Suite("distance_transform")
    for cells in (60, 600):
        labels = voronoi_cells(rng, (512, 512), cells, 4.0)
        suite.measure(f"512x512, inside {cells} cells", candidates((labels != 0).astype(np.uint8)))
    sparse = voronoi_cells(rng, (512, 512), 60, 30.0)
    suite.measure("512x512, between small cells", candidates((sparse == 0).astype(np.uint8)))
    for side in (512, 1024, 2048):
        suite.measure(f"{side}x{side}, one far zero", candidates(far_zero(side), scipy=False))
    volume = torch.from_numpy(rng.random((1, 64, 128, 128)) > 0.001)
    array = volume[0].numpy()
    suite.measure(
        "64x128x128, 0.1 % zeros, spacing (3, 1, 1)",
        {
            "SciPy": lambda: distance_transform_edt(array, sampling=(3, 1, 1)),
            "distance_transform": lambda: distance_transform(volume, spacing=(3, 1, 1)),
        },
    )
    suite.finish()


if __name__ == "__main__":
    main()
