"""The files that a finished prediction becomes: TIFF and OME-Zarr, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from unet_fast.data.stacks import needs_bigtiff
from unet_fast.errors import InputError
from unet_fast.files import atomic_path
from unet_fast.predict.stream import Stages, Stream

TIFF_SUFFIXES = (".tif", ".tiff")
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
    """The segments of all pages, copied into one TIFF."""
    import tifffile

    pages = len(stream.pages)
    shape = (pages, *((stream.planes,) if stream.planes > 1 else ()), stream.height, stream.width)

    def segments() -> Iterator[bytes]:
        for page in range(pages):
            for plane in range(stream.planes):
                yield from stream.segments_of(page, plane)

    with (
        atomic_path(stream.out) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=needs_bigtiff(shape, stream.dtype)) as writer,
    ):
        writer.write(
            segments(),
            shape=shape,
            dtype=stream.dtype,
            photometric="minisblack",
            compression="adobe_deflate",
            tile=stream.segments.tile,
            rowsperstrip=None if stream.segments.tile else stream.segments.rows,
            metadata={"axes": "ZCYX" if stream.planes > 1 else "ZYX"},
        )
