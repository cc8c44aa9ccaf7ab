"""Stacks of images: reading files and folders, normalisation, page ranges, writing."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unet_fast.data.formats import SUFFIXES, describe, natural_key
from unet_fast.data.limits import check_decoded
from unet_fast.data.pages import Pages
from unet_fast.data.statistics import measure
from unet_fast.data.zarr_files import is_zarr
from unet_fast.errors import InputError, InputTypeError
from unet_fast.files import atomic_path, check_regular

PathLike = str | os.PathLike[str]

# a classic TIFF addresses 4 GiB; the rest leaves room for the directories of the pages
_CLASSIC_TIFF_BYTES = 2**32 - 2**25
_AXES = {2: "YX", 3: "ZYX", 4: "ZCYX"}  # of a TIFF, by the rank of its array


@dataclass
class Stack:
    """Decoded files: ``pixels (N, C, H, W)`` in the stored dtype, and for each image a name that a message can show."""

    pixels: np.ndarray
    names: list[str]


def list_images(path: PathLike, *, nested: bool = False) -> list[Path]:
    """``[path]`` for a file or a Zarr image; for a folder its TIFF and PNG files in natural order (hidden files are left out).

    ``nested``: of a folder without any, those in ``ID/images`` of all its folders ID (2018 Data Science Bowl).

    Raises:
        FileNotFoundError: there is nothing at ``path``, or a link in the folder leads nowhere.
        InputError: a folder without images, a pipe or device, two images of the same name.
    """
    path = Path(path)
    if is_zarr(path):
        return [path]
    if not path.is_dir():
        check_regular(path)
        return [path]
    files = folder_images(path)
    if nested and not files:
        cases = sorted((case for case in _entries(path) if (case / "images").is_dir()), key=_natural)
        return [file for case in cases for file in list_images(case / "images")] or list_images(path)
    if not files:
        raise InputError(f"the folder {path} holds no TIFF or PNG file; give the folder in which the images lie")
    stems: dict[str, Path] = {}
    for file in files:
        twin = stems.setdefault(file.stem, file)
        if twin is not file:
            raise InputError(
                f"the folder {path} holds {twin.name} and {file.name}, two images with the same name; keep one of them"
            )
    return files


def folder_images(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The files of ``folder`` with one of ``suffixes`` in natural order, without hidden ones (macOS leaves ``._`` files).

    Raises ``FileNotFoundError`` for a link that leads nowhere: an image that was not fetched must not be left out in silence.
    """
    files = [
        file
        for file in _entries(folder)
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and not file.is_dir()
    ]
    for file in files:
        check_regular(file)
    return sorted(files, key=_natural)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise OSError(f"cannot read the folder {folder}: {error.strerror or error}; check its permissions") from error


def _natural(path: Path) -> Any:
    return natural_key(path.name), path.name


def load_stack(files: Sequence[Path], *, indexed: bool = False) -> Stack:
    """Decode ``files`` into one stack; all images must have one size and one number of channels.

    ``indexed``: as labels, see :class:`unet_fast.data.pages.Pages`. No second copy of the pixels is made on the way.
    """
    return stack_pages(Pages(files, labels=indexed))


def stack_pages(pages: Pages) -> Stack:
    """All of ``pages`` in memory; see :func:`load_stack`."""
    first = pages.shape(0)
    for index in range(len(pages)):
        if pages.shape(index) != first:
            raise images_differ(pages, index)
    dtype = np.result_type(*{pages.dtype(index) for index in range(len(pages))})
    for file, count in zip(pages.files, pages.counts(), strict=True):
        check_decoded(file, count * math.prod(first) * dtype.itemsize, file.stat().st_size)
    image = pages[0]
    pixels = np.empty((len(pages), *image.shape), dtype)
    for index in range(len(pages)):
        image = image if index == 0 else pages[index]
        if image.shape != pixels.shape[1:]:  # a mask drawn in alpha beside one in colour
            raise images_differ(pages, index)
        pixels[index] = image
    return Stack(pixels, pages.names)


def images_differ(pages: Pages, index: int) -> InputError:
    """The error of pages of which the first and that of ``index`` differ in size."""
    (one, _), (other, _) = pages.place(0), pages.place(index)
    return InputError(
        f"images of different sizes: {one} is {describe(pages.shape(0))}, {other} is {describe(pages.shape(index))}; "
        "crop or resize them to one size, or keep each size in a folder of its own"
    )


def match_channels(image: np.ndarray, channels: int, name: str) -> np.ndarray:
    """``image (C, H, W)`` with as many ``channels`` as a network takes: grey is repeated, equal channels are one.

    Raises :class:`InputError` where that would lose or invent something.
    """
    if len(image) == channels:
        return image
    if len(image) == 1:
        return np.repeat(image, channels, axis=0)
    if channels == 1 and bool((image == image[:1]).all()):
        return image[:1]
    raise InputError(f"the image {name} has {len(image)} channels that differ, but the network takes {channels}")


def file_name(name: str) -> str:
    """The name of an image without what no file could be called: ``01/t003`` and ``stack[3]`` hold such."""
    return re.sub(r'[\x00-\x1f/\\:*?"<>|\[\]]+', "_", name).rstrip("_")


def to_float(stack: Stack, path: PathLike) -> np.ndarray:
    """``stack`` as float32; raises when a value is NaN or infinite (also after the conversion to float32)."""
    with np.errstate(over="ignore"):
        images = np.ascontiguousarray(stack.pixels, dtype=np.float32)
    if stack.pixels.dtype.kind == "f":
        for index, image in enumerate(images):
            check_finite(image, f"slice {index} ({stack.names[index]}) of {path}")
    return images


def check_finite(image: np.ndarray, what: str) -> None:
    """Raise when a value of ``image`` is NaN or infinite, or would be in float32."""
    if image.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        image = image.astype(np.float32, copy=False)
    if not np.isfinite(image).all():
        bad = "NaN" if np.isnan(image).any() else "infinite"
        count = int(np.count_nonzero(~np.isfinite(image)))
        raise InputError(
            f"{what} holds {count} {bad} value{'s' if count > 1 else ''}; replace them, or leave the slice out"
        )


def read_images(path: PathLike) -> np.ndarray:
    """Read a TIFF stack, a PNG, or a folder of TIFF and PNG files as float32 ``(N, C, H, W)``, values as stored.

    Any integer, 1-bit or real dtype; any compression that imagecodecs knows; BigTIFF and OME-TIFF. Channel and colour
    axes become C (alpha is dropped), all others (pages, Z, T, ...) become N. Where 0 means white, the values are
    inverted, as viewers show them. Files of a folder come in natural order, ``img2`` before ``img10``; a file of several pages
    gives several images, and one that belongs to a set of OME-TIFF files only its own. In a folder of folders ``ID/images`` (2018
    Data Science Bowl) these are read.

    Raises ``FileNotFoundError`` for a missing path, ``OSError`` for an unreadable one, and :class:`InputError` for a
    file that is not an image, truncated or damaged, an empty folder, images of different sizes, NaN or infinite
    values, and complex values.
    """
    return to_float(load_stack(list_images(path, nested=True)), path)


def normalize(images: np.ndarray) -> np.ndarray:
    """Shift and scale each channel of each image to mean 0 and standard deviation 1; float32 ``(N, C, H, W)``.

    A constant channel has standard deviation 0 and becomes 0. Sums are taken in float64.

    Equivalent to::

        std = images.std(axis=(2, 3), keepdims=True)
        (images - images.mean(axis=(2, 3), keepdims=True)) / np.where(std == 0, 1, std)
    """
    images = np.asarray(images)
    if images.ndim != 4:
        raise InputError(f"images have {images.ndim} dimensions, shape {images.shape}; expected (N, C, H, W)")
    if images.dtype.kind not in "buif":
        raise InputTypeError(f"images have dtype {images.dtype}, expected integers or real numbers; convert them")
    out = np.empty(images.shape, np.float32)
    if images.size == 0:
        return out
    for index, image in enumerate(images):
        try:
            out[index] = measure(partial(iter, (image,))).apply(image)
        except InputError as error:
            raise InputError(
                f"slice {index} of the images holds NaN or infinite values; replace them, or leave the slice out"
            ) from error
    return out


def parse_slices(text: str, count: int) -> list[int]:
    """Indices named by ``text`` among ``count`` slices: pieces ``3``, ``20:25``, ``:5``, ``::2`` separated by commas.

    Pieces follow Python's slices (the stop is excluded) with numbers that are not negative, and come out in the order
    given. Raises :class:`InputError` for anything else, for a number beyond ``count``, for an empty selection and for
    a slice that is named twice.
    """
    example = f"expected slices such as 0:{min(5, count)} or 0,2 among the {count} slices 0 to {count - 1}"
    chosen: list[int] = []
    for piece in text.split(","):
        numbers = [number.strip() for number in piece.split(":")]
        if (
            len(numbers) > 3
            or (len(numbers) == 1 and not numbers[0])
            or not all(n == "" or n.isdecimal() for n in numbers)
        ):
            raise InputError(f"cannot read the slices {text!r}: {piece.strip()!r} is not a range; {example}")
        start, stop, step = ([int(n) if n else None for n in numbers] + [None, None])[:3]
        if len(numbers) == 1:
            assert start is not None
            stop = start + 1
        if step == 0:
            raise InputError(f"cannot read the slices {text!r}: the step of {piece.strip()!r} is 0; {example}")
        if max(start or 0, (stop or 1) - 1) >= count:
            raise InputError(f"the slices {text!r} go beyond the last one: {piece.strip()!r}; {example}")
        picked = range(count)[slice(start, stop, step)]
        if not picked:
            raise InputError(f"the slices {text!r} select nothing: {piece.strip()!r} is empty; {example}")
        chosen += picked
    if len(set(chosen)) < len(chosen):
        twice = min(index for index, times in Counter(chosen).items() if times > 1)
        raise InputError(f"the slices {text!r} name slice {twice} twice; name each slice once")
    return chosen


def write_stack(path: PathLike, array: np.ndarray) -> None:
    """Write ``(H, W)``, ``(N, H, W)`` or ``(N, C, H, W)`` as a TIFF with lossless deflate, whole or not at all.

    Bool is stored as uint8 0 and 1, float16 as float32, and 64-bit integers in the narrowest dtype of 8, 16 or 32 bits
    that holds them, since common viewers open no other. BigTIFF is used where the data need it.
    :func:`read_images` reads the array back in the shape ``(N, C, H, W)``.

    Raises :class:`InputError` for another rank, dtype or an empty array, ``OSError`` when the file cannot be written.
    """
    array = np.asarray(array)
    if array.ndim not in _AXES or array.size == 0:
        raise InputError(
            f"cannot write an array of shape {array.shape} to {path}; expected (H, W), (N, H, W) or (N, C, H, W), "
            "not empty"
        )
    if array.dtype.kind not in "buif":
        raise InputTypeError(f"cannot write dtype {array.dtype} to {path}; expected integers or real numbers")
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"cannot write {path}: stacks are written as TIFF; give a name that ends in .tif")
    if array.dtype.kind == "b" or array.dtype == np.float16:
        array = array.astype(np.uint8 if array.dtype.kind == "b" else np.float32)
    elif array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        narrow = np.result_type(np.min_scalar_type(array.min()), np.min_scalar_type(array.max()))
        array = array.astype(narrow if narrow.itemsize < 8 else array.dtype)
    with new_tiff(path, array.shape, array.dtype) as write:
        write(array)


@contextmanager
def new_tiff(
    path: PathLike, shape: tuple[int, ...], dtype: np.dtype, *, ome: bool = False
) -> Iterator[Callable[..., Any]]:
    """The one way in which TIFF files are written: lossless deflate, BigTIFF where the data need it, whole or not at all.

    What it gives writes an array of this shape (see :func:`write_stack`), its planes one after the other, or the bytes of their
    strips or tiles; its keywords are those of ``tifffile.TiffWriter.write``, such as the ``shape`` of a smaller level.
    ``OSError`` when the file cannot be written.
    """
    import tifffile

    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": None, "compression": "adobe_deflate"}
    with (
        atomic_path(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=needs_bigtiff(shape, dtype), ome=ome) as writer,
    ):
        yield partial(writer.write, shape=shape, dtype=dtype, metadata={"axes": _AXES[len(shape)]}, **options)


def needs_bigtiff(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether a TIFF of this array could exceed the 4 GiB that a classic TIFF can address."""
    return math.prod(map(int, shape)) * dtype.itemsize > _CLASSIC_TIFF_BYTES
