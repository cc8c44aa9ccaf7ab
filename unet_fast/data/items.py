"""A labelled image of a data set, whose pixels are read when they are asked for: whole, or a window of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unet_fast.data.label_codes import Coding
from unet_fast.data.labels import label_values
from unet_fast.data.pages import Pages
from unet_fast.data.stacks import Stack, check_finite
from unet_fast.data.statistics import GreyStatistics, measure
from unet_fast.errors import InputError
from unet_fast.labels import count_classes

BLOCK_PIXELS = 2**22  # a large image is looked through in rows of about this many pixels

Place = tuple[int, int]


class Source(Protocol):
    """Pixels ``(C, H, W)`` in the stored dtype, read when they are asked for: image ``number`` of ``file``."""

    file: Path
    number: int
    shape: tuple[int, int, int]
    dtype: np.dtype

    def window(self, start: Place, size: Place) -> np.ndarray:
        """The part from ``start`` (y, x) on, which lies inside, as ``(C, *size)``."""


class PageSource:
    """Page ``index`` of files."""

    def __init__(self, pages: Pages, index: int) -> None:
        self.pages, self.index = pages, index
        self.file, self.number = pages.place(index)
        self.shape, self.dtype = pages.shape(index), pages.dtype(index)

    def window(self, start: Place, size: Place) -> np.ndarray:
        """See :class:`Source`."""
        if size == self.shape[1:] or self.pages.alpha(self.index):  # what alpha says depends on the whole image
            return cut(self.pages[self.index], start, size)
        return self.pages.window(self.index, start, size)


class MadeSource:
    """An image that ``make()`` puts together, from several files say; kept compressed once it was made."""

    def __init__(self, make: Callable[[], np.ndarray], file: Path, size: Place, dtype: np.dtype) -> None:
        self._make, self.file, self.number, self.shape, self.dtype = make, file, 0, (1, *size), dtype
        self._kept: bytes | None = None

    def window(self, start: Place, size: Place) -> np.ndarray:
        """See :class:`Source`."""
        if self._kept is None:
            self._kept = zlib.compress(np.asarray(self._make(), self.dtype).tobytes(), 1)
        whole = np.frombuffer(zlib.decompress(self._kept), self.dtype).reshape(self.shape)
        return cut(whole, start, size)


def cut(image: np.ndarray, start: Place, size: Place) -> np.ndarray:
    """The window of ``image (..., H, W)`` from ``start`` on."""
    return image[..., start[0] : start[0] + size[0], start[1] : start[1] + size[1]]


@dataclass(frozen=True)
class Survey:
    """What is known of an image after looking through it: its statistics, and its counted pixels of each class (K,) int64."""

    statistics: GreyStatistics
    counts: np.ndarray


@dataclass(frozen=True)
class Item:
    """One labelled image, of which nothing is held but where its pixels are.

    Attributes:
        name: for messages.
        pixels, drawn: the sources of the image and of its label, as the files have them.
        outside: a source whose 0 are pixels that count nowhere (a field of view), or None.
        sequence: of a time series, or "".
        files: what is read for it.
        coding: what the numbers of the label mean; None: they are given as they are.
        channels: what the image is brought to: 1 takes the first of equal channels, more repeats a grey one; None: as stored.
    """

    name: str
    pixels: Source
    drawn: Source
    outside: Source | None = None
    sequence: str = ""
    files: tuple[Path, ...] = ()
    coding: Coding | None = None
    channels: int | None = None
    _facts: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for source in (self.drawn, self.outside):
            if source is not None and source.shape[1:] != self.size:
                raise sizes_differ(self.pixels.file, self.size, source.file, source.shape[1:])

    @property
    def size(self) -> Place:
        """(height, width)."""
        return self.pixels.shape[1:]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the image."""
        return (self.channels or self.pixels.shape[0], *self.size)

    @property
    def image(self) -> np.ndarray:
        """The image ``(C, H, W)`` in the stored dtype."""
        return self.image_window((0, 0), self.size)

    @property
    def label(self) -> np.ndarray:
        """The label ``(H, W)``; ignored pixels hold 0."""
        return self.label_window((0, 0), self.size)[0]

    @property
    def ignored(self) -> np.ndarray | None:
        """``(H, W)`` bool, pixels that count nowhere, or None."""
        return self.label_window((0, 0), self.size)[1]

    def image_window(self, start: Place, size: Place) -> np.ndarray:
        """A window of the image, ``(C, *size)``. Raises ``InputError`` for NaN and infinite values."""
        image = self.pixels.window(start, size)
        check_finite(image, f"the image {self.name} of {self.pixels.file}")
        if self.channels is None or len(image) == self.channels:
            return image
        return image[:1] if self.channels == 1 else np.repeat(image, self.channels, axis=0)

    def label_window(self, start: Place, size: Place) -> tuple[np.ndarray, np.ndarray | None]:
        """A window of the label and of what is ignored, each ``(*size)``; None where nothing is."""
        return self._interpreted(self.values(start, size), start)

    def _interpreted(self, values: np.ndarray, start: Place) -> tuple[np.ndarray, np.ndarray | None]:
        label, void = values, None
        if self.coding is not None:
            void, label = self.coding.left_out(values[None]), self.coding.decode(values[None])[0]
        ignored = None if void is None else void[0]
        if self.outside is not None:
            beyond = self.outside.window(start, values.shape)[0] == 0
            ignored = beyond if ignored is None else ignored | beyond
        return label, ignored

    def values(self, start: Place, size: Place) -> np.ndarray:
        """A window of the whole numbers of the label file, ``(*size)``."""
        return label_values(Stack(self.drawn.window(start, size)[None], [self.name]), self.drawn.file)[0]

    def bands(self) -> list[tuple[Place, Place]]:
        """(start, size) of the bands of rows in which a large image is looked through."""
        height, width = self.size
        rows = max(1, BLOCK_PIXELS // max(width, 1))
        return [((top, 0), (min(rows, height - top), width)) for top in range(0, height, rows)]

    def load(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Image, label and ignored pixels; what :meth:`checksum` needs is noted on the way."""
        image, values = self.image, self.values((0, 0), self.size)
        if "crc32" not in self._facts:
            self._note((cut(image, *band), cut(values, *band), band[0]) for band in self.bands())
        return image, *self._interpreted(values, (0, 0))

    def checksum(self) -> int:
        """CRC-32 of image, label and ignored pixels."""
        if "crc32" not in self._facts:
            self._note((self.image_window(*band), self.values(*band), band[0]) for band in self.bands())
        return self._facts["crc32"]

    def _note(self, bands: Iterator[tuple[np.ndarray, np.ndarray, Place]]) -> None:
        """The checksum of (image, numbers of the label, start) of every band."""
        checksum = 0
        for image, values, start in bands:
            checksum = self._added(checksum, image, values, *self._interpreted(values, start))
        self._facts["crc32"] = checksum

    def _added(
        self, checksum: int, image: np.ndarray, values: np.ndarray, label: np.ndarray, ignored: np.ndarray | None
    ) -> int:
        # numbers of instances may be replaced by their ranks, which differ from band to band
        instances = self.coding is not None and self.coding.kind == "instances"
        for array in (image, values if instances else label, ignored):
            if array is not None:
                checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, checksum)
        return checksum

    def survey(self) -> Survey:
        """Grey values and classes of the whole image, band by band; remembered, and so is the checksum."""
        if "survey" not in self._facts:
            counts = np.zeros(0 if self.coding is None else self.coding.num_classes, np.int64)
            checksum: int | None = 0

            def bands() -> Iterator[np.ndarray]:
                nonlocal checksum
                for start, size in self.bands():
                    image = self.image_window(start, size)
                    if checksum is not None:
                        values = self.values(start, size)
                        label, ignored = self._interpreted(values, start)
                        checksum = self._added(checksum, image, values, label, ignored)
                        counted = label if ignored is None else label[~ignored]
                        counted = counted if self.coding and self.coding.kind == "classes" else counted > 0
                        found = count_classes(counted, len(counts))
                        counts[: len(found)] += found[: len(counts)]
                    yield image
                if checksum is not None:
                    self._facts["crc32"], checksum = checksum, None  # wide numbers are gone through twice

            statistics = measure(bands)
            self._facts["survey"] = Survey(statistics, counts)
        return self._facts["survey"]

    def is_grey(self) -> bool:
        """Whether all channels are equal."""
        if self.pixels.shape[0] == 1:
            return True
        return all(bool((image == image[:1]).all()) for image in (self.pixels.window(*band) for band in self.bands()))


def items_of(images: Pages, labels: Pages) -> list[Item]:
    """One item a page of each, in order."""
    return [
        Item(
            images.names[index],
            PageSource(images, index),
            PageSource(labels, index),
            files=(images.place(index)[0], labels.place(index)[0]),
        )
        for index in range(len(images))
    ]


def sizes_differ(image: Path, size: Place, label: Path, other: Place) -> InputError:
    """The error of an image and its label of other sizes."""
    (a, b), (c, d) = size, other
    return InputError(
        f"{image} is {a} x {b} but {label} is {c} x {d}; crop or resize them to the same height and width"
    )


class LabelBands(Sequence[np.ndarray]):
    """The labels of items as a sequence of ``(h, W)`` whole numbers, band by band, each read when it is taken."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._places = [(item, band) for item in items for band in item.bands()]

    @property
    def names(self) -> list[str]:
        """The image of each band."""
        return [item.name for item, _ in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # slices are not taken
        item, band = self._places[index]
        return item.values(*band)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))
