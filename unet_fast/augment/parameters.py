"""The random numbers of a warp: where a tile lies, how it is turned and how it is deformed.

Everything is drawn on the device and stays there, so a GPU never waits for the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from unet_fast.augment.settings import Augmentation


@dataclass(frozen=True)
class Drawn:
    """The random numbers of some tiles.

    Attributes:
        matrix: (count, 2, 3), see :func:`draw_matrix`.
        displacement: (count, 2, gh, gw), see :func:`draw_displacement`.
        tables: (count, channels, entries), see :mod:`unet_fast.augment.grey`; None for grey values as they are.
    """

    matrix: torch.Tensor
    displacement: torch.Tensor
    tables: torch.Tensor | None

    def rows(self, first: int, count: int) -> Drawn:
        """Those of ``count`` tiles from ``first`` on."""
        part = slice(first, first + count)
        return Drawn(self.matrix[part], self.displacement[part], None if self.tables is None else self.tables[part])


def draw_matrix(
    count: int,
    image_size: tuple[int, int],
    settings: Augmentation,
    *,
    device: torch.device,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Matrices (count, 2, 3), float32, that map output to input pixels about the image centre, order y, x.

    The 2 x 2 part is a rotation by an angle uniform in +-rotation degrees, after flips of either axis with probability
    1/2. The translation puts the tile's centre on a pixel that is uniform over the image. What lies outside is
    mirrored, so every pixel is then expected in equally many tiles, the outermost (which the mirror does not repeat)
    in half as many. It is a whole number, so that without rotation and deformation a tile is an exact copy.
    With ``quarter_turns`` the angle grows by 0, 90, 180 or 270 degrees; with ``affine`` the image is first deformed by
    :func:`draw_affine`.
    """
    angle = (torch.rand(count, dtype=torch.float32, device=device, generator=generator) * 2 - 1) * math.radians(
        settings.rotation
    )
    cosine, sine = angle.cos(), angle.sin()
    if settings.quarter_turns:
        turns = torch.randint(0, 4, (count,), device=device, generator=generator)
        # 0, 1 and -1 exactly, so that a turned tile is an exact copy as well
        turned_cosine = (turns == 0).float() - (turns == 2).float()
        turned_sine = (turns == 1).float() - (turns == 3).float()
        cosine, sine = cosine * turned_cosine - sine * turned_sine, sine * turned_cosine + cosine * turned_sine
    if settings.flips:
        sign = torch.randint(0, 2, (2, count), device=device, generator=generator).float() * 2 - 1
    else:
        sign = torch.ones(2, count, dtype=torch.float32, device=device)
    rows = []
    for axis, (from_y, from_x) in enumerate(((cosine, -sine), (sine, cosine))):
        size = image_size[axis]
        if settings.shift:
            # uniform over one period of the mirrored image, folded back: the outermost pixels come half as often
            period = torch.randint(0, max(2 * (size - 1), 1), (count,), device=device, generator=generator)
            centre = (period - (size - 1)).abs() - size // 2
        else:
            centre = torch.zeros(count, dtype=torch.float32, device=device)
        rows.append(torch.stack([from_y * sign[0], from_x * sign[1], centre.float()], -1))
    matrix = torch.stack(rows, 1)
    if settings.affine == 0:
        return matrix
    linear, offset = draw_affine(count, image_size, settings.affine, device=device, generator=generator)
    moved = torch.baddbmm(matrix, linear, matrix)
    moved[..., 2] += offset
    return moved


def draw_affine(
    count: int,
    image_size: tuple[int, int],
    distance: float,
    *,
    device: torch.device,
    generator: torch.Generator | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Affine maps ``x + linear @ x + offset`` about the image centre: (count, 2, 2) and (count, 2), order y, x.

    Each takes the points (s, s), (s, -s), (-s, -s), s = a third of the shorter side, to places that lie up to
    ``distance`` pixels off on either axis, uniform and independent. With displacements a, b, c the three equations have
    the solution written below.
    """
    side = max(min(image_size) / 3, 1.0)
    a, b, c = (
        (torch.rand(3, count, 2, dtype=torch.float32, device=device, generator=generator) * 2 - 1) * distance
    ).unbind()
    return torch.stack([(b - c) / (2 * side), (a - b) / (2 * side)], -1), (a + c) / 2


def draw_displacement(
    count: int,
    grid: tuple[int, int],
    sigma: float,
    *,
    device: torch.device,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Displacements (count, 2, *grid), float32: independent Gaussians with standard deviation ``sigma`` pixels."""
    if sigma == 0:
        return torch.zeros(count, 2, *grid, dtype=torch.float32, device=device)
    return torch.randn(count, 2, *grid, dtype=torch.float32, device=device, generator=generator) * sigma


def draw_indices(count: int, sources: int, *, device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
    """Which of the sources each tile is taken from, (count,) int64, uniform and independent."""
    return torch.randint(0, sources, (count,), device=device, generator=generator)
