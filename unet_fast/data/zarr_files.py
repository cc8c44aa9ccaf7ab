"""OME-Zarr and plain Zarr arrays: read window by window, written chunk by chunk. zarr is an extra, asked for by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unet_fast.data.bands import Regrouping, pyramid_levels, thinned
from unet_fast.data.limits import check_decoded
from unet_fast.errors import BackendError, InputError, InputTypeError, first_line
from unet_fast.files import atomic_folder, refuse_replacing

SUFFIX = ".zarr"
_CHANNEL_AXES = ("c",)
_CHUNK = 512
_MOST_IMAGES = 2**24  # of a folder that somebody has sent: a name is held for each


def is_zarr(path: Path) -> bool:
    """Whether ``path`` is the folder of a Zarr array or group; nothing is loaded."""
    return path.is_dir() and any((path / name).exists() for name in (".zarray", ".zgroup", "zarr.json"))


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise BackendError(
            f"Zarr files need the package zarr, which cannot be imported ({error}); install it with: "
            "pip install 'unet_fast[zarr]'"
        ) from error
    return zarr


def label_names(path: Path) -> list[str]:
    """The label images of an OME-Zarr image, which are folders in its folder ``labels``; without zarr nothing is loaded for none."""
    folder = path / "labels"
    if not is_zarr(folder):
        return []
    attributes = dict(_opened(folder).attrs)
    names = attributes.get("ome", attributes).get("labels", [])
    return [name for name in names if isinstance(name, str) and is_zarr(folder / name)]


def _opened(path: Path) -> Any:
    try:
        return _zarr().open(str(path), mode="r")
    except BackendError:
        raise
    except Exception as error:  # zarr and its codecs raise their own types
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    cause = first_line(error)
    return InputError(f"{path} is damaged, or not a Zarr that can be read ({cause})")


class ZarrImages:
    """The images of one Zarr folder; see :class:`unet_fast.data.formats.Images` for what every format offers.

    Of an OME-Zarr image (0.4 or 0.5) the full resolution is read, by the axes that it names: y and x are the image, c its
    channels, every other axis counts images. A plain array is (H, W), (N, H, W) or (N, C, H, W).

    Raises:
        BackendError: zarr is not installed.
        InputError: no array, axes without y and x at the end, or no pixels.
        InputTypeError: values that are neither integers nor real numbers.
    """

    colour, alpha = False, 0

    def __init__(self, path: Path) -> None:
        self.path = path
        node = _opened(path)
        try:
            array, axes = _full_resolution(node, path)
        except InputError:
            raise
        except Exception as error:  # zarr and its codecs raise their own types
            raise _damaged(path, error) from error
        if axes[-2:] != "yx" or 0 in array.shape:
            raise InputError(f"{path} has the axes {axes}, shape {array.shape}; expected images, y and x at the end")
        self.dtype = np.dtype(array.dtype)
        if self.dtype.kind not in "buif":
            raise InputTypeError(f"{path} holds values of {self.dtype}, expected integers or real numbers; convert it")
        self._array, self._axes = array, axes
        self._channel = axes.find("c")
        self._others = [i for i, name in enumerate(axes[:-2]) if name not in _CHANNEL_AXES]
        self._counts = [int(array.shape[i]) for i in self._others]
        channels = int(array.shape[self._channel]) if self._channel >= 0 else 1
        self.shape = (channels, int(array.shape[-2]), int(array.shape[-1]))
        if self.dtype.kind == "b":
            self.dtype = np.dtype(np.uint8)
        if len(self) > _MOST_IMAGES:
            raise InputError(f"{path} announces {len(self):,} images, expected at most {_MOST_IMAGES:,}")
        # a chunk that is not there is one of the fill value, so no size of a file bounds it
        chunk = math.prod(map(int, array.chunks)) * self.dtype.itemsize
        check_decoded(path, chunk, 0, "has chunks that decode")

    def __len__(self) -> int:
        return math.prod(self._counts)

    def __getitem__(self, index: int) -> np.ndarray:
        """Image ``index`` as ``(C, H, W)``."""
        return self.window(index, (0, 0), (self.shape[1], self.shape[2]))

    def window(self, index: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """The part of image ``index`` from ``start`` (y, x) on, ``(C, *size)``; only its chunks are read."""
        place = np.unravel_index(index, self._counts) if self._counts else ()
        chosen: list[Any] = [slice(None)] * len(self._axes)
        for axis, number in zip(self._others, place, strict=True):
            chosen[axis] = int(number)
        chosen[-2:] = [slice(begin, begin + length) for begin, length in zip(start, size, strict=True)]
        try:
            part = np.asarray(self._array[tuple(chosen)])
        except Exception as error:  # a damaged chunk raises what its codec raises
            cause = first_line(error)
            raise InputError(f"{self.path} has a damaged chunk ({cause}); copy or export it again") from error
        return part.reshape(self.shape[0], *size).astype(self.dtype, copy=False)

    def close(self) -> None:
        """Nothing is held open."""


def _full_resolution(node: Any, path: Path) -> tuple[Any, str]:
    """(array, axes) of a Zarr node: the first level of an OME-Zarr image, or a plain array."""
    if hasattr(node, "shape"):
        axes = {2: "yx", 3: "nyx", 4: "ncyx"}.get(len(node.shape))
        if axes is None:
            raise InputError(
                f"{path} is an array of shape {node.shape} that names no axes; expected (H, W), (N, H, W) or (N, C, H, W)"
            )
        return node, axes
    attributes = dict(node.attrs)
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        raise InputError(
            f"{path} is a Zarr group without an image; give the folder of the image, whose attributes have multiscales"
        )
    array = node[scales[0]["datasets"][0]["path"]]
    named = [axis if isinstance(axis, str) else axis["name"] for axis in scales[0].get("axes", [])]
    axes = "".join(name[0].lower() for name in named) or "tczyx"[-len(array.shape) :]
    if len(axes) != len(array.shape):
        raise InputError(f"{path} names the axes {axes} of an array of shape {array.shape}; export it again")
    return array, axes


class Planes(Protocol):
    """What :func:`write_zarr` writes: pages of planes (1, or one a class) whose rows come in bands."""

    height: int
    width: int
    planes: int
    dtype: np.dtype

    @property
    def pages(self) -> Any: ...

    def bands(self, page: int, plane: int) -> Iterator[np.ndarray]: ...


def write_zarr(path: Path, source: Planes) -> None:
    """Write planes as an OME-Zarr image (0.5) with a pyramid, (N, K, H, W); ``path`` is there only when it is whole.

    Every level above the first takes every second pixel, so that labels stay labels. Chunks are 512 x 512.

    Raises:
        BackendError: zarr is not installed.
        InputError: ``path`` exists and is not a Zarr, or holds something that this command has read.
        OSError: it cannot be written.
    """
    zarr = _zarr()
    check_replaceable(path)
    levels = pyramid_levels(source.height, source.width)
    with atomic_folder(path) as work:
        group = zarr.open_group(str(work), mode="w", zarr_format=3)
        # with a checksum in every chunk, which every reader of Zstandard compares
        compressor = zarr.codecs.ZstdCodec(level=0, checksum=True)
        arrays = []
        for level in range(levels):
            height, width = (-(-length // 2**level) for length in (source.height, source.width))
            shape = (len(source.pages), source.planes, height, width)
            chunks = (1, 1, min(_CHUNK, height), min(_CHUNK, width))
            options = {"chunks": chunks, "dtype": source.dtype, "compressors": compressor}
            arrays.append(group.create_array(str(level), shape=shape, **options))
        for page in range(len(source.pages)):
            for plane in range(source.planes):
                _write_plane(arrays, page, plane, source.bands(page, plane))
        group.attrs["ome"] = _metadata(path, levels)


def check_replaceable(path: Path) -> None:
    """Raise ``InputError`` unless :func:`write_zarr` may write ``path``, to be asked before any work is done for it."""
    if (path.exists() or path.is_symlink()) and not is_zarr(path):
        raise InputError(f"{path} exists and is not a Zarr, so it is not replaced; choose another --out")
    refuse_replacing(path)


def _write_plane(arrays: list[Any], page: int, plane: int, bands: Iterator[np.ndarray]) -> None:
    """All levels of a plane in one pass over its bands."""
    levels = [Regrouping(_CHUNK) for _ in arrays]
    top = 0
    for band in bands:
        for level, (array, blocks) in enumerate(zip(arrays, levels, strict=True)):
            _write_blocks(array, page, plane, blocks.add(thinned(band, top, 2**level)))
        top += len(band)
    for array, blocks in zip(arrays, levels, strict=True):
        _write_blocks(array, page, plane, blocks.rest())


def _write_blocks(array: Any, page: int, plane: int, blocks: Iterator[tuple[int, np.ndarray]]) -> None:
    for top, block in blocks:
        array[page, plane, top : top + len(block)] = block


def _metadata(path: Path, levels: int) -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel", "y": "space", "x": "space"}
    axes = [{"name": name, "type": kind} for name, kind in kinds.items()]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 2.0**level, 2.0**level]}],
        }
        for level in range(levels)
    ]
    image = {"name": path.stem, "axes": axes, "datasets": datasets}
    return {"version": "0.5", "multiscales": [image]}
