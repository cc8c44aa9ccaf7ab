"""The CPU kernels for NumPy arrays: NumPy in, NumPy out. Torch is never imported, and need not be installed.

Arrays may have any strides and byte order; what is not C-contiguous is copied first. Work runs on a small pool of its
own threads: as many as this process has CPUs, or ``OMP_NUM_THREADS``, or what :func:`set_num_threads` says. Each function
means the same as that of its name in ``unet_fast.ops``. Arrays with channels, (C, H, W) or (H, W, C), say so by
``channel_axis``, as in scikit-image.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from unet_fast import _warp_arguments as warp_arguments
from unet_fast.distance_options import check_border, spacing_of
from unet_fast.errors import BackendError, InputError, InputTypeError

__all__ = [
    "distance_transform",
    "elastic_warp",
    "get_num_threads",
    "nearest_two",
    "set_num_threads",
    "weight_map",
]


MAX_THREADS = 1024


def kernels() -> ModuleType:
    """The compiled module; raises ``BackendError`` where it is missing."""
    try:
        from unet_fast import _numpy  # type: ignore[attr-defined,unused-ignore]
    except ImportError as error:
        raise BackendError(
            f"the compiled module unet_fast._numpy could not be loaded ({error}); "
            "build it with: pip install --no-build-isolation ."
        ) from None
    return _numpy


def get_num_threads() -> int:
    """The number of threads that a call of this module works with, the caller's among them."""
    count: int = kernels().threads()
    return count


def set_num_threads(count: int) -> None:
    """Work with ``count`` threads from now on, in this process.

    Raises:
        InputError: ``count`` is less than 1. InputTypeError: it is no integer.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise InputTypeError(f"count is {count!r}, expected an integer")
    if not 1 <= count <= MAX_THREADS:
        raise InputError(f"count is {count}, expected 1 to {MAX_THREADS} threads")
    kernels().set_threads(count)


def _dense(array: np.ndarray) -> np.ndarray:
    """C-contiguous and in native byte order, as the kernels read it; a copy only where it is neither."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _array(name: str, value: object, kinds: str, expected: str) -> np.ndarray:
    """The value as an array; raises unless its dtype is of one of these kinds."""
    array = np.asarray(value)
    if array.dtype.kind not in kinds:
        raise InputTypeError(f"{name} has dtype {array.dtype}, expected {expected}")
    return array


def _batched(name: str, array: np.ndarray, max_dims: int, layout: str) -> np.ndarray:
    """A view with a batch axis, which a single image lacks; raises for other ranks."""
    if not 2 <= array.ndim <= max_dims:
        raise InputError(f"{name} has {array.ndim} dimensions, shape {array.shape}; expected {layout}")
    return array[None] if array.ndim == 2 else array


def _from_the_end(axis: int, rank: int) -> int:
    return axis - rank if axis >= 0 else axis


def _channels_first(name: str, array: np.ndarray, axis: int) -> np.ndarray:
    """A view (..., C, H, W) of an array whose channels are the third axis from the end, or the last."""
    place = _from_the_end(axis, array.ndim)
    if array.ndim not in (3, 4) or place not in (-3, -1):
        raise InputError(
            f"{name} has shape {array.shape} and channel_axis is {axis}; expected the axis of C in (C, H, W), (H, W, C), "
            "(N, C, H, W) or (N, H, W, C)"
        )
    return np.moveaxis(array, place, -3)


def _channels_back(array: np.ndarray, axis: int) -> np.ndarray:
    """What :func:`_channels_first` moved, where it was."""
    return np.ascontiguousarray(np.moveaxis(array, -3, _from_the_end(axis, array.ndim)))


def _by_channel(name: str, array: np.ndarray, axis: int | None) -> np.ndarray:
    """A stack (M, H, W) of all channels, each an image of its own; without an ``axis`` the array as it is."""
    if axis is None:
        return array
    moved = _channels_first(name, array, axis)
    return moved.reshape(-1, *moved.shape[-2:])


def _as_given(out: np.ndarray, array: np.ndarray, axis: int | None) -> np.ndarray:
    """What was computed for :func:`_by_channel` in the shape of ``array``."""
    if axis is None:
        return out.reshape(array.shape)
    moved = np.moveaxis(array, axis, -3)
    return _channels_back(out.reshape(moved.shape), axis)


def _labels(value: object) -> np.ndarray:
    labels = _array("instances", value, "iu", "an integer dtype")
    return labels.astype(np.int64) if labels.dtype.kind == "u" and labels.itemsize >= 4 else labels


def _call(kernel: Any, *arguments: object) -> Any:
    try:
        return kernel(*arguments)
    except ValueError as error:  # the kernel looks at the labels, so that nothing else has to
        raise InputError(str(error)) from None


def nearest_two(
    instances: np.ndarray, *, spacing: float | Sequence[float] | None = None, channel_axis: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Exact Euclidean distance from every pixel to the nearest and to the second nearest distinct instance.

    Args:
        instances: (H, W), (N, H, W) images or (N, D, H, W) volumes (a single volume is ``volume[None]``); labels of any
            integer dtype, 0 = background, up to 2^31 - 1.
        spacing: size of a pixel along each spatial axis, (y, x) or (z, y, x), or one number for all; None is 1.
        channel_axis: of (C, H, W), (H, W, C), (N, C, H, W) or (N, H, W, C), whose channels are images of their own; None:
            there is none.

    Returns:
        d1, d2: float32 of the same shape; infinite where an image has fewer than one, two instances. See
        :func:`unet_fast.ops.nearest_two` for the exact meaning.

    Raises:
        InputError: a wrong rank, a label out of range, or a spacing that is not positive and finite.
        InputTypeError: not integers, or a spacing that is not numbers.
    """
    labels = _labels(instances)
    images = _by_channel("instances", labels, channel_axis)
    batch = _batched("instances", images, 4, "(H, W), (N, H, W) or (N, D, H, W)")
    d1, d2 = _call(kernels().nearest_two, _dense(batch), spacing_of(spacing, batch.ndim - 1))
    return _as_given(d1, labels, channel_axis), _as_given(d2, labels, channel_axis)


def distance_transform(
    mask: np.ndarray, *, spacing: float | Sequence[float] | None = None, channel_axis: int | None = None
) -> np.ndarray:
    """Exact Euclidean distance from every pixel to the nearest zero of its image.

    Args:
        mask: (H, W), (N, H, W) images or (N, D, H, W) volumes (a single volume is ``volume[None]``); boolean, integer
            or floating, everything but 0 counts as inside (NaN too).
        spacing: size of a pixel along each spatial axis, (y, x) or (z, y, x), or one number for all; None is 1.
        channel_axis: as for :func:`nearest_two`.

    Returns:
        float32 of the same shape, as ``scipy.ndimage.distance_transform_edt(mask, sampling=spacing)`` for each image,
        but infinite over an image without any zero.

    Raises:
        InputError: a wrong rank, or a spacing that is not positive and finite.
        InputTypeError: not numbers, or a spacing that is not numbers.
    """
    array = _array("mask", mask, "biuf", "a boolean, integer or floating dtype")
    images = _by_channel("mask", array, channel_axis)
    batch = _batched("mask", images, 4, "(H, W), (N, H, W) or (N, D, H, W)")
    if batch.itemsize > 8:  # long double
        batch = batch != 0
    out = _call(kernels().distance_transform, _dense(batch), spacing_of(spacing, batch.ndim - 1))
    return _as_given(out, array, channel_axis)


def weight_map(
    instances: np.ndarray,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: str | Sequence[float] | np.ndarray | None = None,
    inside: bool = False,
    channel_axis: int | None = None,
) -> np.ndarray:
    """Loss weight ``w_c(x) + w0 * exp(-(d1(x) + d2(x))^2 / (2 sigma^2))`` of a U-Net.

    Args:
        instances: (H, W) or (N, H, W) labels of any integer dtype, 0 = background, up to 2^31 - 1.
        w0: height of the border term, >= 0.
        sigma: its width in pixels, > 0.
        class_weights: w_c. None: 1; "balanced": inverse class frequency of each image, with mean 1; or two numbers
            [background, cells].
        inside: whether the border term also counts on the pixels of cells.
        channel_axis: as for :func:`nearest_two`.

    Returns:
        float32 of the same shape. See :func:`unet_fast.ops.weight_map` for the exact meaning.

    Raises:
        InputError: a wrong rank, a label out of range, w0, sigma or class_weights out of range.
        InputTypeError: not integers, or options that are not numbers.
    """
    labels = _labels(instances)
    batch = _batched("instances", _by_channel("instances", labels, channel_axis), 3, "(H, W) or (N, H, W)")
    w0, sigma = check_border(w0, sigma)
    pair = None
    if isinstance(class_weights, str):
        if class_weights != "balanced":
            raise InputError(f"class_weights is {class_weights!r}, expected 'balanced'")
    elif class_weights is not None:
        weights = _array("class_weights", class_weights, "biuf", "two numbers [background, cells]")
        if weights.shape != (2,):
            raise InputError(f"class_weights has shape {weights.shape}, expected (2,): [background, cells]")
        pair = (float(weights[0]), float(weights[1]))
    balanced = isinstance(class_weights, str)
    out = _call(kernels().weight_map, _dense(batch), w0, sigma, pair, balanced, bool(inside))
    return _as_given(out, labels, channel_axis)


def elastic_warp(
    inputs: np.ndarray | Sequence[np.ndarray],
    displacement: np.ndarray,
    *,
    matrix: np.ndarray | None = None,
    output_size: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    interpolation: str | Sequence[str] | None = None,
    field: str = "bicubic",
    padding: str = "mirror",
    fill: float | Sequence[float] = 0.0,
    channel_axis: int = -3,
) -> np.ndarray | tuple[np.ndarray, ...]:
    """Warp images by a smooth random field and an affine matrix.

    Args:
        inputs: an image (H, W), (C, H, W) or (H, W, C), or a batch of such, (N, H, W), (N, C, H, W) or (N, H, W, C), or a tuple
            of images or of batches with the same N, H and W: a colour image (H, W, 3) and its labels (H, W), for example.
            float16, float32, float64, 8 or 16-bit integers, or (with "nearest" only) any integer dtype or bool.
        displacement: (2, gh, gw) for images, (N, 2, gh, gw) for batches; pixels, y then x.
        matrix: (2, 3) for images, (N, 2, 3) for batches, or None; output pixels to input pixels about the centre.
        output_size, interpolation, field, padding, fill: as in :func:`unet_fast.ops.elastic_warp`.
        channel_axis: -3 (or 0, 1) for channels in front of the pixels, -1 (or 2, 3) for channels last; arrays without channels
            may stand beside them.

    Returns:
        An array of the same axes and dtype with the output size, or a tuple when a tuple (or list) came in.

    Raises:
        InputError: shapes or numbers of entries do not match, an unknown name, empty images, or integers without a named
            interpolation, or with one that would blend labels.
        InputTypeError: a dtype that is not in the lists above.
    """
    images = [np.asarray(item) for item in ([inputs] if isinstance(inputs, np.ndarray) else inputs)]
    named = warp_arguments.interpolations(interpolation, len(images))
    fills = warp_arguments.fills(fill, len(images))
    kinds = []
    for i, image in enumerate(images):
        _array(f"inputs[{i}]", image, "biuf", "a boolean, integer or floating dtype")
        if image.itemsize > 8:
            raise InputTypeError(f"inputs[{i}] has dtype {image.dtype}, expected at most 64 bits a pixel")
        floating = image.dtype.kind == "f"
        kinds.append(warp_arguments.chosen_interpolation(i, image.dtype.name, floating, named[i]))
        if not floating:
            low, high = (0, 1) if image.dtype.kind == "b" else _range(image.dtype)
            warp_arguments.check_integer_fill(i, str(image.dtype), fills[i], low, high)
    grid = _array("displacement", displacement, "iuf", "a floating dtype").astype(np.float64)
    affine = None if matrix is None else _array("matrix", matrix, "iuf", "a floating dtype").astype(np.float64)
    single = grid.ndim == 3
    if single:
        grid = grid[None]
        affine = None if affine is None else affine[None]
    ranks = [image.ndim for image in images]
    images = [_warped_as(f"inputs[{i}]", image, single, channel_axis) for i, image in enumerate(images)]
    kind = warp_arguments.position("field", field, warp_arguments.FIELDS)
    outside = warp_arguments.position("padding", padding, warp_arguments.PADDINGS)
    shapes = [image.shape for image in images]
    warp_arguments.check_shapes(shapes, grid.shape, None if affine is None else affine.shape, kind)
    sizes = warp_arguments.output_sizes(output_size, len(images), shapes[0][2:])
    outputs = kernels().elastic_warp(
        [_dense(image) for image in images],
        np.ascontiguousarray(grid),
        None if affine is None else np.ascontiguousarray(affine),
        [int(side) for size in sizes for side in size],
        kinds,
        fills,
        kind,
        outside,
    )
    outputs = [_warped_back(output, rank, single, channel_axis) for output, rank in zip(outputs, ranks, strict=True)]
    return outputs[0] if isinstance(inputs, np.ndarray) else tuple(outputs)


def _warped_as(name: str, image: np.ndarray, single: bool, axis: int) -> np.ndarray:
    """A view (N, C, H, W) of an image or a batch."""
    if image.ndim == (2 if single else 3):
        return image[None, None] if single else image[:, None]
    if image.ndim != (3 if single else 4):
        layouts = "(2, gh, gw) goes with images (H, W), (C, H, W) or (H, W, C)"
        if not single:
            layouts = "(N, 2, gh, gw) goes with batches (N, H, W), (N, C, H, W) or (N, H, W, C)"
        raise InputError(f"{name} has shape {image.shape}, but displacement {layouts}")
    moved = _channels_first(name, image, axis)
    return moved[None] if single else moved


def _warped_back(output: np.ndarray, rank: int, single: bool, axis: int) -> np.ndarray:
    """The output (N, C, h, w) in the axes of the input."""
    output = output[0] if single else output
    if rank < output.ndim:
        return output[0] if single else output[:, 0]
    return _channels_back(output, axis)


def _range(dtype: np.dtype) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), min(int(limits.max), 2**63 - 1)
