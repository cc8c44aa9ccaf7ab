"""The arguments of elastic_warp that are not arrays, with one check for torch and NumPy; imports neither."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from unet_fast.errors import InputError, InputTypeError

# each in the order of its enumeration in csrc/common
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
FIELDS = ("bicubic", "bspline", "bspline_smooth")
PADDINGS = ("mirror", "zeros", "nearest")

LARGEST_SIDE = 2**30  # the kernels index a row or a column with 32 bits


def position(name: str, value: Any, choices: Sequence[str]) -> int:
    """The place of ``value`` in ``choices``; raises ``InputError`` when it is not there."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")
    return list(choices).index(value)


def interpolations(value: str | Sequence[str] | None, count: int) -> list[int | None]:
    """One interpolation for each of ``count`` inputs, as positions in ``INTERPOLATIONS``; None where none was named."""
    if value is None:
        return [None] * count
    names = [value] * count if isinstance(value, str) else list(value)
    if len(names) != count:
        raise InputError(
            f"interpolation has {len(names)} entries for {count} inputs; give one name, or one for each input"
        )
    return [position("interpolation", name, INTERPOLATIONS) for name in names]


def fills(value: float | Sequence[float], count: int) -> list[float]:
    """One fill value for each of ``count`` inputs."""
    values: list[Any] = list(value) if isinstance(value, (tuple, list)) else [value] * count
    if len(values) != count:
        raise InputError(f"fill has {len(values)} entries for {count} inputs; give one number, or one for each input")
    if not all(isinstance(item, (int, float)) or isinstance(item, numbers.Real) for item in values):
        raise InputTypeError(f"fill is {value!r}, expected a number or one for each input")
    return [item if isinstance(item, float) else float(item) for item in values]


def check_integer_fill(index: int, dtype: str, fill: float, low: int, high: int) -> None:
    """Raise unless ``fill`` is a value of an integer dtype with this range."""
    if not low <= fill <= high or fill != int(fill):  # a NaN fails the first test
        raise InputError(
            f"fill is {fill} but inputs[{index}] has dtype {dtype}: expected a whole number from {low} to {high}; "
            "fill may be a tuple with one value for each input"
        )


# the integers that images are stored in, exact in float32; the others can only be moved
INTEGER_IMAGES = ("uint8", "int8", "uint16", "int16")


def chosen_interpolation(index: int, dtype: str, floating: bool, kind: int | None) -> int:
    """The interpolation of an input; raises where integers, which may be labels, would be blended unasked."""
    if floating:
        return INTERPOLATIONS.index("bilinear") if kind is None else kind
    if kind is None:
        raise InputError(
            f"inputs[{index}] has dtype {dtype}, for which no interpolation was named: use 'nearest' for labels, "
            "'bilinear' or 'bicubic' for the grey values of an image (a tuple gives one name for each input)"
        )
    if INTERPOLATIONS[kind] != "nearest" and dtype not in INTEGER_IMAGES:
        raise InputError(
            f"inputs[{index}] has dtype {dtype}, which {INTERPOLATIONS[kind]!r} interpolation would blend into values "
            "that are meaningless if these are labels; use interpolation 'nearest' (a tuple gives one name for each "
            "input), or convert an image to floating point first"
        )
    return kind


def output_sizes(value: Any, count: int, size: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    """(h, w) for each of ``count`` inputs; ``value``: None, one side, one (h, w), or a sequence of these per input."""
    if value is None:
        return [size] * count
    if _is_integer(value) or _is_pair(value):
        sizes = [_pair(value)] * count
    elif isinstance(value, (tuple, list)):
        if len(value) != count:
            raise InputError(
                f"output_size has {len(value)} entries for {count} inputs; give one side, one (h, w) or one per input"
            )
        sizes = [_pair(item) for item in value]
    else:
        raise InputTypeError(f"output_size is {value!r}, expected a side, (h, w), or a sequence of these per input")
    for h, w in sizes:
        if h < 1 or w < 1 or h > LARGEST_SIDE or w > LARGEST_SIDE:
            raise InputError(f"output_size is {value!r}, expected sides from 1 to {LARGEST_SIDE} px")
    return sizes


def check_shapes(
    shapes: Sequence[tuple[Any, ...]],
    displacement: tuple[Any, ...],
    matrix: tuple[Any, ...] | None,
    field: int,
) -> None:
    """Raise unless all inputs are (N, C, H, W) with the same N, H, W and the parameters fit them."""
    if not shapes:
        raise InputError("inputs is empty, expected at least one image")
    for i, shape in enumerate(shapes):
        if len(shape) != 4:
            raise InputError(f"inputs[{i}] has shape {tuple(shape)}, expected (N, C, H, W)")
    n, _, height, width = shapes[0]
    for i, shape in enumerate(shapes):
        if (shape[0], *shape[2:]) != (n, height, width):
            raise InputError(
                f"inputs[{i}] has shape {tuple(shape)} but inputs[0] has {tuple(shapes[0])}; one field warps images "
                "with the same N, H and W only"
            )
    if height < 1 or width < 1 or height > LARGEST_SIDE or width > LARGEST_SIDE:
        raise InputError(f"inputs have {height} x {width} pixels, expected sides from 1 to {LARGEST_SIDE} px")
    if len(displacement) != 4 or displacement[1] != 2 or displacement[2] < 1 or displacement[3] < 1:
        raise InputError(
            f"displacement has shape {tuple(displacement)}, expected (N, 2, gh, gw): pixels along y, then x, "
            "at gh x gw control points"
        )
    if displacement[0] != n:
        raise InputError(
            f"displacement has batch size {displacement[0]} but the inputs have {n}; each sample needs its own field "
            "(displacement.expand repeats one)"
        )
    if FIELDS[field] == "bspline_smooth" and (displacement[2] < 4 or displacement[3] < 4):
        raise InputError(
            f"displacement has {displacement[2]} x {displacement[3]} control points, but field 'bspline_smooth' needs "
            "at least 4 along each axis: one of them lies beyond each side of the image"
        )
    if matrix is not None and tuple(matrix) != (n, 2, 3):
        raise InputError(f"matrix has shape {tuple(matrix)}, expected {(n, 2, 3)}: one 2 x 3 matrix for each sample")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) or (hasattr(value, "__index__") and not hasattr(value, "__len__"))


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and _is_integer(value[0]) and _is_integer(value[1])


def _pair(value: Any) -> tuple[Any, Any]:
    if _is_integer(value):
        return (value, value)
    if _is_pair(value):
        return (value[0], value[1])
    raise InputTypeError(f"output_size has the entry {value!r}, expected a side or (h, w)")
