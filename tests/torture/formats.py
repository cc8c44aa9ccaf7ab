"""A small file of every format and encoding, and what reading it once more comes to."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.torture.child import GOOD, NO_MEMORY, REFUSED, TRACEBACK
from unet_fast.data import Pages, read_images, read_labels
from unet_fast.errors import InputError


def _tiff(**options: Any) -> Callable[[Path, np.random.Generator], Path]:
    def make(folder: Path, rng: np.random.Generator) -> Path:
        path = folder / ("a.ome.tif" if options.get("ome") else "a.tif")
        stack = rng.integers(0, 255, (3, 24, 20), dtype=np.uint8)
        tifffile.imwrite(path, stack, **{"photometric": "minisblack", **options})
        return path

    return make


def _png(shape: tuple[int, ...], mode: str | None = None) -> Callable[[Path, np.random.Generator], Path]:
    def make(folder: Path, rng: np.random.Generator) -> Path:
        path = folder / "a.png"
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8), mode).save(path)
        return path

    return make


def _png_16(folder: Path, rng: np.random.Generator) -> Path:
    import imagecodecs

    path = folder / "a.png"
    path.write_bytes(imagecodecs.png_encode(rng.integers(0, 65535, (24, 20), dtype=np.uint16)))
    return path


def _palette(folder: Path, rng: np.random.Generator) -> Path:
    path = folder / "a.png"
    image = Image.fromarray(rng.integers(0, 4, (24, 20), dtype=np.uint8), "P")
    image.putpalette(rng.bytes(768))
    image.save(path, transparency=1)
    return path


FORMATS: dict[str, Callable[[Path, np.random.Generator], Path]] = {
    "TIFF": _tiff(),
    "TIFF, zlib": _tiff(compression="zlib", rowsperstrip=5),
    "TIFF, LZW": _tiff(compression="lzw"),
    "TIFF, tiles": _tiff(compression="zlib", tile=(16, 16), predictor=True),
    "BigTIFF": _tiff(bigtiff=True),
    "ImageJ": _tiff(imagej=True),
    "OME-TIFF": _tiff(ome=True),
    "PNG": _png((24, 20)),
    "PNG, RGBA": _png((24, 20, 4), "RGBA"),
    "PNG, palette": _palette,
    "PNG, 16 bits": _png_16,
}


def read(path: Path, contents: Sequence[bytes]) -> list[tuple[str, str]]:
    """What reading each of ``contents`` under the name ``path`` comes to, as images, as labels and in windows."""
    return [_read(path, data) for data in contents]


def _read(path: Path, data: bytes) -> tuple[str, str]:
    import warnings

    path.write_bytes(data)
    word, text = GOOD, ""
    for work in (read_images, read_labels, _windows):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work(path)
        except (InputError, OSError) as error:
            if work is read_images:  # noise makes no labels
                word = REFUSED
            if "\n" in str(error) or len(str(error)) > 1500:
                return TRACEBACK, f"a message of {len(str(error))} characters: {str(error)[:300]}"
        except MemoryError:
            word = NO_MEMORY
        except Exception:
            return TRACEBACK, traceback.format_exc()
    return word, text


def _windows(path: Path) -> None:
    pages = Pages([path])
    for index in range(min(len(pages), 3)):
        _, height, width = pages.shape(index)
        pages.window(index, (height // 3, width // 3), (max(height // 2, 1), max(width // 2, 1)))
