"""distance_transform against the exact EDTs of OpenCV, SciPy and CuPy, and its growth in the worst case.

python -m benchmarks.bench_distance_transform
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from benchmarks import peers
from benchmarks.common import Candidate, Options, Suite, run, sweep
from unet_fast.data.synthetic import crowded_cells
from unet_fast.ops import distance_transform
from unet_fast.ops._tolerances import DISTANCE


def far_zero(side: int) -> np.ndarray:
    """All ones but for one corner: the distances reach across the whole image."""
    mask = np.ones((side, side), np.uint8)
    mask[-1, -1] = 0
    return mask


def by_cupy(masks: torch.Tensor) -> dict[str, Any]:
    """CuPy's exact EDT on the same GPU memory, an image at a time as it is offered."""
    ndimage = peers.optional("cupyx.scipy.ndimage") if masks.is_cuda else None
    cupy = peers.optional("cupy") if masks.is_cuda else None
    if ndimage is None or cupy is None:
        return {}
    arrays = [cupy.from_dlpack(mask) for mask in masks]

    def edt() -> Any:
        return [ndimage.distance_transform_edt(array, float64_distances=False) for array in arrays]

    return {"CuPy": Candidate(edt, capture=False)}


def candidates(options: Options, mask: np.ndarray, batch: int = 1, *, scipy: bool = True) -> dict[str, Any]:
    tensor = torch.from_numpy(mask)[None].expand(batch, -1, -1).contiguous().to(options.device)
    np.testing.assert_allclose(distance_transform(tensor)[0].cpu(), distance_transform_edt(mask), **DISTANCE)
    opencv = [mask] * batch
    return {
        "OpenCV (precise)": Candidate(
            lambda: [cv2.distanceTransform(m, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for m in opencv], host=True
        ),
        **options.ours("distance_transform", lambda: distance_transform(tensor)),
        **by_cupy(tensor),
        **({"SciPy": Candidate(lambda: distance_transform_edt(mask), host=True)} if scipy else {}),
    }


def main(options: Options) -> None:
    cv2.setNumThreads(torch.get_num_threads())
    rng = np.random.default_rng(0)
    suite = Suite("distance_transform", options)
    small = options.side(512)
    for side in (small, 2 * small, 4 * small):
        suite.measure(f"{side}x{side}, one far zero", candidates(options, far_zero(side), scipy=False))
    for cells in (60, 600):
        labels = crowded_cells(rng, (small, small), cells, small * 4.0 / 512)
        suite.measure(f"{small}x{small}, inside {cells} cells", candidates(options, (labels != 0).astype(np.uint8)))
    sparse = crowded_cells(rng, (small, small), 60, small * 30.0 / 512)
    suite.measure(f"{small}x{small}, between small cells", candidates(options, (sparse == 0).astype(np.uint8)))
    volume = torch.from_numpy(rng.random((1, 64, 128, 128)) > 0.001).to(options.device)
    array = volume[0].cpu().numpy()
    suite.measure(
        "64x128x128, 0.1 % zeros, spacing (3, 1, 1)",
        {
            "SciPy": Candidate(lambda: distance_transform_edt(array, sampling=(3, 1, 1)), host=True),
            **options.ours("distance_transform", lambda: distance_transform(volume, spacing=(3, 1, 1))),
        },
    )
    suite.finish()

    def sizes(batch: int, side: int) -> tuple[dict[str, Any], float]:
        labels = crowded_cells(rng, (side, side), side * side // 4096, 8.0)
        found = candidates(options, (labels != 0).astype(np.uint8), batch, scipy=False)
        return found, 5.0 * batch * side * side  # a byte read, a float written

    sweep("distance_transform", options, 1 << (26 if options.device == "cuda" else 24), sizes)


if __name__ == "__main__":
    run(main)
