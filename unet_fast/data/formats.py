"""Decoding one TIFF or PNG file to an array ``(N, C, H, W)`` of the stored dtype; errors name file, cause and cure.

Libraries decode; what is added here is the order of the axes and the proof that a file is whole. A TIFF that was cut
off often still opens: the chain of its directories merely ends early, and a reader sees fewer pages or a page of
zeros. Such a file must not become training data, so the chain is walked to its proper end before any pixel is read.
"""

from __future__ import annotations

import logging
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from unet_fast.errors import InputError, InputTypeError

if TYPE_CHECKING:
    import tifffile

SUFFIXES = (".tif", ".tiff", ".png")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

# description, and where the pixel data lies: tags whose values must be inside the file for it to be readable
_VITAL_TAGS = frozenset((270, 273, 279, 324, 325))
_TAG_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
# ImageJ composes at most seven channels: a longer channel axis is a stack that was written without naming its axes
_IMAGEJ_MAX_CHANNELS = 7


def truncated(path: Path, detail: str) -> InputError:
    """The error for a file that ends before its data does."""
    return InputError(f"{path} is truncated: {detail}; copy or export the file again")


def decode_file(path: Path, *, indexed: bool = False) -> np.ndarray:
    """Read one TIFF or PNG file as ``(N, C, H, W)``, stored values and dtype (1-bit data become uint8 0 and 1).

    ``indexed`` keeps the indices of a PNG with a palette, which is how label images are often stored, instead of its
    colours. TIFF colour maps are display tables (lookup tables of Fiji, say), so the stored values are returned in
    either case. Alpha channels are dropped.

    Raises ``FileNotFoundError``, ``OSError`` (not readable) or :class:`InputError` (not an image, truncated, damaged,
    pages of different sizes, complex values).
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    if not head:
        raise InputError(f"{path} is empty (0 bytes); copy or export the file again")
    if head[:4] in TIFF_MAGIC:
        stack = _decode_tiff(path)
    elif head == PNG_MAGIC:
        stack = _decode_png(path, indexed)
    else:
        raise InputError(f"{path} is neither a TIFF nor a PNG file; convert it to one of these")
    if stack.dtype.kind == "b":
        stack = stack.view(np.uint8)
    if stack.dtype.kind == "c":
        raise InputTypeError(
            f"{path} holds complex values ({stack.dtype}), expected integers or real numbers; save the magnitude"
        )
    if stack.dtype.kind not in "uif":
        raise InputTypeError(
            f"{path} holds values of type {stack.dtype}, expected integers or real numbers; convert it"
        )
    if stack.size == 0:
        raise InputError(f"{path} holds no pixels, shape {stack.shape}; export the file again")
    return stack


def _decode_png(path: Path, indexed: bool) -> np.ndarray:
    from PIL import Image

    try:
        data = path.read_bytes()
        bits = data[24]  # of the header chunk: bits a sample
        if bits == 16:  # Pillow reduces 16-bit colour to 8 bits
            import imagecodecs

            pixels = np.asarray(imagecodecs.png_decode(data))
        else:
            with Image.open(path) as file:
                image: Image.Image = file
                if image.mode in ("P", "PA") and not indexed:
                    image = image.convert("RGBA" if "transparency" in image.info else "RGB")
                pixels = np.asarray(image)
                if image.mode == "L" and bits in (2, 4):  # Pillow stretches these to 0..255; stored values count
                    pixels = pixels // {2: 85, 4: 17}[bits]
    except Exception as error:  # each decoder raises its own types
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is a truncated or damaged PNG ({cause}); copy or export the file again") from error
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    colours = {2: 1, 4: 3}.get(pixels.shape[2], pixels.shape[2])  # 2 and 4 channels: the last is alpha
    return np.moveaxis(pixels[:, :, :colours], 2, 0)[None]


def _decode_tiff(path: Path) -> np.ndarray:
    import tifffile

    count = _walk_directories(path)
    try:
        with _quiet("tifffile"), tifffile.TiffFile(path) as tif:
            if len(tif.pages) != count:
                raise truncated(path, f"{count} pages are announced, {len(tif.pages)} can be read")
            _check_extents(path, tif)
            return _join_series(path, tif)
    except InputError:
        raise
    except Exception as error:  # the decoders behind tifffile raise their own types
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is a damaged TIFF, or uses an unknown compression ({cause}); export the file again"
        ) from error


def _join_series(path: Path, tif: tifffile.TiffFile) -> np.ndarray:
    """All images of the file, in page order, as one ``(N, C, H, W)`` array."""
    series = [part for part in tif.series if not part.keyframe.is_reduced]  # no thumbnails
    if len(series) > 1 and all(part.kind == "generic" for part in series):
        # such series are groups of alike pages, in which the order of the pages is lost
        pages = [page.aspage() for page in tif.pages if not page.aspage().is_reduced]
        parts = [_to_nchw(path, page.asarray(), page.axes, page) for page in pages]
    else:
        parts = []
        for part in series:
            if any(page is None for page in part.pages):
                raise InputError(
                    f"{path} lacks pages that its metadata announce; put all files of an OME-TIFF set in one folder, "
                    "or export it again"
                )
            axes = part.axes
            if part.kind == "imagej" and axes == "CYX" and part.shape[0] > _IMAGEJ_MAX_CHANNELS:
                axes = "ZYX"
            parts.append(_to_nchw(path, part.asarray(), axes, part.keyframe))
    if not parts:
        raise InputError(f"{path} holds no image; export the file again")
    for index, stack in enumerate(parts):
        if stack.shape[1:] != parts[0].shape[1:]:
            raise InputError(
                f"{path} holds pages of different sizes: page 0 is {describe(parts[0])}, page {index} is "
                f"{describe(stack)}; save pages of one size to a file, or crop them alike"
            )
    stack = parts[0] if len(parts) == 1 else np.concatenate(parts)
    announced = (tif.imagej_metadata or {}).get("images", 1) if tif.is_imagej else 1
    if stack.shape[0] * stack.shape[1] < announced:
        raise truncated(path, f"{announced} pages are announced, {stack.shape[0] * stack.shape[1]} can be read")
    return stack


def _to_nchw(path: Path, array: np.ndarray, axes: str, page: Any) -> np.ndarray:
    """Order ``array`` with ``axes`` (names of tifffile) as ``(N, C, H, W)``: C and S are channels, the rest images."""
    if "Y" not in axes or "X" not in axes:
        raise InputError(f"{path} has the axes {axes}, expected images with Y and X; export it as a stack of images")
    if "S" in axes:
        samples = array.shape[axes.index("S")]
        kinds = [int(kind) for kind in page.extrasamples] or (
            [2] if samples == 4 and int(page.photometric) == 2 else []
        )
        alpha = sum(kind in (1, 2) for kind in kinds)  # associated and unassociated alpha
        array = np.take(array, range(samples - alpha), axis=axes.index("S")) if alpha else array
    images = [i for i, name in enumerate(axes) if name not in "CSYX"]
    channels = [i for i, name in enumerate(axes) if name in "CS"]
    shape = array.shape
    ordered = array.transpose(*images, *channels, axes.index("Y"), axes.index("X"))
    count, depth = (math.prod(shape[i] for i in group) for group in (images, channels))
    return ordered.reshape(count, depth, shape[axes.index("Y")], shape[axes.index("X")])


def describe(stack: np.ndarray) -> str:
    """Height, width and channels of an ``(N, C, H, W)`` stack in words."""
    channels, height, width = stack.shape[1:]
    return f"{height}x{width}" + (f" with {channels} channels" if channels > 1 else "")


def _check_extents(path: Path, tif: tifffile.TiffFile) -> None:
    """Raise when the pixel data of a page lie outside the file or were never written (readers then return zeros)."""
    size = tif.filehandle.size
    for index, page in enumerate(tif.pages):
        end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        if end > size:
            raise truncated(path, f"page {index} ends at byte {end}, the file at byte {size}")
        if not page.databytecounts or min(page.databytecounts) == 0:
            raise truncated(path, f"page {index} lacks pixel data")


def _walk_directories(path: Path) -> int:
    """Number of pages of a TIFF, after following the chain of its directories (classic or BigTIFF) to the end.

    Raises when the chain, a directory, or the value of a vital tag leaves the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16).ljust(16, b"\0")
        order = "<" if head[:2] == b"II" else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        (offset,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise InputError(f"{path} is a damaged TIFF (its page list is circular); export the file again")
            seen.add(offset)
            offset = _next_directory(path, file, offset, size, order, big, len(seen) - 1)
    if not seen:
        raise truncated(path, "it has no page")
    return len(seen)


def _next_directory(path: Path, file: BinaryIO, offset: int, size: int, order: str, big: bool, index: int) -> int:
    """Check the directory of page ``index`` at ``offset`` and return the offset of the next one (0 after the last)."""
    count_format, entry_format, next_format, inline = ("Q", "HHQQ", "Q", 8) if big else ("H", "HHII", "I", 4)
    count_bytes, entry_bytes = struct.calcsize("<" + count_format), struct.calcsize("<" + entry_format)
    file.seek(offset)
    raw = file.read(count_bytes)
    entries = struct.unpack(order + count_format, raw)[0] if len(raw) == count_bytes else 0
    length = entries * entry_bytes + struct.calcsize("<" + next_format)
    if not entries or offset + count_bytes + length > size:
        raise truncated(path, f"the directory of page {index} lies at byte {offset}, the file ends at byte {size}")
    raw = file.read(length)
    for tag, kind, values, position in struct.iter_unpack(order + entry_format, raw[: entries * entry_bytes]):
        extent = values * _TAG_TYPE_BYTES.get(kind, 1)
        if tag in _VITAL_TAGS and extent > inline and position + extent > size:
            raise truncated(
                path,
                f"the description of page {index} ends at byte {position + extent}, the file at byte {size}",
            )
    return int(struct.unpack(order + next_format, raw[entries * entry_bytes :])[0])


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep the logger ``name`` silent: what it would say about a bad file is said once, by the error raised."""
    logger = logging.getLogger(name)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def natural_key(name: str | os.PathLike[str]) -> list[tuple[bool, int, str]]:
    """Sort key that orders ``img2`` before ``img10``."""
    key: list[tuple[bool, int, str]] = []
    for digits, text in split_digits(os.fspath(name)):
        key.append((bool(text), int(digits) if digits else -1, text.lower()))
    return key


def split_digits(text: str) -> list[tuple[str, str]]:
    """Runs of digits and of other characters, in order, as pairs of which one member is empty."""
    import re

    return re.findall(r"([0-9]+)|([^0-9]+)", text)
