"""Random grey-value curves: the intensity augmentation of the U-Net's authors.

A curve maps the interval 0..1 to itself, roughly. It starts at a black point and ends at a white point; then, twice,
a point is inserted in the middle of every segment, at a height that keeps the slope on both sides between two limits. The five
points are the control points of a cubic B-spline with straight ends, which smooths the curve and keeps its end points
and, being an average of the segments, its limits of slope: grey values are never reversed.
"""

from __future__ import annotations

from functools import lru_cache

import torch

BLACK = 0.05  # largest distance of the black point from 0, and of the white point from 1
SLOPES = (0.8, 1.2)
INSERTIONS = 2
ENTRIES = 65  # of the table; the error of linear interpolation between them is below 1e-4 of the range


def draw_tables(count: int, channels: int, *, device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
    """Tables (count, channels, ENTRIES), float32: a curve for each sample and channel, sampled evenly over 0..1."""
    ends = (torch.rand(count, channels, 2, dtype=torch.float32, device=device, generator=generator) * 2 - 1) * BLACK
    points = ends + torch.arange(2, device=device)
    for _ in range(INSERTIONS):
        left, right = points[..., :-1], points[..., 1:]
        half = 0.5 / left.shape[-1]
        lowest = torch.maximum(left + SLOPES[0] * half, right - SLOPES[1] * half)
        highest = torch.minimum(left + SLOPES[1] * half, right - SLOPES[0] * half)
        share = torch.rand(left.shape, dtype=torch.float32, device=device, generator=generator)
        middle = torch.lerp(lowest, highest, share)
        points = torch.cat([torch.stack([left, middle], -1).flatten(-2), right[..., -1:]], -1)
    return points @ _spline(points.shape[-1], device)


@lru_cache(maxsize=8)
def _spline(points: int, device: torch.device) -> torch.Tensor:
    """Weights (points, ENTRIES) of a uniform cubic B-spline; beyond its ends the control points go straight on."""
    position = torch.linspace(0, points - 1, ENTRIES, dtype=torch.float64, device=device)
    # the basis function around control point i - 1, for i = 0 .. points + 1
    distance = (position - torch.arange(-1, points + 1, device=device)[:, None]).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    weights = torch.where(distance < 1, near, far)
    inner = weights[1:-1].clone()
    for outer, end, next_to_it in ((weights[0], 0, 1), (weights[-1], -1, -2)):
        inner[end] += 2 * outer  # p[-1] = 2 p[0] - p[1]
        inner[next_to_it] -= outer
    return inner.float()


def value_range(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest value of every sample and channel: (N, C, H, W) -> two (N, C). NaN spreads to both."""
    low, high = images.flatten(2).aminmax(dim=-1)
    return low, high


def apply_tables(images: torch.Tensor, tables: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Map the values of (N, C, H, W) images through tables (N, C, T), where 0..1 stands for low..high (N, C).

    Between two entries of a table the curve is straight. An image of one value stays as it is.
    """
    wide = torch.promote_types(images.dtype, torch.float32)
    values, low = images.flatten(2).to(wide), low.unsqueeze(-1).to(wide)
    span = high.unsqueeze(-1) - low
    last = tables.shape[-1] - 1
    # every segment as offset + slope * position, in the values of the image
    slope = tables.diff(dim=-1).to(wide)
    offset = low + span * (tables[..., :-1] - slope * torch.arange(last, device=tables.device))
    # the floor keeps the quotient finite where all values are equal: their position is 0, their result `low`
    position = (values - low).mul_(last / span.clamp(min=1e-30))
    segment = position.long().clamp_(0, last - 1)
    result = torch.addcmul(offset.gather(-1, segment), (span * slope).gather(-1, segment), position)
    return result.view_as(images).to(images.dtype)
