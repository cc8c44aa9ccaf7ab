"""Images out of files, read when they are asked for: one page, or one window of a page, at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from unet_fast.data.formats import Images, drawn_label, open_file, picture

_OPEN_FILES = 8


@dataclass(frozen=True)
class _File:
    """What is known of a file without its pixels."""

    path: Path
    count: int
    shape: tuple[int, int, int]
    dtype: np.dtype
    colour: bool
    alpha: int


class Windows(Protocol):
    """Images of which windows are read: :class:`Pages`, or those of a data set's items; members as there."""

    @property
    def files(self) -> list[Path]: ...

    @property
    def names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...

    def window(self, index: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray: ...

    def shape(self, index: int) -> tuple[int, int, int]: ...

    def dtype(self, index: int) -> np.dtype: ...

    def place(self, index: int) -> tuple[Path, int]: ...


class Pages(Sequence[np.ndarray]):
    """The images of some files, in order, as a sequence of arrays ``(C, H, W)`` in the dtype that each file stores.

    Nothing is held but what the headers say: a page is decoded when it is taken, and ``window`` decodes only the strips
    or tiles that it needs. Sizes may differ from file to file. Threads may read at once: each has its own hold of a file; a few stay open.

    Args:
        files: TIFF and PNG files (see :func:`unet_fast.data.formats.open_file`), such as
            :func:`unet_fast.data.stacks.list_images` gives.
        labels: read as labels: a PNG with a palette gives its indices, and a mask that is drawn in the alpha channel counts.

    Attributes:
        files: one :class:`pathlib.Path` a file.
        names: one name an image: of its file, and its number there where the file holds several.

    Raises:
        FileNotFoundError, OSError, InputError: as :func:`unet_fast.data.formats.open_file`, for any of the files.

    Equivalent to::

        [image for file in files for image in decode_file(file)]
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = False) -> None:
        self._labels = labels
        self._shelf = _Shelf(labels)
        self._files = [self._look_at(Path(file)) for file in files]
        self._places = [(file, page) for file in self._files for page in range(file.count)]

    @property
    def files(self) -> list[Path]:
        """The files, in order."""
        return [file.path for file in self._files]

    @cached_property
    def names(self) -> list[str]:
        """One name an image."""
        return [file.path.stem if file.count == 1 else f"{file.path.stem}[{page}]" for file, page in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # of slices, select() is the form
        """Image ``index`` as ``(C, H, W)``, without alpha."""
        file, page = self._places[index]
        take = drawn_label if self._labels else picture
        with self._shelf.taken(file.path) as images:
            return take(images, page)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def window(self, index: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """The window of image ``index`` from ``start`` (y, x) on, which must lie inside the image, as ``(C, *size)``.

        Equivalent to::

            pages[index][:, y : y + size[0], x : x + size[1]]
        """
        _, height, width = self.shape(index)
        if not (0 <= start[0] <= start[0] + size[0] <= height and 0 <= start[1] <= start[1] + size[1] <= width):
            raise IndexError(f"the window from {start} of size {size} is not inside {height} x {width}")
        file, page = self._places[index]
        with self._shelf.taken(file.path) as images:
            return images.window(page, start, size)[: file.shape[0]]

    def shape(self, index: int) -> tuple[int, int, int]:
        """(C, H, W) of image ``index``, alpha not counted; nothing is decoded."""
        return self._places[index][0].shape

    def dtype(self, index: int) -> np.dtype:
        """The dtype of image ``index``."""
        return self._places[index][0].dtype

    def colour(self, index: int) -> bool:
        """Whether the channels of image ``index`` are the colours of one picture."""
        return self._places[index][0].colour

    def alpha(self, index: int) -> bool:
        """Whether the file of image ``index`` has transparency."""
        return self._places[index][0].alpha > 0

    def place(self, index: int) -> tuple[Path, int]:
        """The file of image ``index``, and its number in it."""
        file, page = self._places[index]
        return file.path, page

    def select(self, indices: Sequence[int]) -> Pages:
        """The images ``indices``, in that order, as pages of their own."""
        chosen = Pages((), labels=self._labels)
        chosen._shelf = self._shelf
        chosen._places = [self._places[index] for index in indices]
        chosen._files = list(dict.fromkeys(file for file, _ in chosen._places))
        return chosen

    def counts(self) -> list[int]:
        """Images in each of the files."""
        return [file.count for file in self._files]

    def _look_at(self, path: Path) -> _File:
        with self._shelf.taken(path) as images:
            channels, height, width = images.shape
            shape = (channels - images.alpha, height, width)
            return _File(path, len(images), shape, images.dtype, images.colour, images.alpha)


class _Shelf:
    """Open files that nobody reads at the moment; the last used is the last to be closed."""

    def __init__(self, labels: bool) -> None:
        self._labels = labels
        self._lock = threading.Lock()
        self._idle: list[tuple[Path, Images]] = []

    @contextmanager
    def taken(self, path: Path) -> Iterator[Images]:
        """``path`` opened, for this thread alone."""
        with self._lock:
            place = next((i for i in reversed(range(len(self._idle))) if self._idle[i][0] == path), None)
            images = None if place is None else self._idle.pop(place)[1]
        images = images or open_file(path, indexed=self._labels)
        try:
            yield images
        finally:
            with self._lock:
                self._idle.append((path, images))
                old = [self._idle.pop(0)[1] for _ in range(len(self._idle) - _OPEN_FILES)]
            for each in old:
                each.close()
