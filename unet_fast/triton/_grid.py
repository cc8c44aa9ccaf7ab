"""Batches of images and volumes as the distance ops walk through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

# The squares of steps, where there is no label.
FAR = tl.constexpr(2**31 - 1)
BLOCK = 128  # pixels of a program that looks along lines: few, because it goes on until its last pixel has seen enough


@dataclass(frozen=True)
class Grid:
    """A batch of images (middle = 1, scanned along y) or volumes (scanned along z); weights are squared spacings."""

    batch: int
    scan: int
    middle: int
    last: int
    scan_weight: float
    middle_weight: float
    last_weight: float
    scale: float  # the coarsest spacing, which the weights are relative to

    @property
    def lanes(self) -> int:
        return self.middle * self.last

    @property
    def pixels(self) -> int:
        return self.scan * self.lanes

    @property
    def integral(self) -> bool:
        """Whether squared distances are integers below 2^31 - 1."""
        if (self.scan_weight, self.middle_weight, self.last_weight) != (1.0, 1.0, 1.0):
            return False
        return sum((side - 1) ** 2 for side in (self.scan, self.middle, self.last)) < FAR.value

    @property
    def cost(self) -> torch.dtype:
        return torch.int32 if self.integral else torch.float64

    @property
    def options(self) -> dict[str, Any]:
        """What the kernels of the remaining axes are compiled for."""
        cost = tl.int32 if self.integral else tl.float64
        return {"SCAN": self.scan_weight, "SCALE": self.scale, "COST": cost, "BLOCK": BLOCK, "num_warps": BLOCK // 32}


def grid_of(tensor: Tensor, spacing: list[float]) -> Grid:
    """The grid of a (N, H, W) or (N, D, H, W) tensor with one spacing for each axis but the first."""
    batch, *sides = tensor.shape
    scale = max((step for step, side in zip(spacing, sides, strict=True) if side > 1), default=1.0)
    weights = [(step / scale) ** 2 if side > 1 else 1.0 for step, side in zip(spacing, sides, strict=True)]
    if len(sides) == 2:
        sides, weights = [sides[0], 1, sides[1]], [weights[0], 1.0, weights[1]]
    return Grid(batch, sides[0], sides[1], sides[2], weights[0], weights[1], weights[2], scale)
