"""Options of the distance ops: one check for the torch and the NumPy functions. Needs neither library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real

from unet_fast.errors import InputError, InputTypeError

# With a larger ratio of two spacings their squares could leave the range of float64.
MAX_RATIO = 1e100


def spacing_of(spacing: float | Sequence[float] | None, dims: int) -> list[float]:
    """One spacing for each of ``dims`` spatial axes, in the order of the axes ((D,) H, W); None counts as 1.

    Raises:
        InputTypeError: not a number, nor a sequence of numbers.
        InputError: a wrong number of spacings, or one that is not positive and finite.
    """
    if spacing is None:
        return [1.0] * dims
    if isinstance(spacing, Real):
        values = [float(spacing)] * dims
    else:
        if not isinstance(spacing, Iterable) or not all(isinstance(value, Real) for value in spacing):
            raise InputTypeError(f"spacing is {spacing!r}, expected a number or {dims} numbers")
        values = [float(value) for value in spacing]
    axes = "(y, x)" if dims == 2 else "(z, y, x)"
    if len(values) != dims:
        raise InputError(f"spacing has {len(values)} values, expected {dims}, {axes}, or one number for all axes")
    if not all(0 < value < math.inf for value in values):
        raise InputError(f"spacing is {spacing!r}, expected positive finite numbers {axes}")
    if max(values) > MAX_RATIO * min(values):
        raise InputError(f"spacing is {spacing!r}, expected values that differ by less than a factor of {MAX_RATIO:g}")
    return values


def check_border(w0: float, sigma: float) -> tuple[float, float]:
    """Height and width of the border term of a weight map, as floats.

    Raises:
        InputTypeError: not numbers.
        InputError: a negative or infinite w0, a sigma that is not positive and finite.
    """
    for name, value in (("w0", w0), ("sigma", sigma)):
        if not isinstance(value, Real):
            raise InputTypeError(f"{name} is a {type(value).__name__}, expected a number")
    if not 0 <= w0 < math.inf:
        raise InputError(f"w0 is {w0}, expected a finite number of at least 0")
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma is {sigma}, expected a positive number of pixels")
    return float(w0), float(sigma)
