"""The files that a finished prediction becomes: TIFF and OME-Zarr, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unet_fast.data.bands import every, pyramid_levels, regrouped
from unet_fast.data.stacks import new_tiff
from unet_fast.errors import InputError
from unet_fast.predict.segments import Segments
from unet_fast.predict.stream import Stages, Stream

TIFF_SUFFIXES = (".tif", ".tiff")
OME_SUFFIXES = (".ome.tif", ".ome.tiff")
ZARR_SUFFIX = ".zarr"


def is_one_file(path: Path) -> bool:
    """Whether ``path`` is named like one output for all images rather than like a folder of them."""
    return path.suffix.lower() in (*TIFF_SUFFIXES, ZARR_SUFFIX) and (
        path.suffix.lower() == ZARR_SUFFIX or not path.is_dir()
    )


def run(
    stream: Stream,
    *,
    progress: bool = True,
    make: Callable[[Stream, list[int], Callable[[int], None]], None] | None = None,
) -> Stages:
    """Make the parts of ``stream`` that are missing, and the file out of them; what is left of earlier runs is used.

    ``make`` makes parts elsewhere (see :mod:`unet_fast.cluster`). Returns the seconds by stage.

    Raises:
        InputError: a name that is neither a TIFF's nor a Zarr's; an image that cannot be read.
        OSError: the file cannot be written.
    """
    from tqdm.auto import tqdm

    suffix = stream.out.suffix.lower()
    if suffix not in (*TIFF_SUFFIXES, ZARR_SUFFIX):
        raise InputError(
            f"the prediction is written as TIFF or Zarr, but its name is {str(stream.out)!r}; end it in .tif"
        )
    if suffix == ZARR_SUFFIX:
        from unet_fast.data.zarr_files import check_replaceable

        check_replaceable(stream.out)
    missing = stream.missing()
    total = sum(map(stream.tiles_of, missing))
    with tqdm(
        total=stream.tiles, initial=stream.tiles - total, desc="predict", unit="tile", disable=not progress
    ) as bar:
        if make is None:
            stream.make(missing, bar.update)
        else:
            make(stream, missing, bar.update)
    began = time.monotonic()
    if suffix == ZARR_SUFFIX:
        from unet_fast.data.zarr_files import write_zarr

        write_zarr(stream.out, stream)
    else:
        _write_tiff(stream)
    stream.store.discard()
    stream.stages.assembling = time.monotonic() - began
    return stream.stages


def _write_tiff(stream: Stream) -> None:
    """The segments of all pages, copied into one TIFF; a pyramid behind them where the name says OME-TIFF."""
    ome = stream.out.name.lower().endswith(OME_SUFFIXES)
    levels = pyramid_levels(stream.height, stream.width) if ome else 1

    def all_planes(segments: Callable[[int, int], Iterator[bytes]]) -> Iterator[bytes]:
        for page in range(len(stream.pages)):
            for plane in range(stream.planes):
                yield from segments(page, plane)

    def cuts(segments: Segments) -> dict[str, Any]:
        return {"tile": segments.tile, "rowsperstrip": None if segments.tile else segments.rows}

    with new_tiff(stream.out, _shape(stream, 1), stream.dtype, ome=ome) as write:
        write(all_planes(stream.segments_of), subifds=levels - 1 if levels > 1 else None, **cuts(stream.segments))
        for level in range(1, levels):
            height, width = _shape(stream, 2**level)[-2:]
            smaller = Segments.choose(height, width, height)

            def thinned(page: int, plane: int, step: int = 2**level, cut: Segments = smaller) -> Iterator[bytes]:
                for _, rows in regrouped(every(stream.bands(page, plane), step), cut.rows):
                    yield from cut.cut(rows)

            smaller_shape = _shape(stream, 2**level)
            write(all_planes(thinned), shape=smaller_shape, subfiletype=1, metadata=None, **cuts(smaller))


def _shape(stream: Stream, step: int) -> tuple[int, ...]:
    """Of what is written, at every ``step``-th pixel."""
    size = (-(-stream.height // step), -(-stream.width // step))
    return (len(stream.pages), *((stream.planes,) if stream.planes > 1 else ()), *size)
