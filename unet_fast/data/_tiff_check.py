"""The proof that a TIFF is whole, before any pixel of it is read.

A TIFF that was cut off often still opens: the chain of its directories merely ends early, or a page's list of strips is
short, and a reader sees fewer pages or pixels of zero. Such a file must not become training data, so the chain is walked
to its proper end, and every page must name as many strips or tiles as its size asks for, all of them inside the file.
Nothing that a directory says is believed before it has been compared with the size of the file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unet_fast.errors import InputError

_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_UNSIGNED = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_WIDTH, _HEIGHT, _SAMPLES, _ROWS_PER_STRIP, _PLANAR = 256, 257, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _DEPTH, _TILE_DEPTH = 322, 323, 32997, 32998
_OFFSETS, _COUNTS = (273, 324), (279, 325)
_DESCRIPTION = 270
_SCALARS = frozenset(
    (_WIDTH, _HEIGHT, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _DEPTH, _TILE_DEPTH)
)
# tags whose values must be inside the file for it to be readable
_VITAL = frozenset((_DESCRIPTION, *_OFFSETS, *_COUNTS))


def truncated(path: Path, detail: str) -> InputError:
    """The error for a file that ends before its data does."""
    return InputError(f"{path} is truncated: {detail}; copy or export the file again")


def damaged(path: Path, detail: str) -> InputError:
    """The error for a file that contradicts itself."""
    return InputError(f"{path} is a damaged TIFF ({detail}); export the file again")


def count_pages(path: Path) -> int:
    """Number of pages of a TIFF whose directories, strips and tiles are all there; ``InputError`` when they are not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        walk = _Walk(path, file, size)
        seen: set[int] = set()
        offset = walk.first
        while offset:
            if offset in seen:
                raise damaged(path, "its page list is circular")
            seen.add(offset)
            offset = walk.directory(offset, len(seen) - 1)
    if not seen:
        raise truncated(path, "it has no page")
    return len(seen)


class _Walk:
    """The chain of directories of one file, classic or BigTIFF, of either byte order."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        head = file.read(16).ljust(16, b"\0")
        self.order = "<" if head[:2] == b"II" else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        self.count, self.entry, self.next, self.inline = ("Q", "HHQQ", "Q", 8) if big else ("H", "HHII", "I", 4)
        (self.first,) = struct.unpack_from(self.order + self.next, head, 8 if big else 4)
        # directories that lie over each other could make a small file take for ever
        self.budget = 8 * size + 2**16

    def directory(self, offset: int, index: int) -> int:
        """Check the directory of page ``index`` at ``offset`` and return the offset of the next one (0 after the last)."""
        count_bytes, entry_bytes = struct.calcsize("<" + self.count), struct.calcsize("<" + self.entry)
        raw, entries = b"", 0
        if offset < self.size:
            self.file.seek(offset)
            raw = self.file.read(count_bytes)
            entries = struct.unpack(self.order + self.count, raw)[0] if len(raw) == count_bytes else 0
        length = entries * entry_bytes + struct.calcsize("<" + self.next)
        if not entries or offset + count_bytes + length > self.size:
            raise truncated(
                self.path, f"the directory of page {index} lies at byte {offset}, the file ends at byte {self.size}"
            )
        self._spend(length)
        raw = self.file.read(length)
        found: dict[int, np.ndarray] = {}
        for position in range(0, entries * entry_bytes, entry_bytes):
            tag, kind, values = struct.unpack_from(self.order + self.entry, raw, position)[:3]
            if tag in _VITAL or tag in _SCALARS:
                value = raw[position + entry_bytes - self.inline : position + entry_bytes]
                found[tag] = self._values(tag, kind, values, value, index)
        self._check_data(found, index)
        return int(struct.unpack(self.order + self.next, raw[entries * entry_bytes :])[0])

    def _values(self, tag: int, kind: int, count: int, inline: bytes, index: int) -> np.ndarray:
        """The numbers of a tag, empty where they are text."""
        extent = count * _BYTES.get(kind, 1)
        data = inline
        if extent > self.inline:
            (position,) = struct.unpack(self.order + self.next, inline)
            if position + extent > self.size:
                raise truncated(
                    self.path,
                    f"the description of page {index} ends at byte {position + extent}, the file at byte {self.size}",
                )
            if kind not in _UNSIGNED or tag == _DESCRIPTION:
                return np.empty(0, np.uint64)
            self._spend(extent)
            here = self.file.tell()
            self.file.seek(position)
            data = self.file.read(extent)
            self.file.seek(here)
        if kind not in _UNSIGNED:
            return np.empty(0, np.uint64)
        return np.frombuffer(data[:extent], self.order + _UNSIGNED[kind]).astype(np.uint64)

    def _check_data(self, found: dict[int, np.ndarray], index: int) -> None:
        """Every strip or tile must be named, and lie inside the file: readers put zeros in the place of others."""
        offsets, counts = (
            next((found[tag] for tag in tags if tag in found and len(found[tag])), np.empty(0, np.uint64))
            for tags in (_OFFSETS, _COUNTS)
        )
        expected = self._segments(found)
        if len(offsets) < expected or len(counts) < min(expected, len(offsets)) or not len(offsets):
            raise truncated(self.path, f"page {index} lacks pixel data: {len(offsets)} of {expected} strips or tiles")
        offsets, counts = offsets[:expected], counts[:expected]
        if not offsets.all() or not counts.all():
            missing = int(np.count_nonzero((offsets == 0) | (counts == 0)))
            raise truncated(
                self.path, f"page {index} lacks pixel data: {missing} of {expected} strips or tiles are empty"
            )
        size = np.uint64(self.size)
        outside = (offsets > size) | (counts > size)  # before they are added: the sum of two numbers may wrap
        if outside.any() or (offsets + counts > size).any():
            worst = int(np.argmax(np.where(outside, size + offsets // 2 + counts // 2, offsets + counts)))
            raise truncated(
                self.path,
                f"page {index} ends at byte {int(offsets[worst]) + int(counts[worst])}, the file at byte {self.size}",
            )

    def _segments(self, found: dict[int, np.ndarray]) -> int:
        """Strips or tiles that a page of this size consists of."""

        def of(tag: int, default: int) -> int:
            values = found.get(tag)
            return default if values is None or not len(values) else int(values[0])

        width, height, depth = of(_WIDTH, 0), of(_HEIGHT, 0), max(of(_DEPTH, 1), 1)
        planes = of(_SAMPLES, 1) if of(_PLANAR, 1) == 2 else 1
        if _TILE_WIDTH in found and _TILE_HEIGHT in found:
            across, down, deep = (max(of(tag, 1), 1) for tag in (_TILE_WIDTH, _TILE_HEIGHT, _TILE_DEPTH))
            return planes * -(-width // across) * -(-height // down) * -(-depth // deep)
        rows = of(_ROWS_PER_STRIP, height) or height
        return planes * depth * -(-height // max(min(rows, height), 1))

    def _spend(self, count: int) -> None:
        self.budget -= count
        if self.budget < 0:
            raise damaged(self.path, "its directories overlap")
