"""elastic_warp of an image (bilinear) and its labels (nearest) by one 3x3 bicubic field, against OpenCV and others.

OpenCV, torch and SciPy are given the same field; MONAI and kornia draw fields of their own kind and are only timed.

python -m benchmarks.bench_elastic_warp
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates

from benchmarks import peers
from benchmarks.common import Candidate, Options, Suite, run, sweep
from unet_fast.ops import elastic_warp

INTERPOLATION = ("bilinear", "nearest")


def by_opencv(image: np.ndarray, labels: np.ndarray, points: np.ndarray, grid: np.ndarray) -> tuple[Any, Any]:
    """The usual recipe: resize the control points to a field, add the pixel grid, remap twice."""
    field = cv2.resize(points, image.shape[::-1], interpolation=cv2.INTER_CUBIC)
    y, x = grid[0] + field[..., 0], grid[1] + field[..., 1]
    mirrored = {"borderMode": cv2.BORDER_REFLECT_101}
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, **mirrored), cv2.remap(labels, x, y, cv2.INTER_NEAREST, **mirrored)


def by_grid_sample(image: torch.Tensor, labels: torch.Tensor, points: torch.Tensor, grid: torch.Tensor) -> Any:
    """PyTorch alone: labels have to become floats and back."""
    side = image.shape[-1]
    field = F.interpolate(points, (side, side), mode="bicubic", align_corners=True)
    where = (grid + field).flip(1).permute(0, 2, 3, 1) * (2 / (side - 1)) - 1
    options = {"padding_mode": "reflection", "align_corners": True}
    warped = F.grid_sample(labels.float(), where, mode="nearest", **options)
    return F.grid_sample(image, where, **options), warped.to(labels.dtype)


def by_scipy(image: np.ndarray, labels: np.ndarray, points: np.ndarray, grid: np.ndarray) -> tuple[Any, Any]:
    """map_coordinates with the same field."""
    where = grid + cv2.resize(points, image.shape[::-1], interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
    return map_coordinates(image, where, order=1, mode="mirror"), map_coordinates(labels, where, order=0, mode="mirror")


def by_elasticdeform(image: np.ndarray, labels: np.ndarray, points: np.ndarray) -> dict[str, Any]:
    """elasticdeform with the same control points, through which its spline goes."""
    elasticdeform = peers.optional("elasticdeform")
    if elasticdeform is None:
        return {}
    grid = points.transpose(2, 0, 1)
    deform = elasticdeform.deform_grid
    return {"elasticdeform, order 1 and 0": lambda: deform([image, labels], grid, order=[1, 0], mode="mirror")}


def by_monai(image: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """MONAI's elastic deformation of a dictionary: random offsets on a coarse grid, resampled with grid_sample."""
    transforms = peers.optional("monai.transforms")
    if transforms is None:
        return {}
    spacing = image.shape[-1] // 2
    deform = transforms.Rand2DElasticd(
        keys=("image", "labels"), spacing=(spacing, spacing), magnitude_range=(10, 10), prob=1.0,
        mode=("bilinear", "nearest"), padding_mode="reflection", device=image.device,
    )  # fmt: skip
    sample = {"image": image[0], "labels": labels[0]}
    return {"MONAI Rand2DElasticd": Candidate(lambda: deform(sample), capture=False)}


def by_kornia(image: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """kornia's elastic transform: noise at every pixel, smoothed by a Gaussian; the same noise for both."""
    transform = peers.optional("kornia.geometry.transform")
    if transform is None:
        return {}
    noise = torch.rand(len(image), 2, *image.shape[2:], device=image.device) * 2 - 1
    floats = labels.float()

    def both() -> Any:
        deform = transform.elastic_transform2d
        return deform(image, noise), deform(floats, noise, mode="nearest").to(labels.dtype)

    return {"kornia elastic_transform2d": both}


def main(options: Options) -> None:
    cv2.setNumThreads(torch.get_num_threads())

    def sizes(batch: int, side: int) -> tuple[dict[str, Any], float]:
        images = torch.rand(batch, 1, side, side, device=options.device)
        maps = torch.randint(0, 60, images.shape, dtype=torch.uint8, device=options.device)
        field = 10 * torch.randn(batch, 2, 3, 3, device=options.device)
        pixels = torch.from_numpy(np.mgrid[:side, :side].astype(np.float32)).to(options.device)

        def call() -> Any:
            return elastic_warp((images, maps), field, interpolation=INTERPOLATION)

        found = options.ours("elastic_warp", call)
        if options.device == "cpu":
            arrays = [array[:, 0].numpy() for array in (images, maps)]
            coarse, fine = field.permute(0, 2, 3, 1).numpy(), pixels.numpy()
            found["OpenCV resize + 2 remap"] = Candidate(
                lambda: [by_opencv(i, m, p, fine) for i, m, p in zip(*arrays, coarse, strict=True)]
            )
        found["torch interpolate + 2 grid_sample"] = Candidate(lambda: by_grid_sample(images, maps, field, pixels))
        return found, 2 * 5.0 * images.numel()

    sweep("elastic_warp", options, 1 << (28 if options.device == "cuda" else 24), sizes)

    rng = np.random.default_rng(0)
    points = rng.normal(0, 10, (3, 3, 2)).astype(np.float32)
    side = options.side(512)
    image = rng.random((side, side), dtype=np.float32)
    labels = rng.integers(0, 60, (side, side)).astype(np.uint8)
    grid = np.mgrid[:side, :side].astype(np.float32)

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(options.device)

    displacement = on_device(points.transpose(2, 0, 1)[None].copy())
    image_tensor, label_tensor, grid_tensor = (
        on_device(image)[None, None],
        on_device(labels)[None, None],
        on_device(grid),
    )
    tensors = (image_tensor, label_tensor, displacement, grid_tensor)

    def ours() -> Any:
        return elastic_warp((image_tensor, label_tensor), displacement, interpolation=INTERPOLATION)

    compiled = options.compile(by_grid_sample)
    for warped, expected in zip(ours(), by_grid_sample(*tensors), strict=True):
        # float32 coordinates: a pixel in a thousand may round to the other neighbour
        assert (warped.float() - expected.float()).abs().gt(1e-3).float().mean() < 2e-3
    host: dict[str, Callable[[], Any]] = {
        "OpenCV resize + 2 remap, float32 image": lambda: by_opencv(image, labels, points, grid),
        "OpenCV resize + 2 remap, uint8 image": lambda: by_opencv(labels, labels, points, grid),
        "SciPy map_coordinates": lambda: by_scipy(image, labels, points, grid),
        **by_elasticdeform(image, labels, points),
    }
    suite = Suite("elastic_warp", options)
    suite.measure(
        f"{side}x{side}, float32 image + uint8 labels",
        {
            **options.ours("elastic_warp", ours),
            **{name: Candidate(call, host=True) for name, call in host.items()},
            "torch interpolate + 2 grid_sample": lambda: by_grid_sample(*tensors),
            "the same, torch.compile": lambda: compiled(*tensors),
            **by_monai(image_tensor, label_tensor),
            **by_kornia(image_tensor, label_tensor),
        },
        least_bytes=2 * (4 + 1) * side * side,
    )
    suite.finish()


if __name__ == "__main__":
    run(main)
