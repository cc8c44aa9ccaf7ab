"""Opening one TIFF or PNG file, whose images ``(C, H, W)`` are decoded one at a time; errors name file, cause and cure."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Protocol

import numpy as np

from unet_fast.data.limits import check_decoded
from unet_fast.data.zarr_files import ZarrImages, is_zarr
from unet_fast.errors import InputError
from unet_fast.files import check_regular, reading
from unet_fast.notes import note

SUFFIXES = (".tif", ".tiff", ".png")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Images(Protocol):
    """The images of one open file, all of one ``shape`` ``(C, H, W)`` and one ``dtype``, values as stored.

    The last ``alpha`` (0 or 1) channels are transparency. ``colour``: the others are colours of one picture.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    colour: bool
    alpha: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...

    def window(self, index: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray: ...

    def close(self) -> None: ...


def open_file(path: Path, *, indexed: bool = False) -> Images:
    """Open one TIFF or PNG file, or the folder of a Zarr image, after making sure that it is whole; 1-bit data are uint8 0 and 1.

    ``indexed`` keeps the indices of a PNG with a palette, which is how label images are often stored, instead of its
    colours. TIFF colour maps are display tables (lookup tables of Fiji, say), so the stored values are returned in
    either case. Images in which 0 means white are inverted, as every viewer does.

    Raises ``FileNotFoundError``, ``OSError`` (not readable) or :class:`InputError` (not a regular file, not an image,
    truncated, damaged, pages of different sizes, complex values, more pixels than :mod:`unet_fast.data.limits` allows).
    """
    if is_zarr(path):
        reading(path)
        return ZarrImages(path)
    check_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    if not head:
        raise InputError(f"{path} is empty (0 bytes); copy or export the file again")
    reading(path)
    if head[:4] in TIFF_MAGIC:
        from unet_fast.data._tiff import TiffImages

        return TiffImages(path)
    if head == PNG_MAGIC:
        from unet_fast.data._png import PngImages

        return PngImages(path, indexed)
    raise InputError(f"{path} is neither a TIFF nor a PNG file; convert it to one of these")


def picture(images: Images, index: int) -> np.ndarray:
    """Image ``index`` without its alpha; raises when the picture is in its alpha only."""
    whole = images[index]
    if not images.alpha:
        return whole
    colours, alpha = whole[: -images.alpha], whole[-images.alpha :]
    if bool((colours == colours[:, :1, :1]).all()) and alpha.min() != alpha.max():
        raise InputError(
            f"{images.path} has one colour all over and its picture in the transparency; flatten it onto a background"
        )
    return colours


def drawn_label(images: Images, index: int) -> np.ndarray:
    """Label image ``index`` as ``(C, H, W)`` without alpha: a mask that was painted on a transparent layer is its alpha.

    Raises :class:`InputError` where transparency hides labels, so that nobody knows which of the two counts.
    """
    whole = images[index]
    if not images.alpha:
        return whole
    colours, alpha = whole[: -images.alpha], whole[-1]
    if alpha.min() == alpha.max():
        return colours
    if bool((colours == colours[:, :1, :1]).all()):
        note("of one colour all over, so its transparency (alpha) is read as the labels", images.path)
        return alpha[None]
    transparent = alpha == 0
    solid = alpha == np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else alpha == alpha.max()
    if bool((transparent | solid).all()) and not colours[:, transparent].any():
        return colours  # transparent is background, and 0
    raise InputError(
        f"{images.path} is partly transparent, so its colours and its alpha say different things; flatten it "
        "onto a background of 0, and save it without alpha"
    )


def decode_file(path: Path, *, indexed: bool = False) -> np.ndarray:
    """All images of one file as ``(N, C, H, W)`` in the stored dtype; ``indexed``: as labels, see :func:`drawn_label`."""
    images = open_file(path, indexed=indexed)
    try:
        return read_all(images, indexed)
    finally:
        images.close()


def read_all(images: Images, indexed: bool) -> np.ndarray:
    """The images of an open file as one array ``(N, C, H, W)``."""
    shape = (len(images), images.shape[0] - images.alpha, *images.shape[1:])
    size = images.path.stat().st_size
    check_decoded(images.path, math.prod(shape) * images.dtype.itemsize, size)
    take = drawn_label if indexed else picture
    first = take(images, 0)
    if len(images) == 1:
        return first[None]
    out = np.empty((len(images), *first.shape), images.dtype)
    for index in range(len(images)):
        image = first if index == 0 else take(images, index)
        if image.shape != first.shape:  # alpha in one page, colour in the other
            raise InputError(f"{images.path}: page 0 and page {index} are of different kinds; save them alike")
        out[index] = image
    return out


def describe(shape: tuple[int, int, int]) -> str:
    """Height, width and channels of an image ``(C, H, W)`` in words."""
    channels, height, width = shape
    return f"{height}x{width}" + (f" with {channels} channels" if channels > 1 else "")


def natural_key(name: str | os.PathLike[str]) -> list[tuple[bool, int, str]]:
    """Sort key that orders ``img2`` before ``img10``."""
    key: list[tuple[bool, int, str]] = []
    for digits, text in split_digits(os.fspath(name)):
        key.append((bool(text), int(digits) if digits else -1, text.lower()))
    return key


def split_digits(text: str) -> list[tuple[str, str]]:
    """Runs of digits and of other characters, in order, as pairs of which one member is empty."""
    return re.findall(r"([0-9]+)|([^0-9]+)", text)
