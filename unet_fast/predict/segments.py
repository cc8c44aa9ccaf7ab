"""The pieces that a TIFF consists of: tiles or strips, compressed where they are made and copied into the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_TILED_FROM = 1024  # images that are larger than this are written in tiles, smaller ones in strips
_TILE = 512
_STEP = 16  # TIFF wants tiles of multiples of this
_LEVEL = 1  # of deflate: higher ones take longer than the network


@dataclass(frozen=True)
class Segments:
    """How the pages of a file are cut: tiles (height, width), or strips of ``rows`` rows where ``tile`` is None."""

    tile: tuple[int, int] | None
    rows: int

    @classmethod
    def choose(cls, height: int, width: int, band: int) -> Segments:
        """For pages of this size whose rows arrive in bands of ``band`` rows (the last one may be shorter)."""
        if max(height, width) > _TILED_FROM:
            fitting = [tall for tall in range(_STEP, _TILE + 1, _STEP) if band % tall == 0 or band >= height]
            if fitting and fitting[-1] >= 4 * _STEP:
                return cls((fitting[-1], min(_TILE, -(-width // _STEP) * _STEP)), fitting[-1])
        return cls(None, min(band, height))

    def cut(self, plane: np.ndarray) -> Iterator[bytes]:
        """The compressed segments of some rows (h, W) of a page, in the file's order."""
        plane = np.ascontiguousarray(plane, dtype=plane.dtype.newbyteorder("<"))
        for top in range(0, len(plane), self.rows):
            rows = plane[top : top + self.rows]
            if self.tile is None:
                yield deflate(rows)
                continue
            for left in range(0, plane.shape[1], self.tile[1]):
                cell = rows[:, left : left + self.tile[1]]
                if cell.shape != self.tile:
                    missing = [(0, whole - part) for whole, part in zip(self.tile, cell.shape, strict=True)]
                    cell = np.pad(cell, missing)
                yield deflate(np.ascontiguousarray(cell))

    def join(self, pieces: list[bytes], size: tuple[int, int], dtype: np.dtype) -> np.ndarray:
        """The rows (h, W) of ``size`` that :meth:`cut` made ``pieces`` of."""
        out = np.empty(size, dtype)
        left_to_use = iter(pieces)
        for top in range(0, size[0], self.rows):
            rows = out[top : top + self.rows]
            if self.tile is None:
                rows[:] = inflate(next(left_to_use), rows.shape, dtype)
                continue
            for left in range(0, size[1], self.tile[1]):
                cell = rows[:, left : left + self.tile[1]]
                cell[:] = inflate(next(left_to_use), self.tile, dtype)[: cell.shape[0], : cell.shape[1]]
        return out

    def count(self, height: int, width: int) -> int:
        """Segments of some rows (height, width)."""
        return -(-height // self.rows) * (1 if self.tile is None else -(-width // self.tile[1]))


def deflate(array: np.ndarray) -> bytes:
    """``array`` as a zlib stream."""
    import imagecodecs

    return bytes(imagecodecs.deflate_encode(array.tobytes(), level=_LEVEL))


def inflate(data: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """What :func:`deflate` took, as an array that must not be written to."""
    import zlib

    return np.frombuffer(zlib.decompress(data), dtype).reshape(shape)
