"""Elastic deformation as a module: a random field for each sample in training, only the crop in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor, nn

from unet_fast import _warp_arguments as arguments
from unet_fast.errors import InputError
from unet_fast.ops import elastic_warp


class ElasticWarp(nn.Module):
    """Deform images, and labels or weights with them, by smooth random fields.

    ``forward(inputs)``: a (N, C, H, W) tensor or a tuple of them. In training mode every sample gets control points
    drawn from N(0, sigma^2), in pixels, on the device of the inputs; in evaluation mode the field is zero, so that only
    the crop (and the ``matrix``, if given) remains. No parameters.

    Args:
        sigma: standard deviation of the displacement of a control point, in pixels; 10 in the paper. Between points the
            field is smaller, for each ``field`` by another factor.
        grid: control points along y and x; 3 x 3 in the paper.
        output_size, interpolation, field, padding, fill: as in :func:`unet_fast.ops.elastic_warp`.

    Raises:
        InputError: sigma negative or not finite, a grid without points, an unknown name.

    Example::

        warp = uf.nn.ElasticWarp(interpolation=("bilinear", "nearest"))
        images, labels = warp((images, labels))
    """

    def __init__(
        self,
        sigma: float = 10.0,
        grid: tuple[int, int] = (3, 3),
        *,
        output_size: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
        interpolation: str | Sequence[str] | None = None,
        field: str = "bicubic",
        padding: str = "mirror",
        fill: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= sigma < float("inf"):
            raise InputError(f"sigma is {sigma!r}, expected a finite number of pixels, at least 0")
        if len(grid) != 2 or min(grid) < 1:
            raise InputError(f"grid is {grid!r}, expected the numbers of control points along y and x, each at least 1")
        arguments.position("field", field, arguments.FIELDS)
        arguments.position("padding", padding, arguments.PADDINGS)
        self.sigma, self.grid = float(sigma), (int(grid[0]), int(grid[1]))
        self.output_size, self.interpolation, self.field = output_size, interpolation, field
        self.padding, self.fill = padding, fill

    @overload
    def forward(
        self, inputs: Tensor, matrix: Tensor | None = ..., generator: torch.Generator | None = ...
    ) -> Tensor: ...

    @overload
    def forward(
        self, inputs: Sequence[Tensor], matrix: Tensor | None = ..., generator: torch.Generator | None = ...
    ) -> tuple[Tensor, ...]: ...

    def forward(
        self,
        inputs: Tensor | Sequence[Tensor],
        matrix: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Warp ``inputs``; ``matrix`` (N, 2, 3) composes with the field, ``generator`` draws it."""
        first = inputs if isinstance(inputs, Tensor) else inputs[0]
        shape = (first.shape[0], 2, *self.grid)
        if self.training:
            displacement = torch.randn(shape, device=first.device, generator=generator) * self.sigma
        else:
            displacement = torch.zeros(shape, device=first.device)
        return elastic_warp(
            inputs,
            displacement,
            matrix=matrix,
            output_size=self.output_size,
            interpolation=self.interpolation,
            field=self.field,
            padding=self.padding,
            fill=self.fill,
        )

    def extra_repr(self) -> str:
        return (
            f"sigma={self.sigma:g}, grid={self.grid}, output_size={self.output_size}, "
            f"interpolation={self.interpolation!r}, field={self.field!r}, padding={self.padding!r}, fill={self.fill}"
        )
