"""Elastic warp in plain PyTorch: the whole field as a product of matrices, then one look-up per tap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unet_fast import _warp_arguments as arguments


def elastic_warp(
    inputs: Tensor | Sequence[Tensor],
    displacement: Tensor,
    *,
    matrix: Tensor | None = None,
    output_size: Any = None,
    interpolation: str | Sequence[str] | None = None,
    field: str = "bicubic",
    padding: str = "mirror",
    fill: float | Sequence[float] = 0.0,
) -> Tensor | tuple[Tensor, ...]:
    """See :func:`unet_fast.ops.elastic_warp`. Coordinates are float64; every argument that floats is differentiable."""
    images = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    height, width = images[0].shape[2:]
    sizes = arguments.output_sizes(output_size, len(images), (height, width))
    kinds = arguments.interpolations(interpolation, len(images))
    warped = []
    for image, (h, w), kind, value in zip(images, sizes, kinds, arguments.fills(fill, len(images)), strict=True):
        rows = torch.arange(h, device=image.device) + (height - h) // 2
        columns = torch.arange(w, device=image.device) + (width - w) // 2
        y, x = _source(displacement, matrix, rows, columns, (height, width), field)
        name = "bilinear" if kind is None else arguments.INTERPOLATIONS[kind]
        # torch's own operations hardly know uint16
        known = image.int() if image.dtype == torch.uint16 else image
        warped.append(_sample(known, y, x, name, padding, value, image.dtype))
    return warped[0] if isinstance(inputs, Tensor) else tuple(warped)


def field_matrix(field: str, pixels: Tensor, n: int, g: int) -> Tensor:
    """The weights A (len(pixels), g), float64, with which g control points act on ``pixels`` of an axis of n pixels."""
    steps = g - 3 if field == "bspline_smooth" else g - 1
    position = pixels.clamp(0, n - 1).double() * (steps / (n - 1) if n > 1 else 0.0)
    nearest_point = position.round()  # i / (n - 1) * (n - 1) may miss a control point by one rounding
    position = torch.where((position - nearest_point).abs() < 1e-9, nearest_point, position)
    base = position.floor()
    t = position - base
    kernel = _keys(t) if field == "bicubic" else _bspline(t)
    first = base.long() - (0 if field == "bspline_smooth" else 1)
    matrix = torch.zeros(len(pixels), g, dtype=torch.float64, device=pixels.device)
    for k in range(4):
        index = first + k
        index = _mirror(index, g) if field == "bspline" else index.clamp(0, g - 1)
        matrix.scatter_add_(1, index[:, None], kernel[k][:, None])
    if field == "bspline":  # coefficients = inverse of sampling the spline at its own control points
        points = torch.arange(g, device=pixels.device)
        samples = torch.zeros(g, g, dtype=torch.float64, device=pixels.device)
        for offset, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
            samples[points] += weight * torch.nn.functional.one_hot(_mirror(points + offset, g), g).double()
        matrix = matrix @ torch.linalg.inv(samples)
    return matrix


def _source(
    displacement: Tensor, matrix: Tensor | None, rows: Tensor, columns: Tensor, size: tuple[int, int], field: str
) -> tuple[Tensor, Tensor]:
    """Where the frame pixels rows x columns read: y and x, each (N, len(rows), len(columns)), float64."""
    (height, width), (gh, gw) = size, displacement.shape[2:]
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    u = torch.einsum(
        "yi,ncij,xj->ncyx",
        field_matrix(field, rows, height, gh),
        displacement.double(),
        field_matrix(field, columns, width, gw),
    )
    y = rows.double()[:, None] - centre_y + u[:, 0]
    x = columns.double()[None, :] - centre_x + u[:, 1]
    if matrix is not None:
        m = matrix.double()[:, :, :, None, None]
        y, x = m[:, 0, 0] * y + m[:, 0, 1] * x + m[:, 0, 2], m[:, 1, 0] * y + m[:, 1, 1] * x + m[:, 1, 2]
    return y + centre_y, x + centre_x


def _sample(
    image: Tensor, y: Tensor, x: Tensor, interpolation: str, padding: str, fill: float, dtype: torch.dtype
) -> Tensor:
    n = torch.arange(len(image), device=image.device)[:, None, None]
    integral = not image.is_floating_point()
    total: Tensor | None = None
    for row, row_valid, row_weight in _taps(y, interpolation, image.shape[2], padding):
        for column, column_valid, column_weight in _taps(x, interpolation, image.shape[3], padding):
            pixels = image[n, :, row, column].movedim(-1, 1)
            inside = (row_valid & column_valid)[:, None]
            pixels = torch.where(inside, pixels, torch.full_like(pixels, int(fill) if integral else fill))
            if interpolation == "nearest":
                return pixels.to(dtype)
            part = pixels.double() * (row_weight * column_weight)[:, None]
            total = part if total is None else total + part
    assert total is not None
    if integral:
        limits = torch.iinfo(dtype)
        total = (total + 0.5).floor().clamp(limits.min, limits.max)
    return total.to(dtype)


def _taps(q: Tensor, interpolation: str, n: int, padding: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Index inside the axis, whether it is no fill value, and weight, for every tap of the source coordinates q."""
    known = ~q.isnan()
    q = torch.where(known, q, 0.0).clamp(-(2.0**52), 2.0**52)
    base = torch.floor(q + 0.5) if interpolation == "nearest" else q.floor()
    t = q - base
    first, weights = {"nearest": (0, [torch.ones_like(q)]), "bilinear": (0, [1 - t, t]), "bicubic": (-1, _keys(t))}[
        interpolation
    ]
    taps = []
    for k, weight in enumerate(weights):
        i = base.long() + first + k
        valid = (known & (i >= 0) & (i < n)) if padding == "zeros" else torch.ones_like(known)
        taps.append((_mirror(i, n) if padding == "mirror" else i.clamp(0, n - 1), valid, weight))
    return taps


def _mirror(i: Tensor, n: int) -> Tensor:
    if n == 1:
        return torch.zeros_like(i)
    i = i.remainder(2 * (n - 1))
    return torch.minimum(i, 2 * (n - 1) - i)


def _keys(t: Tensor) -> list[Tensor]:
    def near(d: Tensor) -> Tensor:
        return 1.25 * d**3 - 2.25 * d**2 + 1

    def far(d: Tensor) -> Tensor:
        return -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3

    return [far(1 + t), near(t), near(1 - t), far(2 - t)]


def _bspline(t: Tensor) -> list[Tensor]:
    def near(d: Tensor) -> Tensor:
        return 2 / 3 - d**2 + d**3 / 2

    def far(d: Tensor) -> Tensor:
        return (2 - d) ** 3 / 6

    return [far(1 + t), near(t), near(1 - t), far(2 - t)]
