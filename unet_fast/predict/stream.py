"""Images of any size in bounded memory: bands of tiles are read, predicted and written, all three at the same time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unet_fast.data import normalize
from unet_fast.data.pages import Windows
from unet_fast.errors import InputError
from unet_fast.predict.cores import grown, levels_of
from unet_fast.predict.join import Join
from unet_fast.predict.parts import FolderStore, MemoryStore, Store
from unet_fast.predict.predictor import Predictor
from unet_fast.predict.prefetch import Behind, ahead
from unet_fast.predict.segments import Segments, deflate, inflate
from unet_fast.predict.tiling import AxisPlan
from unet_fast.predict.windows import WindowedImage

_PART_PIXELS = 2**22  # small pages are put together to parts of about this many pixels


@dataclass(frozen=True)
class Unit:
    """A row of tiles of a page: its rows ``top`` to ``bottom``, which no other unit gives."""

    page: int
    band: int
    top: int
    bottom: int


@dataclass
class Stages:
    """Seconds by what was done. Reading and writing run beside the network, so the sum may exceed the time that passed."""

    reading: float = 0.0
    waiting: float = 0.0
    network: float = 0.0
    finishing: float = 0.0
    writing: float = 0.0
    assembling: float = 0.0

    def __str__(self) -> str:
        return (
            f"network {self.network:.1f} s, threshold and stitching {self.finishing:.1f} s, waited for images "
            f"{self.waiting:.1f} s, objects and file {self.assembling:.1f} s; beside them reading {self.reading:.1f} s, "
            f"compressing {self.writing:.1f} s"
        )


class Stream:
    """The prediction of pages of one size, as parts that any process can make, and the file that they become.

    Args:
        predictor: what is predicted, and how; its ``preprocess`` is :func:`unet_fast.data.normalize` or None.
        pages: the images, all of one height and width.
        out: the output, which :func:`unet_fast.predict.targets.assemble` writes.
        identity: what else decides the result, such as the weights; parts of another identity are not used.
        shared: other processes make parts too, so that they are files in any case.
        joins: this is one of those other processes.
        part_pixels: rows of tiles, or small pages, are put together to parts of about so many pixels; what is lost at a kill.

    The tiles are those of :class:`unet_fast.predict.OverlapTile`, and so are the results, bit for bit. In memory are a few
    rows of tiles; of K classes, K planes of one row of tiles.
    """

    def __init__(
        self,
        predictor: Predictor,
        pages: Windows,
        out: Path,
        *,
        identity: str = "",
        shared: bool = False,
        joins: bool = False,
        part_pixels: int | None = None,
    ) -> None:
        if predictor.preprocess not in (None, normalize):
            raise InputError("images are predicted in windows with unet_fast.data.normalize, or as they are")
        if len(pages) == 0:
            raise InputError("there are no pages to predict; expected at least one image")
        self.predictor, self.pages, self.out = predictor, pages, out
        _, self.height, self.width = pages.shape(0)
        for index in range(1, len(pages)):
            if pages.shape(index)[1:] != (self.height, self.width):
                raise InputError(
                    f"images of different sizes: {pages.names[0]} and {pages.names[index]}; predict them one by one"
                )
        self.rows, self.columns = predictor.tiles.plan(self.height, self.width)
        self.dtype = predictor.dtype((self.height, self.width))
        self.objects = predictor.output == "instances"
        self.planes = predictor.num_classes if predictor.output == "probabilities" and predictor.num_classes > 2 else 1
        band = self.rows.starts[1] if len(self.rows.starts) > 1 else self.height
        self.segments = Segments.choose(self.height, self.width, band)
        self.units = [
            Unit(page, band, top, bottom)
            for page in range(len(pages))
            for band, (top, bottom) in enumerate(_owned(self.rows, self.height))
        ]
        self.part_pixels = part_pixels or _PART_PIXELS
        self.groups = _groups(self.units, self.width, self.part_pixels)
        self.where = {
            (unit.page, unit.band): (n, i) for n, group in enumerate(self.groups) for i, unit in enumerate(group)
        }
        self.stages = Stages()
        self.store: Store = MemoryStore()
        if len(self.groups) > 1 or shared or joins:
            self.store = FolderStore(out, self._plan(identity), joins=joins)
        self._image: tuple[int, WindowedImage] | None = None
        self._joined: tuple[int, Join, np.ndarray] | None = None
        self._early = Join()  # of a single page, band by band as they are made

    def _plan(self, identity: str) -> str:
        """Everything that decides the bytes of the parts, as text."""
        tiles = self.predictor.tiles
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.pages.files]
        places = [(str(path.resolve()), page) for path, page in map(self.pages.place, range(len(self.pages)))]
        decided = {
            "identity": identity,
            "files": files,
            "pages": hashlib.sha256(json.dumps(places).encode()).hexdigest(),
            "size": [self.height, self.width, self.part_pixels],
            "output": [self.predictor.output, self.predictor.threshold, self.predictor.min_size, self.predictor.cores],
            "normalized": self.predictor.preprocess is not None,
            "tiles": [self.rows.size, self.rows.starts, self.columns.size, self.columns.starts],
            "prediction": [tiles.padding, tiles.tta, tiles.amp, tiles.batch_size, str(self.segments)],
        }
        return json.dumps(decided)

    def missing(self) -> list[int]:
        """The parts that are still to be made."""
        return [number for number in range(len(self.groups)) if not self.store.has(number)]

    def make(self, numbers: Sequence[int], done: Callable[[int], None] = lambda tiles: None) -> None:
        """Make parts; ``done`` is called with the number of tiles predicted since its last call."""
        tiles = self.predictor.tiles
        with Behind() as behind, tiles.evaluating():
            blobs: list[bytes] = []
            band: np.ndarray | None = None
            for number, unit, places, inputs in self._timed(ahead(self._inputs(numbers))):
                began = time.monotonic()
                result = tiles.predict(inputs)
                self.stages.network += time.monotonic() - began
                began = time.monotonic()
                if band is None:
                    band = np.empty((self.planes, unit.bottom - unit.top, self.width), self._band_dtype)
                for x, tile in zip(places, self._finished(result), strict=True):
                    inside = tile[:, : unit.bottom - unit.top, : self.width - x]
                    band[:, :, x : x + inside.shape[-1]] = inside
                done(len(places))
                self.stages.finishing += time.monotonic() - began
                if places[-1] == self.columns.starts[-1]:
                    last = unit == self.groups[number][-1]
                    behind.call(self._write, number, unit, band, blobs, last)
                    band, blobs = None, [] if last else blobs

    def _write(self, number: int, unit: Unit, band: np.ndarray, blobs: list[bytes], last: bool) -> None:
        began = time.monotonic()
        if self.objects:
            blobs.append(deflate(band[0] if self.predictor.levels else np.packbits(band[0])))
            early = len(self.pages) == 1 and len(self._early) == unit.band and not self.predictor.levels
            if early:  # while the network works on the next band
                self._early.add(band[0])
        else:
            for plane in band:
                blobs += self.segments.cut(plane)
        if last:
            self.store.put(number, blobs)
        self.stages.writing += time.monotonic() - began

    @property
    def _band_dtype(self) -> np.dtype:
        if self.predictor.levels:
            return np.dtype(np.uint8)
        return np.dtype(bool) if self.objects else self.dtype

    def _finished(self, result: Tensor) -> np.ndarray:
        """Predictions of tiles -> (n, planes, h, w) of what is written."""
        array = result.numpy(force=True)
        if self.predictor.levels:
            return levels_of(array, self.predictor.threshold)[:, None]
        if self.predictor.compared:
            return self.predictor.above(array)[:, None]
        if array.ndim == 3:  # labels
            return array[:, None].astype(self.dtype)
        if self.predictor.cores:
            return 1 - array[:, :1]
        return array if self.planes > 1 else array[:, -1:]

    def _inputs(self, numbers: Sequence[int]) -> Iterator[tuple[int, Unit, list[int], Tensor]]:
        """(part, unit, x of the tiles, their inputs), in the order of the parts; read in a thread."""
        tiles = self.predictor.tiles
        size = tiles.batch_size
        for number in numbers:
            for unit in self.groups[number]:
                image = self.image(unit.page)
                for start in range(0, len(self.columns.starts), size):
                    began = time.monotonic()
                    places = list(self.columns.starts[start : start + size])
                    corners = [(self.rows.starts[unit.band], x) for x in places]
                    inputs = tiles.gather(image, corners, self.rows, self.columns)
                    self.stages.reading += time.monotonic() - began
                    yield number, unit, places, inputs

    def image(self, page: int) -> WindowedImage:
        """Page ``page`` as windows."""
        if self._image is None or self._image[0] != page:
            normalized = self.predictor.preprocess is not None
            windows = WindowedImage(self.pages, page, self.predictor.tiles.in_channels, normalized=normalized)
            self._image = (page, windows)
        return self._image[1]

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self.stages.waiting += time.monotonic() - began
            if batch is None:
                return
            yield batch

    @property
    def tiles(self) -> int:
        """Tiles of the network in all."""
        return len(self.units) * len(self.columns.starts)

    def tiles_of(self, number: int) -> int:
        """Tiles of the network in a part."""
        return len(self.groups[number]) * len(self.columns.starts)

    def segments_of(self, page: int, plane: int) -> Iterator[bytes]:
        """The compressed segments of a plane of a page, in the order of the file."""
        if self.objects:
            for band in ahead(self.bands(page, plane)):  # numbered in a thread, compressed in this one
                yield from self.segments.cut(band)
            return
        for unit, number, first, count in self._of_page(page):
            del unit
            for index in range(first + plane * count, first + (plane + 1) * count):
                yield self.store.get(number, index)

    def bands(self, page: int, plane: int) -> Iterator[np.ndarray]:
        """The rows of a plane of a page, band by band."""
        if self.objects:
            yield from self._objects(page)
            return
        for unit, number, first, count in self._of_page(page):
            height = unit.bottom - unit.top
            pieces = [self.store.get(number, first + plane * count + index) for index in range(count)]
            yield self.segments.join(pieces, (height, self.width), self.dtype)

    def _of_page(self, page: int) -> Iterator[tuple[Unit, int, int, int]]:
        """(unit, part, its first blob, blobs a plane) of every band of a page."""
        for band in range(len(self.rows.starts)):
            number, position = self.where[page, band]
            counts = [
                1 if self.objects else self.segments.count(unit.bottom - unit.top, self.width)
                for unit in self.groups[number]
            ]
            first = sum(counts[:position]) * (1 if self.objects else self.planes)
            yield self.groups[number][position], number, first, counts[position]

    def _parts_of_objects(self, page: int) -> Iterator[np.ndarray]:
        """What the instances of a page are made of, band by band: masks, or levels."""
        for unit, number, first, _ in self._of_page(page):
            shape = (unit.bottom - unit.top, self.width)
            data = inflate(self.store.get(number, first), (-1,), np.dtype(np.uint8))
            if not self.predictor.levels:
                data = np.unpackbits(data, count=shape[0] * shape[1]).view(bool)
            yield data.reshape(shape)

    def _objects(self, page: int) -> Iterator[np.ndarray]:
        """The instances of a page, band by band: joined first, once for all levels of a pyramid, then numbered."""
        if self.predictor.levels:
            for band in grown(lambda: self._parts_of_objects(page), self.predictor.min_size):
                yield band.astype(self.dtype)
            return
        if self._joined is None or self._joined[0] != page:
            join = self._early
            if len(join) < len(self.rows.starts):  # some bands were made by another run, or another process
                join = Join()
                for mask in self._parts_of_objects(page):
                    join.add(mask)
            self._joined = page, join, join.numbers(self.predictor.min_size).astype(self.dtype)
        _, join, numbers = self._joined
        for index, mask in enumerate(self._parts_of_objects(page)):
            yield join.band(index, mask, numbers)


def _owned(rows: AxisPlan, height: int) -> list[tuple[int, int]]:
    """The rows that each row of tiles gives: of two that overlap, the later one counts."""
    return list(zip(rows.starts, (*rows.starts[1:], height), strict=True))


def _groups(units: list[Unit], width: int, least: int) -> list[list[Unit]]:
    """Units put together to parts."""
    groups: list[list[Unit]] = [[]]
    pixels = 0
    for unit in units:
        if groups[-1] and pixels >= least:
            groups.append([])
            pixels = 0
        groups[-1].append(unit)
        pixels += (unit.bottom - unit.top) * width
    return groups


def identity_of(model: Any) -> str:
    """A digest of a network's weights and kind, or of an engine's description."""
    digest = hashlib.sha256(repr(getattr(model, "config", getattr(model, "description", ""))).encode())
    digest.update(repr((getattr(model, "backend", "torch"), getattr(model, "precision", ""))).encode())
    network = model if isinstance(model, torch.nn.Module) else getattr(model, "model", None)
    if network is not None:
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(str(getattr(model, "weights", "")).encode())
    return digest.hexdigest()
