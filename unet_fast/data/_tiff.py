"""A TIFF as a row of images ``(C, H, W)``, of which one at a time, or a window of one, is decoded.

tifffile decodes; what is added here is the order of the axes: channels and colours become C, every other axis (pages, Z,
T, ...) becomes the row. A file is read alone: an OME-TIFF that is one file of a set, or that names any other file, gives
its own pages and nothing else.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unet_fast.data._tiff_check import count_pages, truncated
from unet_fast.data.formats import describe
from unet_fast.data.limits import check_decoded
from unet_fast.errors import InputError, InputTypeError, first_line
from unet_fast.notes import note

# ImageJ composes at most seven channels: a longer channel axis is a stack that was written without naming its axes
_IMAGEJ_MAX_CHANNELS = 7
_WHITE_IS_ZERO, _RGB = 0, 2


class TiffImages:
    """The images of one TIFF; see :class:`unet_fast.data.formats.Images` for what every format offers.

    Raises :class:`InputError` for a file that is truncated or damaged, or whose pages differ in size.
    """

    def __init__(self, path: Path) -> None:
        import tifffile

        self.path, self._lock = path, threading.Lock()
        self._bytes = path.stat().st_size
        count = count_pages(path)
        with _errors(path):
            self._tif = tifffile.TiffFile(path, _multifile=False)
            if len(self._tif.pages) != count:
                raise truncated(path, f"{count} pages are announced, {len(self._tif.pages)} can be read")
            self._parts = [_Series(path, part, kind) for part, kind in self._series()]
        if not self._parts:
            raise InputError(f"{path} holds no image; export the file again")
        first = self._parts[0]
        starts = [0]
        for part in self._parts:
            if part.shape != first.shape:
                raise InputError(
                    f"{path} holds pages of different sizes: page 0 is {describe(first.shape)}, page {starts[-1]} is "
                    f"{describe(part.shape)}; save pages of one size to a file, or crop them alike"
                )
            starts.append(starts[-1] + part.count)
        self._starts = starts
        self.shape, self.colour, self.alpha = first.shape, first.colour, first.alpha
        self.dtype = np.result_type(*{part.dtype for part in self._parts})
        self._check_header(count)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> np.ndarray:
        """Image ``index`` as ``(C, H, W)``, alpha included where there is one."""
        return self.window(index, (0, 0), (self.shape[1], self.shape[2]))

    def window(self, index: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """The part of image ``index`` from ``start`` (y, x) on, ``(C, *size)``; only its strips or tiles are decoded."""
        whole = size == self.shape[1:]
        check_decoded(self.path, math.prod((self.shape[0], *size)) * self.dtype.itemsize, self._bytes)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        with self._lock, _errors(self.path):
            part = self._parts[number].image(index - self._starts[number], start, size, whole)
        return part.astype(self.dtype, copy=False)

    def close(self) -> None:
        """Give the file back to the system."""
        self._tif.close()

    def _series(self) -> list[tuple[Any, str]]:
        """What to read, in page order: series of alike pages whose axes are known, or single pages."""
        tif = self._tif
        if self._stale_header():
            note(
                f"the ImageJ header announces {self._announced()} images, the file holds {len(tif.pages)} whole "
                "pages; the pages are read",
                self.path,
            )
            return [(page, "page") for page in self._pages()]
        series = [part for part in tif.series if not part.keyframe.is_reduced]  # no thumbnails
        # generic series are groups of alike pages, in which the order of the pages is lost
        if len(series) > 1 and all(part.kind == "generic" for part in series):
            return [(page, "page") for page in self._pages()]
        for part in series:
            if any(page is None for page in part.pages):
                raise InputError(f"{self.path} lacks pages that its metadata announce; export the file again")
        if tif.is_ome and any(part.kind == "generic" for part in series):
            note(f"one file of an OME-TIFF set; its own {len(tif.pages)} pages are read, no other file", self.path)
        return [(part, part.kind) for part in series]

    def _pages(self) -> list[Any]:
        return [page.aspage() for page in self._tif.pages if not page.aspage().is_reduced]

    def _announced(self) -> int:
        return int((self._tif.imagej_metadata or {}).get("images", 1)) if self._tif.is_imagej else 1

    def _stale_header(self) -> bool:
        """Whether an ImageJ header speaks of more images than the whole, complete chain of several pages holds.

        Recordings that were split page by page keep the header of the whole. (ImageJ itself writes either every page, or
        one page that is followed by the pixels of all.)
        """
        pages = len(self._tif.pages)
        return pages > 1 and self._announced() > pages

    def _check_header(self, pages: int) -> None:
        held = len(self) * self.shape[0]
        if not self._stale_header() and held < self._announced():
            raise truncated(
                self.path,
                f"its ImageJ header announces {self._announced()} images, {held} can be read (if it was split from a longer "
                "recording, save it without that header)",
            )


class _Series:
    """Images out of frames: ``frames[index]`` are the frames of image ``index``, each ``inner`` images and channels deep.

    A frame is what tifffile reads at once: a page, or its share of pixels that follow one header.
    """

    def __init__(self, path: Path, source: Any, kind: str) -> None:
        single = kind == "page"
        page = source if single else source.keyframe
        axes = page.axes if single else source.get_axes(False)
        shape = tuple(page.shape if single else source.get_shape(False))
        if kind == "imagej" and not single and source.axes == "CYX" and source.shape[0] > _IMAGEJ_MAX_CHANNELS:
            axes = axes.replace("C", "I")
        if "Y" not in axes or "X" not in axes:
            raise InputError(
                f"{path} has the axes {axes}, expected images with Y and X; export it as a stack of images"
            )
        if page.dtype is None or 0 in shape:
            raise InputError(f"{path} holds no pixels that can be read, shape {shape}; export the file again")
        depth = _frame_axes(axes, shape, math.prod(page.shape))
        self.source, self.page, self.single = source, page, single
        self.axes, self.frame_shape = axes[depth:], shape[depth:]
        images = [i for i, name in enumerate(axes[:depth]) if name not in "CS"]
        channels = [i for i, name in enumerate(axes[:depth]) if name in "CS"]
        order = np.arange(math.prod(shape[:depth])).reshape(shape[:depth])
        self.frames = order.transpose(*images, *channels).reshape(math.prod(shape[i] for i in images), -1)
        if not single and len(source) not in (order.size, 1):
            raise InputError(f"{path} holds {len(source)} pages, its metadata announce {order.size}; export it again")
        inner = [i for i, name in enumerate(self.axes) if name not in "CSYX"]
        colours = [i for i, name in enumerate(self.axes) if name in "CS"]
        self.transpose = (*inner, *colours, self.axes.index("Y"), self.axes.index("X"))
        self.inner = math.prod(self.frame_shape[i] for i in inner)
        samples = math.prod(self.frame_shape[i] for i in colours)
        self.dtype = np.dtype(np.uint8) if page.dtype.kind == "b" else page.dtype.newbyteorder("=")
        if self.dtype.kind not in "uif":
            values, cure = (
                ("complex values", "save the magnitude") if self.dtype.kind == "c" else ("values", "convert it")
            )
            raise InputTypeError(f"{path} holds {values} ({self.dtype}), expected integers or real numbers; {cure}")
        kinds = [int(kind) for kind in page.extrasamples] or (
            [2] if samples == 4 and _photometric(page) == _RGB else []
        )
        self.alpha = sum(kind in (1, 2) for kind in kinds) if "S" in self.axes else 0  # (un)associated alpha
        self.colour = "S" in self.axes and samples - self.alpha > 1
        # beside other channels, the alpha of each is dropped here; of a single picture it may be what was drawn
        self.dropped = self.alpha if self.frames.shape[1] > 1 else 0
        self.alpha -= self.dropped
        samples -= self.dropped
        self.count = len(self.frames) * self.inner
        height, width = (self.frame_shape[self.axes.index(name)] for name in "YX")
        self.shape = (self.frames.shape[1] * samples, height, width)
        self.highest = 0
        if _photometric(page) == _WHITE_IS_ZERO and page.dtype.kind in "bu":
            self.highest = 2 ** int(page.bitspersample) - 1
            if page.bitspersample > 1:
                note("0 means white in it, so its values are inverted, as viewers show them", path)

    def image(self, index: int, start: tuple[int, int], size: tuple[int, int], whole: bool) -> np.ndarray:
        """A window of image ``index``, ``(C, h, w)``."""
        row, inner = divmod(index, self.inner)
        planes = []
        for number in self.frames[row]:
            frame = self.source if self.single else self.source[int(number)]
            if whole:
                pixels = frame.asarray(maxworkers=1)
            else:
                pixels = _read_window(frame, start, size)
            shape = [*self.frame_shape]
            shape[self.axes.index("Y")], shape[self.axes.index("X")] = size
            pixels = pixels.reshape(shape).transpose(self.transpose)
            pixels = pixels.reshape(self.inner, -1, *size)[inner]
            planes.append(pixels[: len(pixels) - self.dropped])
        image = planes[0] if len(planes) == 1 else np.concatenate(planes)
        if image.dtype.kind == "b":
            image = image.view(np.uint8)
        if self.highest:
            colours = len(image) - self.alpha
            image = np.concatenate([(self.highest - image[:colours]).astype(image.dtype), image[colours:]])
        return image


def _photometric(page: Any) -> int:
    return int(page.photometric) if page.photometric is not None else -1


def _frame_axes(axes: str, shape: tuple[int, ...], size: int) -> int:
    """Where the axes of a frame of ``size`` pixels begin among those of a series."""
    for depth in range(min(axes.index("Y"), axes.index("X")), -1, -1):
        if math.prod(shape[depth:]) == size:
            return depth
    raise ValueError(f"pages of {size} values do not make up {axes} of shape {shape}")


def _read_window(frame: Any, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Window (y, x), (h, w) of a frame, in the order of axes (separate sample, depth, y, x, sample), which are no images."""
    page = frame.keyframe
    separate, depth, height, width, samples = page.shaped
    out = np.empty((separate, depth, *size, samples), page.dtype)
    (top, left), (bottom, right) = start, (start[0] + size[0], start[1] + size[1])
    handle = frame.parent.filehandle
    if frame.is_contiguous:
        dtype = page.dtype.newbyteorder(frame.parent.byteorder)
        row = width * samples * dtype.itemsize
        for s in range(separate):
            for d in range(depth):
                handle.seek(frame.dataoffsets[0] + ((s * depth + d) * height + top) * row)
                rows = np.frombuffer(handle.read(size[0] * row), dtype).reshape(size[0], width, samples)
                out[s, d] = rows[:, left:right]
        return out
    if page.is_tiled:
        across, down, deep = page.tilewidth, page.tilelength, page.tiledepth
    else:
        across, down, deep = width, page.rowsperstrip, 1
    columns, lines, layers = -(-width // across), -(-height // down), -(-depth // deep)
    for s in range(separate):
        for layer in range(layers):
            for line in range(top // down, -(-bottom // down)):
                for column in range(left // across, -(-right // across)):
                    index = ((s * layers + layer) * lines + line) * columns + column
                    handle.seek(frame.dataoffsets[index])
                    data = handle.read(frame.databytecounts[index])
                    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
                    tile, (_, z, y, x, _), _ = frame.decode(data, index, **tables)
                    tile = tile[: depth - z, : height - y, : width - x]
                    inside = slice(max(top - y, 0), min(bottom - y, tile.shape[1]))
                    cells = slice(max(left - x, 0), min(right - x, tile.shape[2]))
                    out[
                        s, z : z + len(tile), y + inside.start - top : y + inside.stop - top,
                        x + cells.start - left : x + cells.stop - left,
                    ] = tile[:, inside, cells]  # fmt: skip
    return out


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """What the decoders behind tifffile raise (each its own types) as one :class:`InputError`; their log stays silent."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    except (InputError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise OSError(f"cannot read {path}: {error.strerror or error}") from error
        raise InputError(f"{path} is a damaged TIFF ({error}); export the file again") from error
    except Exception as error:
        cause = first_line(error)[:200]
        raise InputError(
            f"{path} is a damaged TIFF, or uses an unknown compression ({cause}); export the file again"
        ) from error
    finally:
        logger.disabled = before
