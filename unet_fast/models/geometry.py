"""Which sizes a fully convolutional network accepts, what comes out, and how far one output pixel sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import overload

from unet_fast.errors import InputError, InputTypeError
from unet_fast.models import reach


@dataclass(frozen=True)
class Geometry:
    """The sizes of a network, per axis, in pixels. Height and width follow the same rule, independently.

    Legal outputs are ``smallest_output + k * step`` for k = 0, 1, ...; the input of each is ``2 * margin`` larger.

    Attributes:
        step: distance between legal sizes, the total stride of the down-sampling path. Two windows of one image give
            the same output where they overlap only if their origins differ by a multiple of it (the phase of the
            pooling).
        margin: pixels lost on each side (0 for zero-padded convolutions).
        smallest_output: the smallest legal output.
        receptive_radius: an output pixel depends on no input pixel farther away than this.
        zero_padded: whether zeros pad the input, which an output within ``receptive_radius`` of the border sees.
        any_from: inputs from this size on are legal whether they are steps or not (the network resizes its maps);
            ``None`` where only steps are. Tiles still come in steps, because other sizes would shift the pooling.
    """

    step: int
    margin: int
    smallest_output: int
    receptive_radius: int
    zero_padded: bool = False
    any_from: int | None = None

    @property
    def smallest_input(self) -> int:
        """The smallest legal input."""
        return self.smallest_output + 2 * self.margin if self.any_from is None else self.any_from

    @property
    def spoilt(self) -> int:
        """Whole steps that cover the outer pixels of an output that zero padding reaches; 0 for valid convolutions."""
        return -(-self.receptive_radius // self.step) * self.step if self.zero_padded else 0

    def accepts(self, size: int) -> bool:
        """Whether ``size`` is a legal input along one axis."""
        if self.any_from is not None:
            return size >= self.any_from
        return size >= self.smallest_input and (size - self.smallest_input) % self.step == 0

    @overload
    def output_size(self, size: int) -> int: ...
    @overload
    def output_size(self, size: Sequence[int]) -> tuple[int, int]: ...
    def output_size(self, size: int | Sequence[int]) -> int | tuple[int, int]:
        """The output of an input of ``size``, an int or (height, width); the answer has the same form.

        Raises ``InputError`` that names the nearest legal inputs.
        """
        sizes = _axes(size)
        for axis, value in zip(("height", "width"), sizes, strict=True):
            if not self.accepts(value):
                raise InputError(self.refusal("input", axis, value, self.smallest_input))
        return _same_form(size, [value - 2 * self.margin for value in sizes])

    @overload
    def input_size(self, size: int) -> int: ...
    @overload
    def input_size(self, size: Sequence[int]) -> tuple[int, int]: ...
    def input_size(self, size: int | Sequence[int]) -> int | tuple[int, int]:
        """The input that gives exactly an output of ``size``, an int or (height, width); the answer has the same form.

        Raises ``InputError`` that names the nearest legal outputs.
        """
        sizes = _axes(size)
        for axis, value in zip(("height", "width"), sizes, strict=True):
            if not self.accepts(value + 2 * self.margin):
                raise InputError(self.refusal("output", axis, value, self.smallest_output))
        return _same_form(size, [value + 2 * self.margin for value in sizes])

    def covering_output(self, size: int) -> int:
        """The smallest legal output along one axis that is at least ``size``."""
        return self.smallest_output + max(0, -((self.smallest_output - size) // self.step)) * self.step

    def refusal(self, what: str, axis: str, size: int, smallest: int) -> str:
        """One line that says why ``size`` is not legal and which sizes beside it are."""
        if size < smallest:
            return f"{what} {axis} {size} is too small for this network; the smallest legal {what} size is {smallest}"
        below = smallest + (size - smallest) // self.step * self.step
        return (
            f"{what} {axis} {size} does not fit this network; the nearest legal {what} sizes are {below} "
            f"and {below + self.step}"
        )


def unet_geometry(
    depth: int,
    padding: str,
    *,
    convolutions: int = 2,
    smallest_bottom: int = 1,
    up_kernel: int = 2,
    downsample: int = 1,
) -> Geometry:
    """The :class:`Geometry` of a U-Net with ``depth`` halvings and ``convolutions`` 3x3 convolutions a level.

    With valid convolutions a block of c of them loses l = 2c pixels. If the lowest block returns u pixels, the input
    is ``2**depth * (u + l) + l * (2**depth - 1)`` and the output ``2**depth * u - l * (2**depth - 1)``: for depth 4
    and c = 2 that is 16k + 60 -> 16k - 124 with k = u + 4 >= 8, and 92 pixels are lost on each side. Zero-padded
    ("same") convolutions keep the size, which must be divisible by 2**depth; ``smallest_bottom`` then bounds the
    lowest level. ``up_kernel`` is that of the stride-2 transposed convolutions, padded by ``up_kernel // 2 - 1``.
    ``downsample``, for "same" only: the network works on means of squares of this side, and what it gives is interpolated.
    """
    step = 2**depth * downsample

    def needed(span: reach.Span) -> reach.Span:
        if downsample == 1:
            return unet_reach(span, depth, convolutions, up_kernel)
        return reach.pooling(unet_reach(reach.bilinear(span, downsample), depth, convolutions, up_kernel), downsample)

    radius = reach.radius(step, needed)
    if padding == "same":
        return Geometry(step, 0, step * smallest_bottom, radius, zero_padded=True)
    lost = 2 * convolutions
    lost_up = lost * (step - 1)
    lost_down = lost * (2 * step - 1)
    # the smallest u whose output is at least one pixel; the levels in between are then positive as well
    smallest = step * (lost_up // step + 1) - lost_up
    return Geometry(step, (lost_up + lost_down) // 2, smallest, radius)


def unet_reach(span: reach.Span, depth: int, convolutions: int = 2, up_kernel: int = 2) -> reach.Span:
    """The input that a span of the output needs: down to the lowest level and up again.

    The skip connections need less than this detour.
    """
    for _ in range(depth):
        span = reach.transposed(reach.convolutions(span, convolutions), up_kernel, up_kernel // 2 - 1)
    span = reach.convolutions(span, convolutions)
    for _ in range(depth):
        span = reach.convolutions(reach.pooling(span), convolutions)
    return span


def _axes(size: int | Sequence[int]) -> tuple[int, int]:
    """``size`` as (height, width)."""
    pair = (size, size) if isinstance(size, Integral) else tuple(size) if isinstance(size, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(value, Integral) for value in pair):
        raise InputTypeError(f"size is {size!r}, expected an int or (height, width) as two ints")
    return int(pair[0]), int(pair[1])


def _same_form(like: int | Sequence[int], sizes: list[int]) -> int | tuple[int, int]:
    """One int if ``like`` was one, else (height, width)."""
    return sizes[0] if isinstance(like, Integral) else (sizes[0], sizes[1])
