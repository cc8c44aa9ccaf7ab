"""A PNG as one image ``(C, H, W)``, after its checksums have been looked at."""

from __future__ import annotations

import struct
import threading
import zlib
from pathlib import Path

import numpy as np

from unet_fast.data.limits import check_decoded
from unet_fast.errors import InputError, first_line

_HEADER_BYTES = 8
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types: grey, RGB, palette, grey and alpha, RGBA
_PALETTE = 3


class PngImages:
    """The one image of a PNG; see :class:`unet_fast.data.formats.Images`.

    ``indexed`` keeps the indices of a palette instead of its colours.
    """

    def __init__(self, path: Path, indexed: bool) -> None:
        self.path, self._indexed, self._lock = path, indexed, threading.Lock()
        self._pixels: np.ndarray | None = None
        self._data: bytes | None = path.read_bytes()
        width, height, bits, kind, transparent = _check(path, self._data)
        self._bits, self._kind = bits, kind
        coloured = kind == _PALETTE and not indexed
        samples = (4 if transparent else 3) if coloured else _SAMPLES[kind]
        self.alpha = int(samples in (2, 4))
        self.colour = samples - self.alpha > 1
        self.shape = (samples, height, width)
        self.dtype = np.dtype(np.uint16 if bits == 16 else np.uint8)
        check_decoded(path, samples * height * width * self.dtype.itemsize, len(self._data))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> np.ndarray:
        """The image as ``(C, H, W)``, alpha included where there is one."""
        if index != 0:
            raise IndexError(index)
        with self._lock:
            if self._pixels is None:
                assert self._data is not None
                self._pixels, self._data = self._decode(self._data), None
        return self._pixels

    def window(self, index: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """The part from ``start`` (y, x) on, ``(C, *size)``; a PNG can only be decoded whole, which is done once."""
        return self[index][:, start[0] : start[0] + size[0], start[1] : start[1] + size[1]]

    def close(self) -> None:
        """Forget the pixels."""
        self._pixels, self._data = None, None

    def _decode(self, data: bytes) -> np.ndarray:
        import io

        from PIL import Image

        try:
            if self._bits == 16:  # Pillow reduces 16-bit colour to 8 bits
                import imagecodecs

                pixels = np.asarray(imagecodecs.png_decode(data))
            else:
                # Pillow's own limit is replaced by that of check_decoded, which names how to raise it
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    with Image.open(io.BytesIO(data)) as file:
                        image: Image.Image = file
                        if image.mode in ("P", "PA") and not self._indexed:
                            image = image.convert("RGBA" if self.alpha else "RGB")
                        pixels = np.asarray(image)
                        if image.mode == "L" and self._bits in (2, 4):  # stretched to 0..255; stored values count
                            pixels = pixels // {2: 85, 4: 17}[self._bits]
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
        except MemoryError:
            raise
        except Exception as error:  # each decoder raises its own types
            cause = first_line(error)[:200]
            raise _damaged(self.path, cause) from error
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if pixels.dtype.kind == "b":
            pixels = pixels.view(np.uint8)
        pixels = np.moveaxis(pixels, 2, 0)
        if pixels.shape != self.shape:
            raise _damaged(self.path, f"its header says {self.shape}, its pixels are {pixels.shape}")
        return pixels


def _damaged(path: Path, cause: str) -> InputError:
    return InputError(f"{path} is a truncated or damaged PNG ({cause}); copy or export the file again")


def _check(path: Path, data: bytes) -> tuple[int, int, int, int, bool]:
    """(width, height, bits a sample, colour type, whether a chunk of transparency) of a PNG whose chunks are all whole.

    Decoders stop as soon as they have all rows, before the checksum of the last of them.
    """
    position, header, transparent, ended, frames = _HEADER_BYTES, None, False, False, 1
    while position < len(data) and not ended:
        if position + 12 > len(data):
            raise _damaged(path, "it ends inside a chunk")
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise _damaged(path, f"it ends inside the chunk {name.decode('ascii', 'replace')!r}")
        (stored,) = struct.unpack_from(">I", data, end)
        if stored != zlib.crc32(memoryview(data)[position + 4 : end]):
            raise _damaged(path, f"wrong checksum of the chunk {name.decode('ascii', 'replace')!r}")
        if header is None:
            if name != b"IHDR" or length != 13:
                raise _damaged(path, "it does not begin with a header")
            header = struct.unpack_from(">IIBB", data, position + 8)
        elif name == b"acTL" and length >= 4:
            (frames,) = struct.unpack_from(">I", data, position + 8)
        transparent, ended = transparent or name == b"tRNS", name == b"IEND"
        position = end + 4
    if header is None or not ended:
        raise _damaged(path, "it has no end" if header else "it has no header")
    width, height, bits, kind = header
    if kind not in _SAMPLES or bits not in (1, 2, 4, 8, 16) or not width or not height:
        raise _damaged(path, f"its header says {width} x {height} pixels, {bits} bits, colour type {kind}")
    if frames > 1:
        raise InputError(
            f"{path} is an animated PNG of {frames} frames, expected one image; save the frames as a TIFF stack, or as a PNG each"
        )
    return width, height, bits, kind, transparent
