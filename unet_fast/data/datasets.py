"""Folders in the layouts that public data sets come in: recognised, read, and assembled into pairs of one size."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_fast.data.datasets_layouts import LAYOUTS, Layout
from unet_fast.data.items import Item, LabelBands, Source, cut, items_of
from unet_fast.data.label_codes import Coding, LabelOptions, decide
from unet_fast.data.label_kinds import Kind
from unet_fast.data.limits import check_decoded
from unet_fast.data.pages import Windows
from unet_fast.data.pairs import Pair, paired_pages
from unet_fast.data.stacks import PathLike, images_differ, parse_slices
from unet_fast.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Dataset", "Item", "read_dataset"]

SEQUENCE = "sequence:"


@dataclass
class Dataset:
    """Labelled images of any sizes.

    layout: which of the layouts was recognised, in words.
    items: images with interpreted labels, in the order in which ``--val`` counts them.
    kind, num_classes, coding: as in :class:`unet_fast.data.Pair`.
    """

    layout: str
    items: list[Item]
    kind: Kind
    num_classes: int
    coding: Coding

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        """One name an image."""
        return [item.name for item in self.items]

    @property
    def files(self) -> list[Path]:
        """Every file that was read."""
        return [file for item in self.items for file in item.files]

    @property
    def size(self) -> tuple[int, int]:
        """The commonest (height, width); the larger of two that are equally common."""
        counts = Counter(item.size for item in self.items)
        height, width = max(counts, key=lambda shape: (counts[shape], shape))
        return height, width

    def choose(self, text: str | None) -> list[int]:
        """Indices of the images that ``text`` names, see :func:`choose`."""
        return choose(self.items, text)

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.items[0].shape[0]

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The images ``indices``, in that order, as a data set of its own."""
        return replace(self, items=[self.items[index] for index in indices])

    def fingerprint(self) -> dict[str, Any]:
        """What tells data from other data: number and size of the images, and a CRC-32 of those of all images, labels and ignored
        pixels. What has not been read yet is read, band by band."""
        return {
            **self.outline(),
            "checksum": f"{zlib.crc32(repr([each.checksum() for each in self.items]).encode()):08x}",
        }

    def outline(self) -> dict[str, Any]:
        """What of :meth:`fingerprint` is known without reading pixels."""
        return {"images": len(self), "size": [self.channels, *self.size]}

    def pieces(self, size: tuple[int, int] | None = None) -> list[tuple[Item, tuple[int, int]]]:
        """(image, (y, x)) of the windows of ``size`` (default :attr:`size`) that cover all images."""
        size = size or self.size
        return [(item, start) for item in self.items for start in corners(item.size, size)]

    def ignored_share(self) -> float:
        """The part of all pixels that counts nowhere; labels are read where there may be such pixels."""
        total = ignored = 0
        for item in self.items:
            total += math.prod(item.size)
            if self.coding.ignored is not None or item.outside is not None:
                masks = (item.label_window(*band)[1] for band in item.bands())
                ignored += sum(int(mask.sum()) for mask in masks if mask is not None)
        return ignored / total

    def pair(self, indices: Sequence[int] | None = None, size: tuple[int, int] | None = None) -> Pair:
        """The images ``indices`` (default all) as one stack of ``size`` (default :attr:`size`).

        A larger image is cut into as few equal, evenly spaced pieces as cover it, which overlap where its size is no
        multiple. A smaller one is continued by its mirror image, whose pixels are ignored. Colour images whose channels
        agree in all of the data are read as grey; beside real colour, grey images get three equal channels. Images are read one
        by one, so that nothing but the stack is held.
        """
        chosen = self if indices is None else self.subset(indices)
        if not len(chosen):
            raise InputError("no images are chosen, expected at least one")
        size = size or self.size
        pieces = chosen.pieces(size)
        _check_bytes([item.pixels for item in chosen.items])
        dtype = np.result_type(*{item.pixels.dtype for item in chosen.items})
        images = np.empty((len(pieces), self.channels, *size), dtype)
        labels = np.empty((len(pieces), *size), self.coding.dtype)
        masks: np.ndarray | None = None
        names = []
        loaded: tuple[Item, tuple[np.ndarray, np.ndarray, np.ndarray | None]] | None = None
        for index, (item, start) in enumerate(pieces):
            if loaded is None or loaded[0] is not item:
                loaded = item, _continued(item.load(), size)
            image, label, ignored = loaded[1]
            images[index], labels[index] = cut(image, start, size), cut(label, start, size)
            if ignored is not None:
                part = cut(ignored, start, size)
                if masks is None and part.any():
                    masks = np.zeros(labels.shape, bool)
                if masks is not None:
                    masks[index] = part
            names.append(item.name if item.size == size else f"{item.name}[{start[0]},{start[1]}]")
        return Pair(images, labels, self.kind, self.num_classes, names, masks, self.coding)

    def sample(self, size: tuple[int, int], most: int) -> Pair:
        """At most ``most`` windows of ``size``, evenly spaced over all images, normalised by the statistics of their images.

        Smaller images are continued as in :meth:`pair`.
        """
        places = self.pieces(size)
        places = places[:: -(-len(places) // most)]
        images = np.empty((len(places), self.channels, *size), np.float32)
        labels = np.empty((len(places), *size), self.coding.dtype)
        masks = np.zeros(labels.shape, bool)
        for index, (item, start) in enumerate(places):
            inside = min(size[0], item.size[0]), min(size[1], item.size[1])
            image = item.survey().statistics.apply(item.image_window(start, inside))
            image, label, ignored = _continued((image, *item.label_window(start, inside)), size)
            images[index], labels[index] = image, label
            masks[index] = False if ignored is None else ignored
        names = [f"{item.name}[{y},{x}]" for item, (y, x) in places]
        ignored = masks if masks.any() else None
        return Pair(images, labels, self.kind, self.num_classes, names, ignored, self.coding, normalized=True)

    def whole(self, indices: Sequence[int] | None = None) -> Pair:
        """The images ``indices`` (default all), each in one piece, as a stack of the greatest height and width.

        Smaller ones are continued by their mirror image, whose pixels are ignored: the form to score predictions in.
        """
        chosen = self.items if indices is None else [self.items[index] for index in indices]
        largest = (max(item.size[0] for item in chosen), max(item.size[1] for item in chosen))
        pair = self.pair(indices, largest)
        return replace(pair, names=[item.name for item in chosen])


def choose(items: Sequence[Item], text: str | None) -> list[int]:
    """Indices of the items that ``text`` names: ``"20:25"``, ``"3,7"``, ``"sequence:02"``; None names all.

    Raises ``InputError`` as :func:`unet_fast.data.parse_slices`, and one that lists the sequences for an unknown one.
    """
    if text is None:
        return list(range(len(items)))
    if not text.startswith(SEQUENCE):
        return parse_slices(text, len(items))
    name, known = text.removeprefix(SEQUENCE), sorted({item.sequence for item in items if item.sequence})
    if name not in known:
        raise InputError(f"there is no sequence {name!r}; sequences of this data: {', '.join(known) or 'none'}")
    return [index for index, item in enumerate(items) if item.sequence == name]


class ItemPages(Windows):
    """The images of items, of any sizes, as :class:`unet_fast.data.pages.Pages` offers those of files; labels are not read."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = list(items)

    @property
    def files(self) -> list[Path]:
        """The files of the images, in order."""
        return list(dict.fromkeys(item.pixels.file for item in self._items))

    @property
    def names(self) -> list[str]:
        """One name an image."""
        return [item.name for item in self._items]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._items[index].image

    def window(self, index: int, start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """The window of image ``index`` from ``start`` (y, x) on, as ``(C, *size)``."""
        return self._items[index].image_window(start, size)

    def shape(self, index: int) -> tuple[int, int, int]:
        """(C, H, W) of image ``index``."""
        return self._items[index].shape

    def dtype(self, index: int) -> np.dtype:
        """The dtype of image ``index``."""
        return self._items[index].pixels.dtype

    def place(self, index: int) -> tuple[Path, int]:
        """The file of image ``index``, and its number in it."""
        pixels = self._items[index].pixels
        return pixels.file, pixels.number

    def select(self, indices: Sequence[int]) -> ItemPages:
        """Some of the images."""
        return ItemPages([self._items[index] for index in indices])


def read_dataset(
    path: PathLike, *, kind: Kind | None = None, num_classes: int | None = None, ignore_index: int | None = None
) -> Dataset:
    """Recognise and read a folder of labelled images.

    Layouts, tried in this order (see :mod:`unet_fast.data.datasets_layouts`): ISBI 2012 stacks, Cell Tracking Challenge,
    DRIVE, 2018 Data Science Bowl, and plain pairs of images and labels. ``kind``, ``num_classes`` and ``ignore_index`` are
    as in :func:`unet_fast.data.read_labels`; what the numbers mean is decided from all images together.

    Raises:
        InputError: none of the layouts (the message shows their trees), or what is there is incomplete or damaged.
        FileNotFoundError: no such folder.
    """
    layout, found, items = find_items(path)
    kind = kind or layout.kind
    return of_items(layout.name, items, found, kind=kind, num_classes=num_classes, ignore_index=ignore_index)


def find_items(path: PathLike) -> tuple[Layout, Path, list[Item]]:
    """The layout of a folder, the part of it that has this layout, and its images, whose labels nobody has read; see :func:`read_dataset`."""
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; check the path")
    for layout in LAYOUTS if root.is_dir() else ():
        found = layout.find(root)
        if found is None:
            continue
        items = layout.read(found)
        if not items:
            raise InputError(
                f"{found} looks like {layout.name}, but no image in it has labels; expected\n{layout.tree}"
            )
        return layout, found, items
    trees = "\n".join(f"{layout.name}:\n{layout.tree}" for layout in LAYOUTS)
    what = "holds no labelled images in a known layout" if root.is_dir() else "is a file, expected a folder"
    raise InputError(f"{root} {what}; use --images and --labels, or arrange the files as one of\n{trees}")


def read_matching(images_path: PathLike, labels_path: PathLike, **options: Unpack[LabelOptions]) -> Dataset:
    """Images and labels of one size that belong together; arguments and errors as of :func:`unet_fast.data.read_pair`."""
    images, labels = paired_pages(images_path, labels_path)
    for index in range(len(images)):
        if images.shape(index) != images.shape(0):
            raise images_differ(images, index)
        if images.shape(index)[1:] != labels.shape(index)[1:]:
            shapes = (
                f"{images_path} has shape {(len(images), *images.shape(index))} and {labels_path} has shape "
                f"{(len(labels), *labels.shape(index))} (N, C, H, W)"
            )
            raise InputError(
                f"images and labels differ in size: {shapes}; crop or resize them to the same height and width"
            )
    items = items_of(images, labels)
    return of_items("images and labels", items, labels_path, images.shape(0)[0], **options)


def of_items(
    layout: str,
    items: Sequence[Item],
    path: PathLike,
    channels: int | None = None,
    **options: Unpack[LabelOptions],
) -> Dataset:
    """A data set of ``items``: what the numbers of their labels mean is decided from all of them, which are read once for it.

    ``channels``: those of every image, where that is known; else colour images are looked at, see :meth:`Dataset.pair`.
    """
    labels = LabelBands(items)
    coding = decide([labels], labels.names, path, **options)
    channels = channels or _one_colour(items)
    items = [replace(item, coding=coding, channels=channels) for item in items]
    return Dataset(layout, items, coding.kind, coding.num_classes, coding)


def _one_colour(items: Sequence[Item]) -> int:
    """The number of channels for all images: 1 where all channels agree in all of them, else that of those in colour."""
    if all(item.is_grey() for item in items):
        return 1
    channels = max(item.pixels.shape[0] for item in items)
    for item in items:
        if item.pixels.shape[0] not in (1, channels):
            raise InputError(
                f"the image {item.name} has {item.pixels.shape[0]} channels, others have {channels}; convert them to one"
            )
    return channels


def _check_bytes(sources: Sequence[Source]) -> None:
    """Refuse files that decode to far more than they hold."""
    total: Counter[Path] = Counter()
    for source in sources:
        total[source.file] += math.prod(source.shape) * source.dtype.itemsize
    for file, count in total.items():
        if file.is_file():
            check_decoded(file, count, file.stat().st_size)


def _continued(
    loaded: tuple[np.ndarray, np.ndarray, np.ndarray | None], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Image, label and ignored pixels with at least ``size``: the mirror image below and to the right, ignored."""
    image, label, ignored = loaded
    border = [(0, max(0, wanted - length)) for wanted, length in zip(size, label.shape, strict=True)]
    if not any(after for _, after in border):
        return loaded
    ignored = np.zeros(label.shape, bool) if ignored is None else ignored
    return (
        np.pad(image, [(0, 0), *border], mode="reflect"),
        np.pad(label, border),
        np.pad(ignored, border, constant_values=True),
    )


def corners(shape: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int]]:
    """(y, x) of as few evenly spaced windows of ``size`` as cover ``shape``."""
    return [(y, x) for y in _starts(shape[0], size[0]) for x in _starts(shape[1], size[1])]


def _starts(length: int, size: int) -> list[int]:
    count = -(-length // size)
    return [0] if count == 1 else [index * (length - size) // (count - 1) for index in range(count)]
